-- A command in an annotation that stands in the cluster only. Its id is this state of the object's, so that clicking twice
-- is one command. What is tried again is the revision that was rejected last (verdicts stand in that order); those that
-- the spec gives weight go before the others.
local weights, listed = {}, {}
for _, revision in ipairs(obj.spec.revisions or {}) do
  listed[revision.name] = true
end
for _, target in ipairs(obj.spec.traffic or {}) do
  weights[target.revision] = target.weight
end
local wanted, other
for _, verdict in ipairs(((obj.status or {}).rollout or {}).verdicts or {}) do
  if listed[verdict.revision] and (weights[verdict.revision] or 0) > 0 then
    wanted = wanted or verdict.revision
  elseif listed[verdict.revision] then
    other = other or verdict.revision
  end
end
local revision = wanted or other
local named = revision and ',"revision":"' .. revision .. '"' or ""
local contents = revision and (((obj.status or {}).rollout or {}).contents or {})[revision]
named = named .. (contents and ',"contentHash":"' .. contents .. '"' or "")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["tuneyard.dev/command"] = '{"id":"argocd-' .. obj.metadata.resourceVersion
  .. '","action":"retry"' .. named .. '}'
return obj
