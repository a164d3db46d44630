-- Copies a share of the requests, with what was answered to them, to the gateway process, which asks the mirrored
-- revision and compares. Runs only on routes that name it (LuaPerRoute `copy`); on all others it does not exist.
--
-- Rules:
--   * it stands before `rewrite`, so that the copy is what the client has sent, and before the engine's key is set;
--   * a copy leaves when its answer is through, in one call that nobody waits for: the request meets its copy nowhere,
--     not even in an engine. Where the process does not take it, it is gone: the cluster `mirror` lets only so many be
--     under way;
--   * until then the request lies in the stream's filter state, which ends with it and is in no log. A text ends there
--     at a NUL byte; `extract` lets none pass;
--   * request and answer are not touched. An answer is kept beside its way to the client up to ANSWER_LIMIT, of no more
--     than KEPT_AT_ONCE per worker: above that only its status and times are told;
--   * a client that leaves ends this script, and then there is no copy.
-- Prepended: BODY_LIMIT, ANSWER_LIMIT, PATIENCE (milliseconds).
jit.off() -- as in extract.lua
jit.flush()
local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local KEPT_AT_ONCE = 64

-- every worker has a Lua of its own, and its own sequence of numbers
math.randomseed(os.time() + tonumber(sub(match(tostring({}), '0x(%x+)'), -6), 16))

local kept = setmetatable({}, { __mode = 'k' }) -- answers that are being kept; those of ended scripts vanish by themselves

local function kept_now()
  local number = 0
  for _ in pairs(kept) do number = number + 1 end
  return number
end

local function tell(handle, headers, body)
  local context = handle:filterContext()
  headers[':method'] = 'POST'
  headers[':path'] = '/copy'
  headers[':authority'] = 'mirror'
  headers['x-tuneyard-model'] = context:get('model')
  headers['x-tuneyard-revision'] = context:get('mirrored')
  headers['x-tuneyard-against'] = context:get('revision')
  handle:httpCall('mirror', headers, body, PATIENCE, true)
end

function envoy_on_request(handle)
  if math.random(100) > tonumber(handle:filterContext():get('percent')) then return end
  local body = handle:body(true)
  local headers = handle:headers()
  local at = headers:get('x-tuneyard-gate') or ''
  if not find(at, '^%d+%-%d+$') then return end -- leads to no engine
  local size = body:length()
  if size > BODY_LIMIT then return tell(handle, { ['x-tuneyard-skipped'] = 'too-long' }, nil) end
  local start = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
  local path = match(headers:get(':path') or '', '^[^?]*')
  local state = handle:streamInfo():filterState()
  state:set('tuneyard.mirror', 'envoy.string',
    start .. ' ' .. at .. ' ' .. path .. ' ' .. (headers:get('x-request-id') or ''))
  state:set('tuneyard.mirror.body', 'envoy.string', body:getBytes(0, size))
end

function envoy_on_response(handle)
  local start, at, path, request =
    match(handle:streamInfo():filterState():get('tuneyard.mirror') or '', '^(%d+) (%S+) (%S+) (.*)$')
  if not start then return end
  local headers = handle:headers()
  local told = {
    ['x-tuneyard-request'] = request,
    ['x-tuneyard-path'] = path,
    ['x-tuneyard-at'] = at,
    ['x-tuneyard-status'] = headers:get(':status'),
    ['x-tuneyard-kind'] = headers:get('content-type'),
  }
  local pieces, size, first = {}, 0, nil
  if kept_now() < KEPT_AT_ONCE and not headers:get('content-encoding') then
    kept[pieces] = true
  else
    pieces = nil
  end
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 and (pieces or not first) then
      size = size + length
      if size > ANSWER_LIMIT then pieces = nil end
      local text = chunk:getBytes(0, pieces and length or 1)
      if pieces then pieces[#pieces + 1] = text end
      if not first and byte(text, 1) ~= 58 then -- server-sent comments are no token
        first = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
      end
    end
  end
  local now = tonumber(handle:timestampString(EnvoyTimestampResolution.MICROSECOND))
  told['x-tuneyard-whole-ms'] = tostring((now - tonumber(start)) / 1000)
  if first then told['x-tuneyard-first-ms'] = tostring((tonumber(first) - tonumber(start)) / 1000) end
  local text = handle:streamInfo():filterState():get('tuneyard.mirror.body')
  told['x-tuneyard-size'] = tostring(#text)
  if pieces then
    kept[pieces] = nil
    told['x-tuneyard-answer'] = 'whole'
    text = text .. table.concat(pieces)
  end
  tell(handle, told, text)
end
