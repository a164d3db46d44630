-- The pod's front: turns an engine's "not me, not now" into a 503 that gateways try on another pod.
--
-- Rules:
--   * only whole error answers are looked at (404, 500 and 503); anything that streams passes untouched;
--   * an adapter that the engine does not know (any more) is a 404 "does not exist": another pod has it;
--   * an engine that is going says 500 "cannot schedule new futures after shutdown", one whose core died EngineDead:
--     both before the first byte of an answer, so that trying again duplicates nothing;
--   * a 503 of the engine's own says that it has not begun (its queue is full, vLLM's --max-num-queued-reqs): it stays as it
--     is, for the client whom no other pod takes either. One of the front's own has its header already.
local REASONS = {
  ['404'] = { { 'does not exist', 'adapter-missing' } },
  ['500'] = {
    { 'cannot schedule new futures after shutdown', 'engine-stopping' },
    { 'EngineDeadError', 'engine-dead' },
    { 'EngineCore encountered an issue', 'engine-dead' },
  },
}

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(':status')
  if status == '503' then
    if headers:get('x-tuneyard-retry') or headers:get('x-tuneyard-draining') then return end
    headers:replace('x-tuneyard-retry', 'engine-busy')
    if not headers:get('retry-after') then headers:replace('retry-after', '5') end
    return
  end
  local reasons = REASONS[status]
  if not reasons then return end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  for _, reason in ipairs(reasons) do
    if string.find(text, reason[1], 1, true) then
      local answer = '{"error":{"message":"This pod cannot answer for the model at the moment.",'
        .. '"type":"server_error","param":null,"code":"' .. string.gsub(reason[2], '-', '_') .. '"}}'
      body:setBytes(answer)
      -- the wrapper from before body() is dead after the yield
      headers = handle:headers()
      headers:replace(':status', '503')
      headers:replace('content-type', 'application/json')
      headers:replace('content-length', tostring(#answer))
      headers:replace('x-tuneyard-retry', reason[2])
      return
    end
  end
end
