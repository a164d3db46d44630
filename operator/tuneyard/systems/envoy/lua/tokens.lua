-- Whose a request is, by a token (JWT) that Envoy has proven. Stands behind tenants.lua where tokens are taken.
--
-- Rules:
--   * what the filter jwt_authn left in dynamic metadata is all that is believed: `claims` of a token that is good. A token
--     is never read here;
--   * the header must hold that one token and nothing else: two headers, or a scheme around it, are refused, whatever the
--     filter has found in them;
--   * the tenant is the claim of the name TENANT_CLAIM, or the one that its dots lead to. The name as a whole comes first,
--     then the longest object before a dot: names of claims may hold dots themselves (kubernetes.io.namespace);
--   * tenants stand in the tables of keys under their names, behind spaces: no header can ask for those, since what holds a
--     space is no key;
--   * where keys are taken too (KEYS_TOO), what no token was proven for is a key first: a key may look like a token;
--   * a gate's token is no tenant's: without tokens and keys beside it, it goes the way of keys.
-- Prepended: TENANT_CLAIM, KEYS_TOO.
local JWT = 'envoy.filters.http.jwt_authn'
local by_key = caller_of

-- What a client is told, by what the filter says: words, and a code where clients may want to tell it apart.
local NO_SUCH_KEY = "Jwks doesn't have key to match kid or alg from Jwt"
local WRONG = {
  ['Jwt is expired'] = { 'The token has expired.', 'token_expired' },
  ['Jwt not yet valid'] = { 'The token is not valid yet.' },
  ['Jwt issuer is not configured'] = { 'The token is not of the issuer that is asked for (iss).' },
  ['Audiences in Jwt are not allowed'] = { 'The token is not meant for this gateway (aud).' },
  ['Jwt verification fails'] = { 'The token is not signed by its issuer, or it does not say when it ends (exp).' },
  [NO_SUCH_KEY] = { 'The issuer has no key that this token could be signed with.' },
}

-- The claim at that path, nil where there is none.
local function claim_at(claims, path)
  if claims[path] ~= nil then return claims[path] end
  local dot = #path
  while true do
    while dot > 0 and string.byte(path, dot) ~= 46 do dot = dot - 1 end
    if dot == 0 then return nil end
    local inner = claims[string.sub(path, 1, dot - 1)]
    local found = type(inner) == 'table' and claim_at(inner, string.sub(path, dot + 1))
    if found then return found end
    dot = dot - 1
  end
end

local function refuse_token(handle, found)
  local failed = found and found['failed']
  local message = failed and failed['message']
  if message and string.find(message, '^Jwks ') and message ~= NO_SUCH_KEY then
    return refuse(handle, '503', 'What tokens are proven with cannot be had at the moment.', 'server_error', 'unavailable')
  end
  local wrong = WRONG[message] or { 'The token is not valid.' }
  return refuse(handle, '401', wrong[1], 'invalid_request_error', wrong[2] or 'invalid_token')
end

-- What the caller may call, as `permits` takes it, and whether it has limits; nil: the request has been refused.
local function caller_of(handle, headers)
  local value = headers:get('authorization')
  if not value then
    if KEYS_TOO or (headers:get('tuneyard-gate') and not headers:get('x-api-key')) then return by_key(handle, headers) end
    return refuse(handle, '401', 'You did not provide a token: send it as Authorization: Bearer TOKEN.',
      'invalid_request_error', 'invalid_token')
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  local found = metadata:get(JWT)
  local claims, shown = found and found['claims'], string.match(value, '^[Bb]earer +([%w._-]+)$')
  if claims then metadata:set(JWT, 'claims', '') end -- so that access logs do not get them
  if not claims or not shown then
    local looks_so = shown and string.find(shown, '^[%w_-]+%.[%w_-]+%.[%w_-]*$')
    if KEYS_TOO and not (looks_so and not line_of(handle, headers, shown)) then return by_key(handle, headers) end
    return refuse_token(handle, not claims and found)
  end
  headers:remove('authorization')
  if headers:get('tuneyard-gate') then headers:remove('tuneyard-gate') end
  local tenant = claim_at(claims, TENANT_CLAIM)
  if type(tenant) ~= 'string' or #tenant > 63 or not string.find(tenant, '^[a-z0-9][a-z0-9-]*$') then
    return refuse(handle, '403', 'The token names no tenant (claim ' .. TENANT_CLAIM .. ').', 'invalid_request_error',
      'no_tenant')
  end
  local line = line_of(handle, headers, NAME_MARK .. tenant)
  if not line then return without_policy(handle, tenant) end
  return let_in(handle, headers, line)
end

