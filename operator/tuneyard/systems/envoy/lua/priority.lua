-- Whether a request has to be refused because its pool is full and others go before it. Stands before `rewrite` where
-- priorities are in use.
--
-- Rules:
--   * the gateway process knows which pools are full for whom (pressure.py); what it has said counts for FRESH
--     milliseconds, for all requests of this worker. So one request in so long asks, over a Unix socket, and no other waits;
--   * a process that does not answer says nothing: nobody is refused because of that;
--   * x-tuneyard-priority comes from `extract`, which has it from the table of keys; without one a request is Normal.
local FRESH = 250    -- milliseconds
local PATIENCE = 100 -- for the answer
local full, fresh_until = '', 0

-- Yields: wrappers from before are dead afterwards.
local function is_full(handle, headers, pool)
  local priority = headers:get('x-tuneyard-priority')
  if priority then headers:remove('x-tuneyard-priority') else priority = 'Normal' end
  local now = handle:timestamp()
  if now >= fresh_until then
    fresh_until = now + FRESH
    local answer, text = handle:httpCall('holding', {
      [':method'] = 'GET',
      [':path'] = '/full',
      [':authority'] = 'holding',
    }, nil, PATIENCE)
    full = answer[':status'] == '200' and text or ''
  end
  return string.find(full, '\n' .. pool .. ' ' .. priority .. '\n', 1, true) ~= nil
end

