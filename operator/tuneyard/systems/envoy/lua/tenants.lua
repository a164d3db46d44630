-- Whose a request is, by its key. Stands before `extract` where clients need keys; elsewhere it does not exist.
--
-- Rules:
--   * this is the only place where x-tenant comes from; a client's own was removed before any script runs;
--   * the key is looked for in the metadata of a route that x-model chooses (tenancy.py); `extract` gives x-model its own
--     value afterwards, and a request that ends before that leads nowhere;
--   * a header holds no line break, and with a space in it it is no key: what is found between those two is a whole one,
--     and nobody's key reads a piece of what stands behind it;
--   * a gate's token stands in the tables of keys and is none: it counts in its own header alone, beside no key, and for
--     requests that name a revision. Beside a key it is removed, so that its routes, which enforce less and are billed to
--     nobody, are no tenant's;
--   * a tenant that has limits is marked in the tables (`!` behind its name): only of those the process is asked (quota.lua);
--   * credentials go no further than here; the token of a gate stays for the routes, which remove it.
-- Prepended: GATE_TENANT, NAME_MARK, PRIORITIES, SHORTEST_KEY, SHARDS, W1 to W4 (how a key's last bytes choose its table).

-- The key that is shown, and whether it is shown as a gate's token.
local function key_of(headers)
  local value, other, token = headers:get('authorization'), headers:get('x-api-key'), headers:get('tuneyard-gate')
  if not value and not other then return token, true end
  if token then headers:remove('tuneyard-gate') end
  if value then
    headers:remove('authorization')
    local key = string.match(value, '^[Bb]earer +([^ ]+)$')
    if key then return key, false end
  end
  return other, false
end

-- Whether a request is one that gates make.
local function names_revision(headers)
  return headers:get('x-revision') and headers:get(':method') == 'POST'
    and not string.find(headers:get(':path') or '', '^/v1/feedback')
end

-- What the tables say of a key, or of a tenant's name behind NAME_MARK: the tenant, and what it may call; nil: nothing.
local function line_of(handle, headers, key)
  local a, b, c, d = string.byte(key, -4, -1)
  headers:replace('x-model', '~' .. (W1 * a + W2 * b + W3 * c + W4 * d) % SHARDS)
  local keys = handle:metadata():get('keys')
  local _, last = string.find(keys or '', '\n' .. key .. ' ', 1, true)
  headers:remove('x-model')
  return last and string.match(keys, '^[^\n]*', last + 1)
end

local function without_policy(handle, tenant)
  return refuse(handle, '403', 'The tenant ' .. tenant .. ' has no policy: it may call no model.',
    'invalid_request_error', 'no_policy')
end

-- From here on the request is that tenant's; what it may call, and whether it has limits.
local function let_in(handle, headers, line)
  local tenant, flag, limited, allowed = string.match(line, '^([^%s;!]+);?([^%s!]*)(!?) ?(.*)$')
  headers:replace('x-tenant', tenant)
  if PRIORITIES then
    local priority = (flag == 'h' or tenant == GATE_TENANT) and 'High' or flag == 'l' and 'Low'
    if priority then headers:replace('x-tuneyard-priority', priority) end
  end
  if allowed == '' then return without_policy(handle, tenant) end
  return allowed, limited ~= ''
end

-- What the caller may call, as `permits` takes it, and whether it has limits; nil: the request has been refused.
local function caller_of(handle, headers)
  local key, as_gate = key_of(headers)
  if not key then
    return refuse(handle, '401', 'You did not provide an API key: send it as Authorization: Bearer KEY, or as x-api-key.',
      'invalid_request_error', 'invalid_api_key')
  end
  local line
  if #key >= SHORTEST_KEY and not string.find(key, ' ', 1, true) then line = line_of(handle, headers, key) end
  local gates = line and string.match(line, '^%S+') == GATE_TENANT
  if not line or gates ~= as_gate or (as_gate and not names_revision(headers)) then
    return refuse(handle, '401', 'Incorrect API key provided.', 'invalid_request_error', 'invalid_api_key')
  end
  return let_in(handle, headers, line)
end

