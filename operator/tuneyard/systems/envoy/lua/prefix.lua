-- Leaves what a prompt begins with where the cluster looks for its key (balancing.py); called by `rewrite` on
-- routes that ask for it. The router hashes when all filters have run, and filter state is in no log and no header.
-- It is the client's own text: with a system prompt of the gateway's before it all prompts would begin alike.
local PREFIX = 1024 -- bytes of messages or prompt, as they stand in the body

local function note_prefix(handle, text)
  local from, to
  walk_object(text, find(text, '{', 1, true), function(key, first, last)
    if key == 'messages' or key == 'prompt' then
      from, to = first, last
      return true
    end
  end)
  if not from then return end -- embeddings, for example: any pod
  if to - from >= PREFIX then to = from + PREFIX - 1 end
  handle:streamInfo():filterState():set('tuneyard.prefix', 'envoy.hashable_string', sub(text, from, to))
end
