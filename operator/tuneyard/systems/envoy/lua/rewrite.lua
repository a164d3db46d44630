-- Puts the engine's name of the chosen revision in the place of the model's name, and touches no other byte, but that it
-- asks for a stream's usage (usage_request.lua) and puts an adapter's system prompt into a chat (context `system`,
-- `apply`; systemprompt.lua).
--
-- Rules:
--   * the name comes from the route that was chosen (LuaPerRoute.filter_context), so body and pod always agree;
--   * the gate is opened only after the body was rewritten: a request that this script failed on is refused (rbac);
--   * where the revision's adapter is loaded only when somebody asks (context `hold`), the request waits here for the
--     gateway process, at most HOLD_MILLISECONDS or what the route says (context `patience`); whatever is not a clear yes
--     is a refusal, which says when to ask again as far as the process knows;
--   * where pods are chosen by how prompts begin (context `affinity`), that is noted here, as the client wrote it
--     (prefix.lua); a route that asks for neither pays for two look-ups in its context;
--   * where priorities are in use, a full pool refuses here who may wait (priority.lua);
--   * a rehearsal spoils a share of its candidate's requests (context `errors`, percent): they end here, and dynamic
--     metadata says whose errors they are, since no endpoint was asked;
--   * what a revision's system prompt makes it refuse ends here too, and is said to be that revision's in the same way: a
--     candidate that refuses what stable answers must be seen to do so;
--   * where the revision is served by somebody else (context `out`), only some headers go there (external.lua);
--   * a route without an engine refuses in words: a share that nobody may serve, an unknown revision, no route at all.
jit.off() -- as in extract.lua
jit.flush()

local WAITED_IN_VAIN = {
  ['timeout'] = 'This model was not loaded in time.',
  ['too-many'] = 'Too many requests wait for this model to be loaded.',
  ['no-room'] = 'This model cannot be loaded at the moment: its pool is full.',
  ['not-loadable'] = 'This model cannot be loaded at the moment.',
}

-- Why a request may not go on after it has waited for its revision's adapter, and after how many seconds another may be
-- answered; nil: it may.
local function wait_for_adapter(handle, model, context)
  local patience = context:get('patience')
  local answer = handle:httpCall('holding', {
    [':method'] = 'GET',
    [':path'] = '/hold',
    [':authority'] = 'holding',
    ['x-tuneyard-model'] = model,
    ['x-tuneyard-revision'] = context:get('revision'),
  }, nil, patience and tonumber(patience) or HOLD_MILLISECONDS)
  if answer[':status'] == '200' then return nil end
  local why = WAITED_IN_VAIN[answer['x-tuneyard-refusal']]
  if why then return why, answer['x-tuneyard-retry'] end
  return 'This model was about to be loaded; try again.'
end

local function not_ready(handle, message, after)
  return refuse(handle, '503', message, 'server_error', 'model_not_ready', 'model', nil, after)
end

function envoy_on_request(handle)
  local body = handle:body(true)
  local headers = handle:headers()
  local name, gate = headers:get('x-model'), headers:get('x-tuneyard-gate')
  if gate == 'open' then return end -- answered without an engine
  if not name or not gate then return end -- `extract` has failed: the gate stays closed
  local context = handle:filterContext()
  local engine, hold = context:get('engine'), context:get('hold')
  if not engine then
    -- nobody has ever read the adapter, so that only the routes after that know its name
    if hold then
      local waited, after = wait_for_adapter(handle, hold, context)
      return not_ready(handle, waited or 'This model has just been loaded for the first time; try again.', after)
    end
    local refusal = context:get('refusal')
    if refusal == 'unserved' then
      return not_ready(handle, 'This model is not ready: no pod serves it at the moment.')
    elseif refusal == 'revision' then
      return refuse(handle, '404', 'The model has no revision of that name.', 'invalid_request_error',
        'revision_not_found')
    end
    return refuse(handle, '404', 'The model `' .. name .. '` does not exist.', 'invalid_request_error',
      'model_not_found', 'model')
  end
  if PRIORITIES then
    local pool = context:get('pool') -- an external revision has none
    local full = pool and is_full(handle, headers, pool)
    if full then
      return refuse(handle, '429', 'This model has as much to do as it can: try again.', 'rate_limit_error', 'pool_full',
        'model')
    end
    -- those from before are dead if somebody was asked
    body, headers, context = handle:body(true), handle:headers(), handle:filterContext()
  end
  local errors = context:get('errors')
  if errors and math.random(100) <= tonumber(errors) then
    handle:streamInfo():dynamicMetadata():set('tuneyard', 'spoiled', context:get('cluster'))
    return refuse(handle, '502', 'A rehearsal has spoiled this answer.', 'server_error', 'rehearsal')
  end
  if context:get('affinity') then note_prefix(handle, body:getBytes(0, body:length())) end
  local first, last = string.match(gate, '^(%d+)-(%d+)$')
  first, last = tonumber(first), tonumber(last)
  local usage = headers:get('x-tuneyard-usage')
  if usage then headers:remove('x-tuneyard-usage') end
  local text = spliced(body, first, last, engine, usage)
  local system = context:get('system')
  if system then
    local problem
    local path = string.match(headers:get(':path') or '', '^[^?]*')
    text, problem = put_system_prompt(text, path, system, context:get('apply'))
    if problem then
      handle:streamInfo():dynamicMetadata():set('tuneyard', 'refused', context:get('cluster'))
      return refuse(handle, '400', problem, 'invalid_request_error', 'invalid_body', 'messages')
    end
  end
  body:setBytes(text)
  if hold then
    local waited, after = wait_for_adapter(handle, hold, context)
    if waited then return not_ready(handle, waited, after) end
    headers, context = handle:headers(), handle:filterContext() -- those from before the wait are dead
    handle:streamInfo():dynamicMetadata():set('tuneyard', 'held', true)
  end
  local out = context:get('out')
  if out then send_out(handle, headers, out, context:get('path'), context:get('price')) end
  headers:replace('content-length', tostring(#text))
  headers:replace('x-tuneyard-gate', 'open')
end
