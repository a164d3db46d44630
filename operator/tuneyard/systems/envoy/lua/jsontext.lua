-- Shared by scripts that look into a body beyond its model: walks JSON as text, and changes and copies nothing.
--
-- Rules:
--   * what is walked is checked: brackets match in kind, members are `"key": value` with commas between. So text that one
--     reader would take for something else than these functions is found here, or is no JSON for any reader;
--   * keys come as they are written, escapes and all: who compares them must mind backslashes;
--   * white space is what JSON allows; depth and number of parts are bounded by `extract`, which comes first.
local byte, find, sub = string.byte, string.find, string.sub

-- Position of the first byte at or after `at` that is no white space; past the end where there is none.
local function past_space(text, at) return find(text, '[^ \t\r\n]', at) or #text + 1 end

-- Position of the quote that ends a string; `from` is the first byte after the opening quote.
local function string_ends(text, from)
  while true do
    local quote = find(text, '"', from, true)
    if not quote then return nil end
    local before = quote - 1
    while before >= from and byte(text, before) == 92 do before = before - 1 end
    if (quote - before) % 2 == 1 then return quote end
    from = quote + 1
  end
end

-- Position of the bracket that ends the object or array that begins at `at`; nil where brackets do not match.
local function brackets_end(text, at)
  local closing, depth = {}, 0
  while true do
    local mark = find(text, '["{}%[%]]', at)
    if not mark then return nil end
    local char = byte(text, mark)
    if char == 34 then
      mark = string_ends(text, mark + 1)
      if not mark then return nil end
    elseif char == 123 or char == 91 then
      depth = depth + 1
      closing[depth] = char + 2
    else
      if closing[depth] ~= char then return nil end
      depth = depth - 1
      if depth == 0 then return mark end
    end
    at = mark + 1
  end
end

-- Position of the last byte of the value that begins at `at`; nil where none does.
local function value_ends(text, at)
  local char = byte(text, at)
  if char == 34 then return string_ends(text, at + 1) end
  if char == 123 or char == 91 then return brackets_end(text, at) end
  local _, last = find(text, '^[%w+.-]+', at)
  return last
end

-- Walks the object that begins at `open`: calls visit(key, first, last) with where each value stands. Returns the position
-- of its closing bracket; nil where it is not well formed, or where `visit` has returned true.
local function walk_object(text, open, visit)
  local at = past_space(text, open + 1)
  if byte(text, at) == 125 then return at end
  while true do
    if byte(text, at) ~= 34 then return nil end
    local quote = string_ends(text, at + 1)
    if not quote then return nil end
    local key = sub(text, at + 1, quote - 1)
    local colon = past_space(text, quote + 1)
    if byte(text, colon) ~= 58 then return nil end
    local first = past_space(text, colon + 1)
    local last = value_ends(text, first)
    if not last or visit(key, first, last) then return nil end
    at = past_space(text, last + 1)
    local char = byte(text, at)
    if char == 125 then return at end
    if char ~= 44 then return nil end
    at = past_space(text, at + 1)
  end
end
