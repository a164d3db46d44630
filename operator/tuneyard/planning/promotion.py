"""When a revision, and with it its adapter, took over: `stableSince` of a deployment, `promotedAt` of an adapter.

Rules:
- a revision is stable since the first moment it gets all traffic after it became the stable one; a later canary beside
  it, a lost pod or a stolen model name change nothing of that;
- an adapter is promoted once: the first deployment that is seen to give it all traffic counts, of several the one that
  did so first. Later promotions, rollbacks and the end of that deployment change nothing;
- either status restores the other when it is lost: a deployment takes `stableSince` from the adapter that names it as
  its promoter, an adapter takes `promotedAt` from the deployments whose stable revision names it. So an adapter that a
  forced sync has created again may have been promoted before it was created. Only when both are lost at once does the
  record begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource


class Promotion(NamedTuple):
    """When, as RFC 3339 in UTC, and by which `ModelDeployment/revision`."""

    at: str
    by: str


def promoter(deployment: ModelDeploymentResource, revision: str) -> str:
    """The text of status.promotedBy."""
    return f"{deployment.metadata.name}/{revision}"


def stable_since(
    deployment: ModelDeploymentResource, stable: str, adapters: Iterable[LoRAAdapterResource], *, whole: bool, now: str
) -> str | None:
    """Since when `stable` has been the stable revision; `whole`: it gets all traffic now."""
    before = deployment.status.rollout
    if before is not None and before.stable == stable and before.stable_since:
        return before.stable_since
    if not whole:
        return None
    # without a word of who was stable before, nothing says that it has only now become so
    lost = before is None or before.stable in (None, stable)
    return (_recorded(deployment, stable, adapters) if lost else None) or now


def _recorded(
    deployment: ModelDeploymentResource, revision: str, adapters: Iterable[LoRAAdapterResource]
) -> str | None:
    """What the revision's adapter says of its promotion by just this revision."""
    name = next((r.adapter for r in deployment.spec.revisions if r.name == revision), None)
    key = (deployment.metadata.namespace, name)
    adapter = next((a for a in adapters if a.metadata.key == key), None)
    if adapter is None or adapter.status.promoted_by != promoter(deployment, revision):
        return None
    return adapter.status.promoted_at


def promotion(adapter: LoRAAdapterResource, deployments: Iterable[ModelDeploymentResource]) -> Promotion | None:
    """The adapter's first promotion: the recorded one, else the earliest that these deployments tell of."""
    status = adapter.status
    if status.promoted_at and status.promoted_by:
        return Promotion(status.promoted_at, status.promoted_by)
    return min((p for d in deployments if (p := _promoted_by(adapter, d))), default=None)


def _promoted_by(adapter: LoRAAdapterResource, deployment: ModelDeploymentResource) -> Promotion | None:
    rollout = deployment.status.rollout
    if rollout is None or not rollout.stable_since or deployment.metadata.namespace != adapter.metadata.namespace:
        return None
    name = adapter.metadata.name
    found = next((r for r in deployment.spec.revisions if r.name == rollout.stable and r.adapter == name), None)
    return None if found is None else Promotion(rollout.stable_since, promoter(deployment, found.name))
