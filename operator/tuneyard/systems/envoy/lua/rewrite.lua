-- Puts the engine's name of the chosen revision in the place of the model's name, and touches no other byte.
--
-- Rules:
--   * the name comes from the route that was chosen (LuaPerRoute.filter_context), so body and pod always agree;
--   * the gate is opened only after the body was rewritten: a request that this script failed on is refused (rbac);
--   * a route without an engine refuses in words: a share that nobody may serve, an unknown revision, no route at all.
jit.off() -- as in extract.lua
jit.flush()

function envoy_on_request(handle)
  local body = handle:body(true)
  local headers = handle:headers()
  local name, gate = headers:get('x-model'), headers:get('x-tuneyard-gate')
  if gate == 'open' then return end -- answered without an engine
  if not name or not gate then return end -- `extract` has failed: the gate stays closed
  local context = handle:filterContext()
  local engine = context:get('engine')
  if not engine then
    local refusal = context:get('refusal')
    if refusal == 'unserved' then
      return refuse(handle, '503', 'This model is not ready: no pod serves it at the moment.', 'server_error',
        'model_not_ready', 'model')
    elseif refusal == 'revision' then
      return refuse(handle, '404', 'The model has no revision of that name.', 'invalid_request_error',
        'revision_not_found')
    end
    return refuse(handle, '404', 'The model `' .. name .. '` does not exist.', 'invalid_request_error',
      'model_not_found', 'model')
  end
  local first, last = string.match(gate, '^(%d+)-(%d+)$')
  first, last = tonumber(first), tonumber(last)
  local text = body:getBytes(0, first - 1) .. engine .. body:getBytes(last, body:length() - last)
  body:setBytes(text)
  headers:replace('content-length', tostring(#text))
  headers:replace('x-tuneyard-gate', 'open')
end
