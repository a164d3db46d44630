-- Watches answers pass by: when the first and the last token came, how many there were, how many the engine has counted.
-- Nothing is held back and nothing changed, but for what nobody has asked for (usage_answer.lua).
--
-- Rules:
--   * what is known is written at once into dynamic metadata `tuneyard`: a client that leaves ends this script;
--   * an engine sends headers long before its first token, and what keeps a connection alive (server-sent comments) before
--     and between tokens: only events count (`data:` at the begin of a line), however many come in one chunk and wherever
--     they are cut. Those that carry nothing generated do not: the last one ([DONE]), that of usage alone, an error;
--   * what came together in the first chunk has no time between its parts: itl_ms is the time since, over what came since;
--   * an engine that fails after the headers says so in an event (`failed`), for the status is 200;
--   * usage is read where OpenAI's format has it, as an unescaped key: generated text cannot hold one, its quotes are
--     escaped. json_to_metadata would hold the whole answer back, and refuse one that is over the buffer's limit.
-- the time goes by in library calls that LuaJIT cannot compile: without it a request costs 8 % less
jit.off()
jit.flush()
local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local CARRY = 512 -- bytes of the previous chunks that are looked at again: a usage object may be cut in two

local HEAD = #'\ndata: {"error"'

-- What the engine has counted, as metadata; nil where the text holds no whole usage object. The last one counts.
local function usage_of(text)
  local at, found = find(text, '"usage"', 1, true), nil
  while at do
    local object = match(text, '^"usage"%s*:%s*(%b{})', at)
    if object and find(object, '"prompt_tokens"', 1, true) then found = object end
    at = find(text, '"usage"', at + 1, true)
  end
  if not found then return nil end
  return {
    prompt_tokens = tonumber(match(found, '"prompt_tokens"%s*:%s*(%d+)')),
    cached_tokens = tonumber(match(found, '"cached_tokens"%s*:%s*(%d+)')) or 0,
    completion_tokens = tonumber(match(found, '"completion_tokens"%s*:%s*(%d+)')) or 0, -- embeddings leave it out
  }
end

-- A whole answer: only its usage is of interest, and once that is known the rest passes without this script.
local function watch_whole(handle)
  local carry
  for chunk in handle:bodyChunks() do
    local text = chunk:getBytes(0, chunk:length())
    if carry then text = carry .. text end
    local usage = usage_of(text)
    if usage then
      usage.whole = true
      handle:streamInfo():dynamicMetadata():set('tuneyard', 'usage', usage)
      return
    end
    carry = sub(text, -CARRY)
  end
end

-- How many events that carry something generated have begun since the text was `seen` bytes long, and whether one is an
-- error. One has begun when HEAD bytes of it are there: by then it shows what it is.
local function events(text, seen)
  local count, failed = 0, false
  local at = find(text, '\ndata:', seen > HEAD and seen - HEAD + 2 or 1, true)
  while at and at + HEAD - 1 <= #text do
    local from = at + 6
    if byte(text, from) == 32 then from = from + 1 end
    if sub(text, from, from + 7) == '{"error"' then
      failed = true
    elseif sub(text, from, from + 5) ~= '[DONE]' then
      count = count + 1
    end
    at = find(text, '\ndata:', from, true)
  end
  return count, failed
end

local function watch_stream(handle)
  local known = handle:streamInfo():dynamicMetadata():get('tuneyard')
  local start = known and tonumber(known['start'])
  if not start then return end
  local carry, count, first, last, together, ended = '\n', 0, nil, nil, 0, false
  local passing, rest
  if known['unasked'] then passing, rest = stripper() end
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local came = chunk:getBytes(0, length)
      local text = carry .. came
      local new, failed = events(text, #carry)
      local usage, metadata = usage_of(text), handle:streamInfo():dynamicMetadata() -- dead after each chunk's yield
      if usage then
        usage.whole = find(text, '"choices"%s*:%s*%[%s*%]') and true or nil
        metadata:set('tuneyard', 'usage', usage)
        -- its event was counted as one when it began, which may be a chunk ago
        if usage.whole and not ended then new, ended = new - 1, true end
      end
      if failed then metadata:set('tuneyard', 'failed', true) end
      if new ~= 0 then
        if new > 0 then last = tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND)) end
        count = count + new
        if not first then
          first, together = last, new
          metadata:set('tuneyard', 'ttft_ms', (last - start) / 1000)
        end
        metadata:set('tuneyard', 'chunks', count)
        if count > together then metadata:set('tuneyard', 'itl_ms', (last - first) / 1000 / (count - together)) end
      end
      carry = sub(text, -CARRY)
      local passes = passing and passing(came)
      if passes then chunk:setBytes(passes) end
    elseif rest then
      local last = rest() -- the end comes by itself, without bytes
      if last ~= '' then chunk:setBytes(last) end
    end
  end
end

function envoy_on_response(handle)
  if is_of_our_account(handle, handle:headers():get(':status')) then return keep_to_ourselves(handle) end
  local kind = handle:headers():get('content-type') or ''
  if find(kind, 'application/json', 1, true) == 1 then
    watch_whole(handle)
  elseif find(kind, 'text/event-stream', 1, true) == 1 then
    watch_stream(handle)
  end
end
