-- Copies a share of the requests, and later what was answered to them, to the gateway process, which asks the mirrored
-- revision and compares. Runs only on routes that name it (LuaPerRoute `copy`); on all others it does not exist.
--
-- Rules:
--   * it stands before `rewrite`, so that the copy is what the client has sent, and before the engine's key is set;
--   * nobody waits for a copy: it is sent off and forgotten, and where the process does not take it, it is gone. The
--     cluster `mirror` lets only so many be under way, so that a process that hangs costs no memory without end;
--   * the request and its answer are not touched. An answer is kept beside its way to the client up to ANSWER_LIMIT, of
--     no more than KEPT_AT_ONCE per worker: above that only its status and times are told;
--   * a client that leaves ends this script, and then nothing is told of its answer.
-- Prepended: BODY_LIMIT, ANSWER_LIMIT, PATIENCE (milliseconds).
jit.off() -- as in extract.lua
jit.flush()
local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local KEPT_AT_ONCE = 64

-- every worker has a Lua of its own, and its own sequence of numbers
math.randomseed(os.time() + tonumber(string.sub(match(tostring({}), '0x(%x+)'), -6), 16))
local tag = string.format('%x-%x-', os.time(), math.random(0, 2147483647))
local count = 0

local kept = setmetatable({}, { __mode = 'k' }) -- answers that are being kept; those of ended scripts vanish by themselves

local function kept_now()
  local number = 0
  for _ in pairs(kept) do number = number + 1 end
  return number
end

local function tell(handle, path, headers, body)
  headers[':method'] = 'POST'
  headers[':path'] = path
  headers[':authority'] = 'mirror'
  handle:httpCall('mirror', headers, body, PATIENCE, true)
end

function envoy_on_request(handle)
  if math.random(100) > tonumber(handle:filterContext():get('percent')) then return end
  local body = handle:body(true)
  local headers, context = handle:headers(), handle:filterContext()
  local at = headers:get('x-tuneyard-gate') or ''
  local path = match(headers:get(':path') or '', '^[^?]*')
  if not find(at, '^%d+%-%d+$') then return end -- leads to no engine
  local start = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
  count = count + 1
  local id, size = tag .. count, body:length()
  local told = {
    ['x-tuneyard-id'] = id,
    ['x-tuneyard-model'] = context:get('model'),
    ['x-tuneyard-revision'] = context:get('mirrored'),
    ['x-tuneyard-against'] = context:get('revision'),
    ['x-tuneyard-request'] = headers:get('x-request-id'),
    ['x-tuneyard-path'] = path,
    ['x-tuneyard-at'] = at,
  }
  if size > BODY_LIMIT then
    told['x-tuneyard-skipped'] = 'too-long'
    return tell(handle, '/copy', told, nil)
  end
  tell(handle, '/copy', told, body:getBytes(0, size))
  handle:streamInfo():dynamicMetadata():set('tuneyard', 'mirror', id .. ' ' .. start)
end

function envoy_on_response(handle)
  local known = handle:streamInfo():dynamicMetadata():get('tuneyard')
  local id, start = match(known and known['mirror'] or '', '^(%S+) (%d+)$')
  if not id then return end
  local headers = handle:headers()
  local told = {
    ['x-tuneyard-id'] = id,
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
  if not pieces then
    told['x-tuneyard-skipped'] = 'too-long'
    return tell(handle, '/answer', told, nil)
  end
  kept[pieces] = nil
  tell(handle, '/answer', told, table.concat(pieces))
end
