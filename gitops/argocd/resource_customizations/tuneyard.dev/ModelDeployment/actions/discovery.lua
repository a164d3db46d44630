-- What may be done now. Argo CD only greys out what is disabled and still runs it; the operator refuses it by itself.
local rollout = (obj.status or {}).rollout or {}
local spec = obj.spec.rollout or {}
local progressive = spec.mode == "Progressive"
local under_way = rollout.candidate ~= nil and rollout.phase ~= "RolledBack"
local in_git = spec.paused == true

local listed = {}
for _, revision in ipairs(obj.spec.revisions or {}) do
  listed[revision.name] = true
end
local rejected = false
for _, verdict in ipairs(rollout.verdicts or {}) do
  rejected = rejected or listed[verdict.revision] == true
end

local actions = {}
actions["abort"] = {
  ["disabled"] = not under_way,
  ["displayName"] = "Abort: reject the candidate",
}
actions["promote"] = {
  ["disabled"] = not (under_way and progressive) or in_git,
  ["displayName"] = "Promote: give the candidate its spec weight",
}
actions["pause"] = {
  ["disabled"] = not (under_way and progressive) or in_git or rollout.paused == true,
  ["displayName"] = "Pause: take no further step",
}
actions["resume"] = {
  ["disabled"] = not (progressive and rollout.paused == true) or in_git,
  ["displayName"] = "Resume",
}
actions["retry"] = {
  ["disabled"] = not rejected,
  ["displayName"] = "Retry the rejected revision",
}
return actions
