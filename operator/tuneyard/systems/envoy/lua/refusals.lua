-- Shared by the gateway's scripts: an answer in OpenAI's error shape instead of passing the request on.
-- `message` and `param` are this program's own words, or a model name that was checked: nothing that needs escaping.
-- The metadata key `error` tells the local-reply mapper that the body is complete already; `logged`: what the access log
-- says instead of the code, where clients are told less. `after`: seconds after which asking again may help.
local function refuse(handle, status, message, kind, code, param, logged, after)
  handle:streamInfo():dynamicMetadata():set('tuneyard', 'error', logged or code)
  local headers = { [':status'] = status, ['content-type'] = 'application/json' }
  if status == '503' or status == '429' then headers['retry-after'] = after or '5' end
  handle:respond(headers, '{"error":{"message":"' .. message .. '","type":"' .. kind .. '","param":'
    .. (param and '"' .. param .. '"' or 'null') .. ',"code":"' .. code .. '"}}')
end
