-- Finds the top-level "model" of a request's JSON body without parsing (or touching) the rest, and sets x-model.
--
-- Rules:
--   * what comes from a gateway (tuneyard-hop) is refused before anything else: it would come again for ever;
--   * where clients need keys, `caller_of`, `permits` and `within_limits` stand before this script (tenants.lua, quota.lua),
--     else they are nil. A model
--     that the caller may not call is refused in the words for one that does not exist: nobody learns others' names;
--   * it knows the paths that are served; every other one is refused here;
--   * what a JSON parser behind us could read differently is refused: duplicate or escaped top-level keys, NUL bytes
--     (Python's json guesses UTF-16 and UTF-32 by them), byte order marks, a content encoding;
--   * where usage is counted, a stream is asked for it (usage_request.lua): x-tuneyard-usage says at which bytes, and
--     metadata `unasked` that the client did not ask;
--   * a name that no ModelDeployment can have is unknown here already, so that x-model is always a clean text;
--   * x-model and x-tuneyard-* of clients were removed before this script runs, by Envoy itself: if the script fails,
--     the request has no model, and the gate (rbac) refuses what no script has opened it for.
-- Leaves in the header x-tuneyard-gate, which stays closed by it, where the model's value stands (first-last, 1-based
-- bytes), and, for a request that streams, in dynamic metadata `tuneyard` when it was there as a whole (start, in
-- microseconds). Metadata costs more than headers.
-- the time goes by in library calls that LuaJIT cannot compile: without it a request costs 8 % less
jit.off()
jit.flush()
local byte, find, sub = string.byte, string.find, string.sub

local INFERENCE = {
  ['/v1/chat/completions'] = true,
  ['/v1/completions'] = true,
  ['/v1/embeddings'] = true,
}
local MAX_FEEDBACK = 32768 -- bytes of a body, whose text may be 4096 and have six for each as JSON
local MAX_DEPTH = 256      -- of nesting
local MAX_TOKENS = 1000000 -- strings and brackets: bounds the time that one body can take

-- Position of the quote that ends a string; `from` is the first byte after the opening quote.
local function string_end(text, from)
  while true do
    local quote = find(text, '"', from, true)
    if not quote then return nil end
    local before = quote - 1
    while before >= from and byte(text, before) == 92 do before = before - 1 end
    if (quote - before) % 2 == 1 then return quote end -- an even number of backslashes
    from = quote + 1
  end
end

-- First and last byte of the value of the top-level key "model", and where the values of "stream" and "stream_options"
-- begin, where they are there; or nil and what is wrong. Into `asked`, where it is given, go the numbers of SPENDS.
local function locate(text, asked)
  local at = find(text, '%S')
  if not at or byte(text, at) ~= 123 then return nil, 'The body must be a JSON object.' end
  if find(text, '\0', 1, true) then return nil, 'The body must be JSON in UTF-8.' end
  local depth, tokens, first, last, stream, options = 0, 0, nil, nil, nil, nil
  while true do
    local mark = find(text, '["{}%[%]]', at)
    if not mark then break end
    tokens = tokens + 1
    if tokens > MAX_TOKENS then return nil, 'The body has too many parts.' end
    local char = byte(text, mark)
    if char == 34 then
      local quote = string_end(text, mark + 1)
      if not quote then return nil, 'The body is not valid JSON: a string does not end.' end
      if depth == 1 then
        local _, colon = find(text, '^%s*:%s*', quote + 1)
        if colon then -- a key of the top-level object
          local key = sub(text, mark + 1, quote - 1)
          if find(key, '\\', 1, true) then return nil, 'Keys of the body may not hold escapes.' end
          if key == 'model' then
            if first then return nil, 'The body has the key model twice.' end
            if byte(text, colon + 1) ~= 34 then return nil, 'model must be a string.' end
            quote = string_end(text, colon + 2)
            if not quote then return nil, 'The body is not valid JSON: a string does not end.' end
            first, last = colon + 2, quote - 1
          elseif key == 'stream' then
            if stream then return nil, 'The body has the key stream twice.' end
            stream = colon + 1
          elseif key == 'stream_options' then
            if options then return nil, 'The body has the key stream_options twice.' end
            options = colon + 1
          elseif asked and SPENDS[key] then
            asked[key] = math.max(asked[key] or 0, tonumber(string.match(text, '^[%d.eE+-]+', colon + 1) or '') or 0)
          end
        end
      end
      at = quote + 1
    else
      if char == 123 or char == 91 then
        depth = depth + 1
        if depth > MAX_DEPTH then return nil, 'The body is nested too deeply.' end
      else
        depth = depth - 1
        if depth < 0 then return nil, 'The body is not valid JSON: brackets do not match.' end
        if depth == 0 and find(text, '%S', mark + 1) then
          return nil, 'The body is not valid JSON: something follows the object.'
        end
      end
      at = mark + 1
    end
  end
  if depth ~= 0 then return nil, 'The body is not valid JSON: brackets do not match.' end
  if not first or last < first then return nil, 'You must provide a model parameter.' end
  return first, last, stream, options
