-- The rules of kstatus: what the operator has not seen yet is in progress, and Stalled is worse than Reconciling.
local status = obj.status or {}
if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not seen generation " .. tostring(obj.metadata.generation) .. " yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local function holds(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end

if holds("Stalled") then
  return {status = "Degraded", message = conditions.Stalled.message}
end
if holds("Reconciling") then
  return {status = "Progressing", message = conditions.Reconciling.message}
end
if holds("Ready") then
  return {status = "Healthy", message = conditions.Ready.message}
end
return {status = "Progressing", message = "the operator has not said yet whether it is ready"}
