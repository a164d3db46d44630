-- The pod's front before an engine that answers whoever asks, for whatever model: demands the key, refuses names that are
-- not served here, and says to the engine what each name means to it.
--
-- Rules:
--   * what is served stands in a file that the agent replaces as a whole: a line for each name, with tabs between the
--     name, what the engine reads as `model`, and what it reads as `lora` ("-": it gets none). Without the file nothing is
--     served yet;
--   * a name that is not in it is never passed on: engines like llama.cpp would answer with the base;
--   * nobody but this script says `lora`: the client's own is replaced;
--   * `model` and `lora` stand once and without escapes, or two readers could read two things;
--   * where the engine names another model in its answers than was asked for, the asked one is put there.
local ASKED = { ['/v1/chat/completions'] = true, ['/v1/completions'] = true, ['/v1/embeddings'] = true }

local function error_text(message, kind, code)
  return '{"error":{"message":"' .. message .. '","type":"' .. kind .. '","param":null,"code":"' .. code .. '"}}'
end

local function refuse(handle, status, message, kind, code, retry)
  local headers = { [':status'] = status, ['content-type'] = 'application/json' }
  if retry then headers['x-tuneyard-retry'] = retry end
  handle:respond(headers, error_text(message, kind, code))
end

-- Name to what the engine reads, nil where nothing is served yet; and the names in order.
local function served()
  local file = io.open(MODELS, 'r')
  if not file then return nil end
  local found, names = {}, {}
  for line in file:lines() do
    local name, model, lora = string.match(line, '^([^\t]+)\t([^\t]+)\t([^\t]+)$')
    if name then
      found[name] = { model = model, lora = lora }
      names[#names + 1] = name
    end
  end
  file:close()
  return found, names
end

local function same(given, wanted)
  if not given or #given ~= #wanted then return false end
  local differs = 0
  for at = 1, #wanted do
    if byte(given, at) ~= byte(wanted, at) then differs = differs + 1 end
  end
  return differs == 0
end

local function list(handle, names)
  local parts = {}
  for at, name in ipairs(names) do
    parts[at] = '{"id":"' .. name .. '","object":"model","created":0,"owned_by":"tuneyard"}'
  end
  local headers = { [':status'] = '200', ['content-type'] = 'application/json' }
  handle:respond(headers, '{"object":"list","data":[' .. table.concat(parts, ',') .. ']}')
end

-- Where `model` and `lora` stand, and where the object ends; nil where that is not clear.
local function places(text)
  local open = past_space(text, 1)
  if byte(text, open) ~= 123 then return nil end
  local found = {}
  local closing = walk_object(text, open, function(key, first, last)
    if find(key, '\\', 1, true) then return true end
    if key ~= 'model' and key ~= 'lora' then return false end
    if found[key] then return true end
    found[key] = { first, last }
    return false
  end)
  if not closing or not found.model then return nil end
  if past_space(text, closing + 1) <= #text then return nil end
  return found, closing
end

local function with(text, place, value) return sub(text, 1, place[1] - 1) .. value .. sub(text, place[2] + 1) end

-- The text as the engine is to read it.
local function rewritten(text, found, closing, entry)
  local lora = entry.lora
  if lora ~= '-' and not found.lora then
    text = sub(text, 1, closing - 1) .. ',"lora":' .. lora .. sub(text, closing)
  end
  local edits = { { found.model, '"' .. entry.model .. '"' } }
  if found.lora then edits[2] = { found.lora, lora == '-' and '[]' or lora } end
  -- from the end, so that the places before stay right
  table.sort(edits, function(a, b) return a[1][1] > b[1][1] end)
  for _, edit in ipairs(edits) do text = with(text, edit[1], edit[2]) end
  return text
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = string.match(headers:get(':path') or '', '^[^?]*')
  if sub(path, 1, 4) ~= '/v1/' then return end
  if not KEY or KEY == '' or not same(headers:get('authorization'), 'Bearer ' .. KEY) then
    return refuse(handle, '401', 'Wrong or missing key.', 'authentication_error', 'invalid_api_key')
  end
  local found, names = served()
  if not found then
    return refuse(handle, '503', 'This pod has not begun to serve.', 'server_error', 'engine_gone', 'engine-gone')
  end
  if path == '/v1/models' then return list(handle, names) end
  if not ASKED[path] then return end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local where, closing = places(text)
  local name = where and string.match(sub(text, where.model[1], where.model[2]), '^"([^"\\]*)"$')
  if not name then
    local message = 'The body must be a JSON object that names its model once.'
    return refuse(handle, '400', message, 'invalid_request_error', 'invalid_body')
  end
  local entry = found[name]
  if not entry then
    local message = 'This pod cannot answer for the model at the moment.'
    return refuse(handle, '503', message, 'server_error', 'adapter_missing', 'adapter-missing')
  end
  if entry.model == name and entry.lora == '-' and not where.lora then return end
  text = rewritten(text, where, closing, entry)
  body:setBytes(text)
  headers = handle:headers()
  headers:replace('content-length', tostring(#text))
  local said = entry.model
  if said ~= name then
    handle:streamInfo():dynamicMetadata():set('tuneyard.front', 'said', said)
    handle:streamInfo():dynamicMetadata():set('tuneyard.front', 'asked', name)
  end
end

function envoy_on_response(handle)
  local meta = handle:streamInfo():dynamicMetadata():get('tuneyard.front')
  if not meta or not meta.asked then return end
  local headers = handle:headers()
  local pattern = '"model"%s*:%s*"[^"\\]*"'
  local asked = '"model":"' .. string.gsub(meta.asked, '%%', '%%%%') .. '"'
  if not find(headers:get('content-type') or '', 'text/event-stream', 1, true) then
    local body = handle:body(true)
    if body:length() == 0 then return end
    local text = string.gsub(body:getBytes(0, body:length()), pattern, asked)
    body:setBytes(text)
    handle:headers():replace('content-length', tostring(#text))
    return
  end
  -- an event may come in two pieces: what is not whole waits for the rest
  local kept = ''
  for chunk in handle:bodyChunks() do
    local text = kept .. chunk:getBytes(0, chunk:length())
    local whole = string.match(text, '^.*\n') or ''
    kept = sub(text, #whole + 1)
    chunk:setBytes((string.gsub(whole, pattern, asked)))
  end
end
