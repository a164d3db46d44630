-- GET /v1/models where clients need keys: the models that the caller may call. Takes the place of `rewrite` on this route.
-- The route's context holds a line for each model: its name, a space, and what the list says of it.
function envoy_on_request(handle)
  local allowed = handle:headers():get('x-tuneyard-allowed')
  local models = handle:filterContext():get('models')
  local shown = {}
  for name, text in string.gmatch(models, '(%S+) ([^\n]*)\n') do
    if permits(allowed, name) then shown[#shown + 1] = text end
  end
  handle:respond({ [':status'] = '200', ['content-type'] = 'application/json' },
    '{"object": "list", "data": [' .. table.concat(shown, ', ') .. ']}')
end
