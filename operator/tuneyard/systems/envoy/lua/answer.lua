-- Watches answers pass by: when the first and the last token came, how many chunks, how many tokens. Nothing is held
-- back and nothing changed.
--
-- Rules:
--   * what is known is written at once into dynamic metadata `tuneyard`: a client that leaves ends this script;
--   * an engine sends headers long before its first token: the first body chunk counts, server-sent comments
--     (keep-alives) do not;
--   * usage is read where OpenAI's format has it, as an unescaped key: generated text cannot hold one, its quotes are
--     escaped. json_to_metadata would hold the whole answer back, and refuse one that is over the buffer's limit.
local find, match, sub = string.find, string.match, string.sub
local CARRY = 512 -- bytes of the previous chunks that are looked at again: a usage object may be cut in two

local function read_usage(metadata, text)
  local at, found = 0, nil
  repeat
    at = find(text, '"usage"', at + 1, true)
    found = at or found
  until not at
  if not found then return end
  local window = sub(text, found, found + CARRY)
  local prompt = match(window, '"prompt_tokens"%s*:%s*(%d+)%s*[,}]')
  local completion = match(window, '"completion_tokens"%s*:%s*(%d+)%s*[,}]')
  if prompt then metadata:set('tuneyard', 'prompt_tokens', tonumber(prompt)) end
  if completion then metadata:set('tuneyard', 'completion_tokens', tonumber(completion)) end
end

function envoy_on_response(handle)
  local kind = handle:headers():get('content-type') or ''
  local streams = find(kind, 'text/event-stream', 1, true) == 1
  if not streams and find(kind, 'application/json', 1, true) ~= 1 then return end
  local metadata = handle:streamInfo():dynamicMetadata()
  local known = metadata:get('tuneyard')
  local start = known and tonumber(known['start'])
  if not start then return end
  local carry, chunks, first = '', 0, nil
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local text = chunk:getBytes(0, length)
      metadata = handle:streamInfo():dynamicMetadata() -- wrappers are dead after each chunk's yield
      if streams then
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
      end
      text = carry .. text
      read_usage(metadata, text)
      carry = sub(text, -CARRY)
    end
  end
end
