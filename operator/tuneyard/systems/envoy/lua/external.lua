-- What `rewrite` does to the headers of a request that leaves for somebody else's API (context `out`, `path`, `price`).
--
-- Rules:
--   * only what stands in SENT goes out: the list is of what APIs need, so that nothing has to be thought of that must not
--     go (who asks, from where, by which proxies, what clients have meant for this gateway);
--   * no encoding is asked for: tokens are read from the answer as it passes;
--   * access logs read headers when the request has ended. What they need is noted in dynamic metadata before it goes:
--     `out` is tenant, model and path, `run` what a gate says of itself, `deadline` the client's. `out` also tells `answer`
--     and the judge that the answer is somebody else's;
--   * what its tokens cost (`price`) is noted there, too: a later price is not that of this request;
--   * a query is not passed on: an OpenAI client sends none, and keys stand in some.
local SENT = {
  [':method'] = true, [':path'] = true, [':authority'] = true, [':scheme'] = true,
  ['accept'] = true, ['content-length'] = true, ['content-type'] = true, ['transfer-encoding'] = true,
  ['user-agent'] = true, ['idempotency-key'] = true, ['openai-beta'] = true,
  ['x-request-id'] = true,     -- by which both sides may speak of a request; the answer gets it from here
  ['x-tuneyard-gate'] = true,  -- until the gate; taken away with the route's other headers
}

local function send_out(handle, headers, host, base, price)
  local path = string.match(headers:get(':path') or '', '^[^?]*')
  local metadata, run = handle:streamInfo():dynamicMetadata(), headers:get('tuneyard-gate-run')
  metadata:set('tuneyard', 'out', (headers:get('x-tenant') or '-') .. ' ' .. headers:get('x-model') .. ' ' .. path)
  if run then metadata:set('tuneyard', 'run', run) end
  local deadline = headers:get('grpc-timeout')
  if deadline then metadata:set('tuneyard', 'deadline', deadline) end
  if price then metadata:set('tuneyard', 'price', price) end
  local kept_back = {}
  for name in pairs(headers) do
    if not SENT[name] then kept_back[#kept_back + 1] = name end
  end
  for _, name in ipairs(kept_back) do headers:remove(name) end
  headers:replace(':authority', host)
  headers:replace(':path', base .. string.sub(path, 4)) -- what stands in the place of /v1
end
