-- Puts an adapter's system message first in a chat; called by `rewrite` on routes whose adapter has one. Nothing is
-- encoded anew: every other byte of the body stays as it was sent.
--
-- Rules:
--   * `message` is a JSON object that is ready to stand in the array; it comes from the route's context;
--   * IfAbsent: a chat with a message of role system or developer stays untouched;
--   * Always: those messages are taken out, each with one comma. Roles that chat templates may take for system ones (any
--     but user, assistant, tool, function; "System", "system ") are refused, and so is what would show the engine another
--     prompt than these messages: a template of the client's own, or one that is cut from its beginning;
--   * AlwaysInChats is for gates: a benchmark measures with completions, whose text no user gets;
--   * what a JSON parser could read otherwise is refused in both: `messages` or `role` twice, escapes in keys or in
--     roles, brackets that do not match. So what is decided here is what the engine reads, or it reads nothing;
--   * planning/systemprompt.py does the same for copies of requests, and is tried on the same bodies.
local CLIENTS = { user = true, assistant = true, tool = true, ['function'] = true }
local OPERATORS = { system = true, developer = true }
local NOT_VALID = 'messages is not valid: it must be an array of objects, each key once and without escapes.'
local ENFORCED = 'This model answers under a system prompt of its own'

-- Where `messages` stands; or nil and what is wrong.
local function find_messages(text, always)
  local from, to, problem
  local close = walk_object(text, find(text, '{', 1, true), function(key, first, last)
    if find(key, '\\', 1, true) then
      problem = 'Keys of the body may not hold escapes.'
    elseif key == 'messages' then
      if from then problem = 'The body has the key messages twice.' end
      from, to = first, last
    elseif always and sub(text, first, last) ~= 'null' then
      if key == 'chat_template' or key == 'truncate_prompt_tokens' then
        problem = ENFORCED .. ': ' .. key .. ' cannot be used with it.'
      elseif key == 'chat_template_kwargs' then
        local given = sub(text, first, last)
        if find(given, 'chat_template', 1, true) or find(given, '\\', 1, true) then
          problem = ENFORCED .. ': chat_template_kwargs may hold neither a template nor escapes.'
        end
      end
    end
    return problem ~= nil
  end)
  if problem then return nil, problem end
  if not close or past_space(text, close + 1) <= #text then return nil, 'The body is not valid JSON.' end
  if not from or byte(text, from) ~= 91 then return nil, 'messages must be an array.' end
  return from, to
end

-- The role of the message that begins at `at` (nil: it has none) and where it ends; or false.
local function read_message(text, at)
  if byte(text, at) ~= 123 then return false end
  local role
  local close = walk_object(text, at, function(key, first, last)
    if find(key, '\\', 1, true) then return true end
    if key ~= 'role' then return false end
    if role or byte(text, first) ~= 34 then return true end
    role = sub(text, first + 1, last - 1)
    return find(role, '\\', 1, true) ~= nil
  end)
  if not close then return false end
  return role, close
end

-- The pieces of the array's contents that stay, as `{first, last}`, neighbours as one; or nil and what is wrong. With
-- them, whether there are messages at all, and whether some are the client's own instructions.
local function read_messages(text, from, to, always)
  local kept, instructed, at = {}, false, past_space(text, from + 1)
  if at == to then return { { from + 1, to - 1 } }, false, false end
  local begin, joined = from + 1, false
  while true do
    local role, close = read_message(text, at)
    if role == false then return nil, NOT_VALID end
    local stop = past_space(text, close + 1)
    if OPERATORS[role] then
      instructed, joined = true, false
    elseif always and not CLIENTS[role] then
      return nil, ENFORCED .. ': the role of a message must be user, assistant, tool or function.'
    elseif joined then
      kept[#kept][2] = stop - 1
    else
      kept[#kept + 1], joined = { begin, stop - 1 }, true
    end
    if stop == to then return kept, #kept > 0, instructed end
    if byte(text, stop) ~= 44 then return nil, NOT_VALID end
    begin, at = stop + 1, past_space(text, stop + 1)
  end
end

-- The text with the message; or nil and what is wrong.
local function put_system_prompt(text, path, message, apply)
  local always = apply ~= 'IfAbsent'
  if path == '/v1/completions' and apply == 'Always' then
    return nil, ENFORCED .. ', which only chats have: use /v1/chat/completions.'
  end
  if path ~= '/v1/chat/completions' then return text end
  local from, to = find_messages(text, always)
  if not from then return nil, to end
  local kept, some, instructed = read_messages(text, from, to, always)
  if not kept then return nil, some end
  if instructed and not always then return text end
  local pieces = { sub(text, 1, from), message }
  for number, piece in ipairs(kept) do
    if some then pieces[#pieces + 1] = ',' end
    pieces[#pieces + 1] = sub(text, piece[1], piece[2])
  end
  pieces[#pieces + 1] = sub(text, to)
  return table.concat(pieces)
end
