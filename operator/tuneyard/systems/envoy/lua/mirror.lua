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
--   * of such requests a worker keeps no more than HELD_LIMIT, each counted with what a stream's state costs: a copy
--     above that is left out as `busy`, before it costs memory. An answer that is through gives its request back. A
--     stream that ends otherwise tells no script; but Envoy keeps the request's coroutine for exactly as long as the
--     stream, so that those that are still there can be counted anew: where the limit is reached, once a second;
--   * request and answer are not touched. An answer is kept beside its way to the client up to ANSWER_LIMIT, of no more
--     than KEPT_AT_ONCE per worker: above that only its status and times are told;
--   * a client that leaves ends this script, and then there is no copy.
-- Prepended: BODY_LIMIT, ANSWER_LIMIT, HELD_LIMIT, PATIENCE (milliseconds).
jit.off() -- as in extract.lua
jit.flush()
local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local KEPT_AT_ONCE = 64
local STREAM = 4096 -- bytes that are counted for a request besides its body

-- every worker has a Lua of its own, and its own sequence of numbers
math.randomseed(os.time() + tonumber(sub(match(tostring({}), '0x(%x+)'), -6), 16))

local kept = setmetatable({}, { __mode = 'k' }) -- answers that are being kept; those of ended scripts vanish by themselves

local function kept_now()
  local number = 0
  for _ in pairs(kept) do number = number + 1 end
  return number
end

local held = setmetatable({}, { __mode = 'k' }) -- bytes of the requests that are kept, by the stream's coroutine
local streams = setmetatable({}, { __mode = 'v' }) -- these coroutines, by number
local last, total, counted = 0, 0, 0 -- the newest number; bytes held, or more; the second of the last count

local function fits(bytes)
  if total + bytes <= HELD_LIMIT then return true end
  local now = os.time()
  if now == counted then return false end
  counted = now
  collectgarbage()
  total = 0
  for _, each in pairs(held) do total = total + each end
  return total + bytes <= HELD_LIMIT
end

local function hold(bytes)
  local stream = coroutine.running()
  last, total = last + 1, total + bytes
  held[stream], streams[last] = bytes, stream
  return last
end

local function give_back(number)
  local stream = streams[number]
  if not stream then return end
  total = total - held[stream]
  held[stream], streams[number] = nil, nil
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
  if not fits(size + STREAM) then return tell(handle, { ['x-tuneyard-skipped'] = 'busy' }, nil) end
  local start = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
  local path = match(headers:get(':path') or '', '^[^?]*')
  local state = handle:streamInfo():filterState()
  state:set('tuneyard.mirror', 'envoy.string',
    hold(size + STREAM) .. ' ' .. start .. ' ' .. at .. ' ' .. path .. ' ' .. (headers:get('x-request-id') or ''))
  state:set('tuneyard.mirror.body', 'envoy.string', body:getBytes(0, size))
end

function envoy_on_response(handle)
  local number, start, at, path, request =
    match(handle:streamInfo():filterState():get('tuneyard.mirror') or '', '^(%d+) (%d+) (%S+) (%S+) (.*)$')
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
  give_back(tonumber(number))
  told['x-tuneyard-size'] = tostring(#text)
  if pieces then
    kept[pieces] = nil
    told['x-tuneyard-answer'] = 'whole'
    text = text .. table.concat(pieces)
  end
  tell(handle, told, text)
end
