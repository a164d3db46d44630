-- Shared by `extract` and `rewrite`: engines count the tokens of a stream only where stream_options asks for it, so it is
-- asked for in every stream, whatever the client wants (answer.lua takes out again what he did not want).
--
-- Rules:
--   * by the body and not by a flag of the engine: vLLM's --enable-force-include-usage puts usage into every chunk, each
--     of which would have to be changed on its way back, and means another thing in other releases;
--   * what an engine might take for a stream, or for a wish, and this script not, is refused: it would go uncounted. So
--     `stream` and `include_usage` are true, false or null, and no text, number or duplicate key;
--   * a wish that is not `include_usage: true` is replaced as a whole: continuous_usage_stats has no effect without it.
local USAGE = '{"include_usage":true}'

-- What the JSON value that begins at `at` is, of those that a switch may have; nil for everything else.
local function switch(text, at)
  local word = string.match(text, '^(%l+)%s*[,}]', at)
  if word == 'true' then return true end
  if word == 'false' or word == 'null' then return false end
  return nil
end

-- Whether the stream_options that begin at `at` ask for usage, and their last byte; nil where they are no plain object.
local function usage_wanted(text, at)
  if switch(text, at) == false and string.byte(text, at) == 110 then return false, at + 3 end
  local from = string.match(text, '^{%s*()', at)
  if not from then return nil end
  if string.byte(text, from) == 125 then return false, from end
  local wanted, said = false, false
  while true do
    local key, value = string.match(text, '^"([%w_]+)"%s*:%s*()', from)
    if not key then return nil end
    if key == 'include_usage' then
      local is = switch(text, value)
      if is == nil or said then return nil end
      wanted, said = is, true
    end
    local after = string.match(text, '^[%w.+-]+%s*()', value) or string.match(text, '^"[^"\\]*"%s*()', value)
    local mark = after and string.byte(text, after)
    if mark == 125 then return wanted, after end
    if mark ~= 44 then return nil end
    from = string.match(text, '^%s*()', after + 1)
  end
end

-- For a body whose top-level `stream` and `stream_options` begin at these bytes (nil: not there): whether it streams,
-- and which bytes (first-last) are to be replaced so that usage is told, nil for none. Or nil and what is wrong.
local function usage_place(text, stream, options)
  local streams = false
  if stream then streams = switch(text, stream) end
  if streams == nil then return nil, 'stream must be true or false.' end
  if not streams then return false, nil end
  if not options then return true, (stream + 4) .. '-' .. (stream + 3) end
  local wanted, last = usage_wanted(text, options)
  if wanted == nil then return nil, 'stream_options must be an object, its include_usage true or false.' end
  return true, not wanted and options .. '-' .. last or nil
end

-- The body with the engine's name in the place of first to last, and with usage asked for at `place`, where there is one.
local function spliced(body, first, last, engine, place)
  local length = body:length()
  local from, to = string.match(place or '', '^(%d+)-(%d+)$')
  if not from then return body:getBytes(0, first - 1) .. engine .. body:getBytes(last, length - last) end
  from, to = tonumber(from), tonumber(to)
  local told = to < from and ',"stream_options":' .. USAGE or USAGE
  if from > last then
    return body:getBytes(0, first - 1) .. engine .. body:getBytes(last, from - 1 - last) .. told
      .. body:getBytes(to, length - to)
  end
  return body:getBytes(0, from - 1) .. told .. body:getBytes(to, first - 1 - to) .. engine
    .. body:getBytes(last, length - last)
end