end

local function is_model_name(name)
  return #name <= 253 and find(name, '^%w[%w._:/-]*$') ~= nil
end

local function unknown_url(handle)
  refuse(handle, '404', 'Unknown request URL.', 'invalid_request_error', 'unknown_url')
end

local function unknown_model(handle)
  refuse(handle, '404', 'The model does not exist.', 'invalid_request_error', 'model_not_found', 'model')
end

-- GET /v1/models and /v1/models/{id}: answered by routes that lead to no engine.
local function list_models(handle, headers, path, allowed)
  if path == '/v1/models' then
    if allowed then headers:replace('x-tuneyard-allowed', allowed) end
    headers:replace('x-model', '-')
    headers:replace('x-tuneyard-gate', 'open')
    return
  end
  local name = string.match(path, '^/v1/models/(.+)$')
  if not name then return unknown_url(handle) end
  name = string.gsub(name, '%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end)
  if not is_model_name(name) then return unknown_model(handle) end
  if allowed and not permits(allowed, name) then name = '~' end -- as unknown as one that does not exist
  headers:replace('x-model', name)
  headers:replace(':path', '/v1/models/-')
  headers:replace('x-tuneyard-gate', 'open')
end

-- POST /v1/feedback: the gateway process knows whose answer it was, and answers by itself.
local function give_feedback(handle, tenant)
  local body = handle:body(true)
  if body:length() > MAX_FEEDBACK then
    return refuse(handle, '413', 'The body is over the limit of 32 KiB.', 'invalid_request_error', 'request_too_large')
  end
  local answer, text = handle:httpCall('holding', {
    [':method'] = 'POST',
    [':path'] = '/feedback',
    [':authority'] = 'holding',
    ['x-tuneyard-tenant'] = tenant,
  }, body:getBytes(0, body:length()), 5000)
  local status, kind = answer[':status'], answer['content-type'] or ''
  if find(kind, 'application/json', 1, true) ~= 1 then
    return refuse(handle, '503', 'Nobody could take this feedback at the moment.', 'server_error', 'unavailable')
  end
  if status ~= '202' then handle:streamInfo():dynamicMetadata():set('tuneyard', 'error', 'feedback') end
  local headers = { [':status'] = status, ['content-type'] = 'application/json' }
  headers['retry-after'] = answer['retry-after']
  handle:respond(headers, text)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get('tuneyard-hop') then
    return refuse(handle, '508', 'A gateway sent this request to a gateway.', 'server_error', 'loop_detected')
  end
  local allowed, limited
  if caller_of then
    allowed, limited = caller_of(handle, headers)
    if not allowed then return end
  end
  local path = headers:get(':path') or ''
  local query = find(path, '?', 1, true)
  if query then path = sub(path, 1, query - 1) end
  local method = headers:get(':method')
  if method == 'GET' and not INFERENCE[path] then return list_models(handle, headers, path, allowed) end
  if path == '/v1/feedback' and method == 'POST' then return give_feedback(handle, headers:get('x-tenant')) end
  if not INFERENCE[path] then return unknown_url(handle) end
  if method ~= 'POST' then
    return refuse(handle, '405', 'Only POST is allowed here.', 'invalid_request_error', 'method_not_allowed')
  end
  local encoding = headers:get('content-encoding')
  if encoding and encoding ~= 'identity' then
    return refuse(handle, '415', 'The body may not have a content encoding.', 'invalid_request_error',
      'unsupported_content_encoding')
  end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local asked = limited and {} or nil
  local first, last, stream, options = locate(text, asked)
  if not first then return refuse(handle, '400', last, 'invalid_request_error', 'invalid_body', 'model') end
  local streams, usage = usage_place(text, stream, options)
  if streams == nil then return refuse(handle, '400', usage, 'invalid_request_error', 'invalid_body', 'stream') end
  local name = sub(text, first, last)
  if find(name, '\\/', 1, true) then name = string.gsub(name, '\\/', '/') end -- some encoders escape slashes
  if not is_model_name(name) then return unknown_model(handle) end
  if allowed and not permits(allowed, name) then
    return refuse(handle, '404', 'The model `' .. name .. '` does not exist.', 'invalid_request_error', 'model_not_found',
      'model', 'model_not_allowed')
  end
  if limited and not within_limits(handle, handle:headers(), #text, asked) then return end
  headers = handle:headers() -- the wrapper from before body() is dead after the yield
  if streams then
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set('tuneyard', 'start', handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
    if COUNT_USAGE and usage then
      headers:replace('x-tuneyard-usage', usage)
      metadata:set('tuneyard', 'unasked', true)
    end
  end
  headers:replace('x-tuneyard-gate', first .. '-' .. last)
  headers:replace('x-model', name)
end
