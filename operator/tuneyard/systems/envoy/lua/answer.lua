-- Watches answers pass by: when the first and the last token came, how many there were. Nothing is held back and nothing
-- changed.
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

-- Whether the text held a usage object; the last one counts.
local function read_usage(handle, text)
  local at, found = 0, nil
  repeat
    at = find(text, '"usage"', at + 1, true)
    found = at or found
  until not at
  if not found then return false end
  local window = sub(text, found, found + CARRY)
  local prompt = match(window, '"prompt_tokens"%s*:%s*(%d+)%s*[,}]')
  if not prompt then return false end
  local completion = match(window, '"completion_tokens"%s*:%s*(%d+)%s*[,}]')
  -- cut in two: the next chunk brings the rest. Embeddings generate no tokens and say so by leaving it out
  if not completion and not find(window, '}', 1, true) then return false end
  handle:streamInfo():dynamicMetadata():set('tuneyard', 'usage', {
    prompt_tokens = tonumber(prompt),
    completion_tokens = completion and tonumber(completion) or 0,
  })
  return true
end

-- A whole answer: only its usage is of interest, and once that is known the rest passes without this script.
local function watch_whole(handle)
  local carry
  for chunk in handle:bodyChunks() do
    local text = chunk:getBytes(0, chunk:length())
    if carry then text = carry .. text end
    if read_usage(handle, text) then return end
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
  local carry, count, first, together = '\n', 0, nil, 0
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local text = carry .. chunk:getBytes(0, length)
      local new, failed = events(text, #carry)
      if read_usage(handle, text) and new > 0 and find(text, '"choices"%s*:%s*%[%s*%]', #carry) then new = new - 1 end
      local metadata = handle:streamInfo():dynamicMetadata() -- wrappers are dead after each chunk's yield
      if failed then metadata:set('tuneyard', 'failed', true) end
      if new > 0 then
        local now = tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
        count = count + new
        if not first then
          first, together = now, new
          metadata:set('tuneyard', 'ttft_ms', (now - start) / 1000)
        end
        metadata:set('tuneyard', 'chunks', count)
        if count > together then metadata:set('tuneyard', 'itl_ms', (now - first) / 1000 / (count - together)) end
      end
      carry = sub(text, -CARRY)
    end
  end
end

function envoy_on_response(handle)
  local kind = handle:headers():get('content-type') or ''
  if find(kind, 'application/json', 1, true) == 1 then
    watch_whole(handle)
  elseif find(kind, 'text/event-stream', 1, true) == 1 then
    watch_stream(handle)
  end
end
