"""Which revisions of a ModelDeployment are loaded: all that it lists, or with `rollout.keepWarm` what may be needed.

Rules:
- what the spec gives weight, the stable revision, the candidate and the mirrored revision are loaded whatever happens;
- of the revisions before stable, the last `keepWarm` that were stable stay loaded: each is a way back in milliseconds.
  Older ones are loaded again when the spec gives them weight, which then takes as long as it takes;
- a revision that was added and never had weight is on its way up, and is loaded;
- half knowledge unloads nothing: while the status does not say who is stable, everything listed is loaded.
"""

from __future__ import annotations

from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutStatus


def warm(deployment: ModelDeploymentResource) -> frozenset[str]:
    """The revisions that are to be loaded."""
    spec, rollout = deployment.spec, deployment.status.rollout or RolloutStatus()
    listed = [r.name for r in spec.revisions]
    keep = spec.rollout.keep_warm if spec.rollout else None
    if keep is None or not spec.progressive or rollout.stable not in listed:
        return frozenset(listed)
    was_stable: list[str] = []
    for line in reversed(rollout.history or ()):
        if line.outcome == "Stable" and line.revision in listed and line.revision not in was_stable:
            was_stable.append(line.revision)
    former = [name for name in was_stable if name != rollout.stable]
    needed = {rollout.candidate, spec.mirror.revision if spec.mirror else None}
    cold = {name for name in former[keep:] if name not in needed and not spec.weight_of(name)}
    return frozenset(listed) - cold
