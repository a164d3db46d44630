-- A command in an annotation that stands in the cluster only. Its id is this state of the object's, so that clicking twice
-- is one command; it names the candidate that was on the screen and its contents, so that it cannot hit the next one.
local rollout = (obj.status or {}).rollout or {}
local candidate = rollout.candidate
local named = candidate and ',"revision":"' .. candidate .. '"' or ""
local contents = candidate and (rollout.contents or {})[candidate]
named = named .. (contents and ',"contentHash":"' .. contents .. '"' or "")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["tuneyard.dev/command"] = '{"id":"argocd-' .. obj.metadata.resourceVersion
  .. '","action":"resume"' .. named .. '}'
return obj
