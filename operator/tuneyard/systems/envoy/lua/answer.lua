-- Watches answers pass by: when the first and the last token came, how many chunks, how many tokens. Nothing is held
-- back and nothing changed.
--
-- Rules:
--   * what is known is written at once into dynamic metadata `tuneyard`: a client that leaves ends this script;
--   * an engine sends headers long before its first token: the first body chunk counts, server-sent comments
--     (keep-alives) do not;
--   * usage is read where OpenAI's format has it, as an unescaped key: generated text cannot hold one, its quotes are
--     escaped. json_to_metadata would hold the whole answer back, and refuse one that is over the buffer's limit.
-- the time goes by in library calls that LuaJIT cannot compile: without it a request costs 8 % less
jit.off()
jit.flush()
local find, match, sub = string.find, string.match, string.sub
local CARRY = 512 -- bytes of the previous chunks that are looked at again: a usage object may be cut in two

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

local function watch_stream(handle)
  local known = handle:streamInfo():dynamicMetadata():get('tuneyard')
  local start = known and tonumber(known['start'])
  if not start then return end
  local carry, chunks, first = '', 0, nil
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local text = chunk:getBytes(0, length)
      local metadata = handle:streamInfo():dynamicMetadata() -- wrappers are dead after each chunk's yield
      local now = tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
      if not first and sub(text, 1, 1) ~= ':' then
        first = now
        metadata:set('tuneyard', 'ttft_ms', (now - start) / 1000)
      end
      if first then
        chunks = chunks + 1
        metadata:set('tuneyard', 'chunks', chunks)
        if chunks > 1 then metadata:set('tuneyard', 'itl_ms', (now - first) / 1000 / (chunks - 1)) end
      end
      text = carry .. text
      read_usage(handle, text)
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
