-- Whether a tenant may call a model. `allowed` is what a table of keys says of it: the models by name between commas, a
-- space, and the patterns, in which `*` stands for any characters. planning/tenants.py says the same in Python.
local function fits(pattern, name)
  local find, sub = string.find, string.sub
  local star = find(pattern, '*', 1, true)
  if not star or sub(pattern, 1, star - 1) ~= sub(name, 1, star - 1) then return false end
  -- leftmost is good enough for every piece but the last: no time is lost with going back
  local at = star
  while true do
    local following = find(pattern, '*', star + 1, true)
    if not following then
      local rest = sub(pattern, star + 1)
      return #name - #rest + 1 >= at and sub(name, #name - #rest + 1) == rest
    end
    local _, last = find(name, sub(pattern, star + 1, following - 1), at, true)
    if not last then return false end
    at, star = last + 1, following
  end
end

local function permits(allowed, name)
  local gap = string.find(allowed, ' ', 1, true)
  local found = string.find(allowed, ',' .. name .. ',', 1, true)
  if found and found < gap then return true end
  for pattern in string.gmatch(string.sub(allowed, gap + 1), '[^,]+') do
    if fits(pattern, name) then return true end
  end
  return false
end

