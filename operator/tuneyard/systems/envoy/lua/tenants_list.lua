-- GET /v1/models where clients need keys: the models that the caller may call. Takes the place of `rewrite` on this route.
-- The route's context holds an entry per model, by number from 0: its name, a space, and what the list says of it.
function envoy_on_request(handle)
  local allowed = handle:headers():get('x-tuneyard-allowed')
  local context = handle:filterContext()
  local shown, number = {}, 0
  local entry = context:get('0')
  while entry do
    local name, text = string.match(entry, '^(%S+) (.*)$')
    if permits(allowed, name) then shown[#shown + 1] = text end
    number = number + 1
    entry = context:get(tostring(number))
  end
  handle:respond({ [':status'] = '200', ['content-type'] = 'application/json' },
    '{"object": "list", "data": [' .. table.concat(shown, ', ') .. ']}')
end
