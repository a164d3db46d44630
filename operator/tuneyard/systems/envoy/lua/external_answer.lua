-- Before `answer`: what an external API says of the gateway's own key is no client's business. Clients would take a 401
-- for their own key's, and the text may hold a part of ours.
local OF_OUR_ACCOUNT = { ['401'] = true, ['402'] = true, ['403'] = true }

local function is_of_our_account(handle, status)
  if not OF_OUR_ACCOUNT[status] then return false end
  local known = handle:streamInfo():dynamicMetadata():get('tuneyard')
  return known ~= nil and known['out'] ~= nil
end

local function keep_to_ourselves(handle)
  local text = '{"error":{"message":"The API that serves this model did not take the credentials of this gateway.",'
    .. '"type":"server_error","param":null,"code":"external_credentials"}}'
  local length = handle:body(true):setBytes(text)
  local headers = handle:headers()
  headers:replace(':status', '502')
  headers:replace('content-type', 'application/json')
  headers:replace('content-length', tostring(length))
  headers:remove('content-encoding')
  headers:remove('www-authenticate')
end
