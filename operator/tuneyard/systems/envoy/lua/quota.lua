-- Asks the gateway process whether a tenant with limits may make this request. Stands before `extract` where clients need
-- keys; a tenant without limits never comes here.
--
-- Rules:
--   * the process is told what the request may cost (bytes of the body, the most tokens that it asks for), and by which
--     mark its end will be known: metadata `quota`, which comes back with the access log (systems/envoy/quotas.py). The
--     mark is there before the question, so that a client who leaves meanwhile is heard of too;
--   * no answer at all is no refusal: a process that begins anew takes nobody's service away. The mark `-` says that the
--     request was not asked for, and it is counted when it ends.
local SPENDS = { max_tokens = true, max_completion_tokens = true, n = true, best_of = true }
local LONGEST = 999999999 -- of a number that a body may ask for
local PASSED_ON = { 'retry-after', 'x-should-retry', 'x-ratelimit-limit-requests', 'x-ratelimit-remaining-requests',
  'x-ratelimit-reset-requests', 'x-ratelimit-limit-tokens', 'x-ratelimit-remaining-tokens', 'x-ratelimit-reset-tokens' }
local this, count = string.match(tostring({}), '%w+$'), 0 -- another one in each of Envoy's threads

local function within_limits(handle, headers, size, asked)
  count = count + 1
  local mark = handle:timestampString(EnvoyTimestampResolution.MICROSECOND) .. '-' .. this .. '-' .. count
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set('tuneyard', 'quota', mark)
  local most = math.max(asked.max_tokens or 0, asked.max_completion_tokens or 0)
  if string.find(headers:get(':path') or '', '^/v1/embeddings') then most = 0 elseif most == 0 then most = -1 end
  local answer, text = handle:httpCall('holding', {
    [':method'] = 'POST',
    [':path'] = '/quota',
    [':authority'] = 'holding',
    ['x-tuneyard-tenant'] = headers:get('x-tenant'),
    ['x-tuneyard-quota'] = mark,
    ['x-tuneyard-size'] = tostring(size),
    ['x-tuneyard-most'] = string.format('%d', math.min(most, LONGEST)),
    ['x-tuneyard-choices'] = string.format('%d', math.min(math.max(asked.n or 1, asked.best_of or 1, 1), LONGEST)),
  }, nil, QUOTA_MILLISECONDS)
  metadata = handle:streamInfo():dynamicMetadata()
  local status = answer[':status']
  if status == '200' then return true end
  if status ~= '429' or not answer['content-type'] then
    metadata:set('tuneyard', 'quota', '-')
    return true
  end
  metadata:set('tuneyard', 'error', 'over_limit')
  local shown = { [':status'] = status, ['content-type'] = 'application/json' }
  for _, name in ipairs(PASSED_ON) do shown[name] = answer[name] end
  handle:respond(shown, text)
  return false
end

