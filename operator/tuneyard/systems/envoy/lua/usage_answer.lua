-- Shared with `answer`: takes the event of usage out of a stream whose client did not ask for it (usage_request.lua).
--
-- Rules:
--   * it is the event with usage and no choice in it; every other byte passes as it came;
--   * an event that is whole passes or goes at once. One that is cut is kept back only while it may still be that one:
--     nobody could read it before its end, and one that holds a choice shows it in its first few hundred bytes;
--   * keys of an answer are never escaped and quotes in generated text always are: text cannot look like such an event.
local KEPT_BACK = 4096 -- bytes; what has shown no choice until then is something else

local function tells_usage(event)
  return string.find(event, '"usage"%s*:%s*{') and string.find(event, '"choices"%s*:%s*%[%s*%]') and true or false
end

-- Whether the begin of an event may still become the one of usage.
local function may_tell_usage(event)
  if #event > KEPT_BACK or string.find(event, '"choices"%s*:%s*%[%s*[^%s%]]') then return false end
  local data = 'data:'
  return string.sub(event, 1, #data) == string.sub(data, 1, #event)
end

-- A function that gets the texts of a stream one after the other, and returns what passes of each, nil: all of it; and
-- one that returns what passes of a stream that ends in the middle of an event.
local function stripper()
  local held, within = '', nil -- what is kept back; the last bytes of an event whose begin has passed already
  local function passing(text)
    if held == '' and not within and string.sub(text, -2) == '\n\n' and not string.find(text, '"usage"', 1, true) then
      return nil
    end
    local before = within or ''
    local all, passed, from = before .. held .. text, {}, 1
    while true do
      local _, stop = string.find(all, '\n\r?\n', from)
      if not stop then break end
      local event = string.sub(all, from, stop)
      if within then
        passed[1], within = string.sub(event, #before + 1), nil
      elseif not tells_usage(event) then
        passed[#passed + 1] = event
      end
      from = stop + 1
    end
    held = string.sub(all, from)
    if within or (held ~= '' and not may_tell_usage(held)) then
      passed[#passed + 1] = within and string.sub(held, #before + 1) or held
      held, within = '', string.sub(held, -2)
    end
    return table.concat(passed)
  end
  return passing, function() return tells_usage(held) and '' or held end
end
