"""When a revision, and with it what it serves, took over: `stableSince` of a deployment, `promotedAt` of an adapter.

Rules:
- a revision is stable since the first moment it gets all traffic after it became the stable one; a later canary beside
  it, a lost pod or a stolen model name change nothing of that;
- what is said of adapters holds for a base too, as far as revisions without an adapter serve the base itself;
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

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource

Served = LoRAAdapterResource | BaseModelResource
"""What a revision serves."""


class Promotion(NamedTuple):
    """When, as RFC 3339 in UTC, and by which `ModelDeployment/revision`."""

    at: str
    by: str


def promoter(deployment: ModelDeploymentResource, revision: str) -> str:
    """The text of status.promotedBy."""
    return f"{deployment.metadata.name}/{revision}"


def stable_since(
    deployment: ModelDeploymentResource, stable: str, served: Iterable[Served], *, whole: bool, now: str
) -> str | None:
    """Since when `stable` has been the stable revision; `whole`: it gets all traffic now.

    `served`: adapters and bases, those that the deployment names at least.
    """
    before = deployment.status.rollout
    if before is not None and before.stable == stable and before.stable_since:
        return before.stable_since
    if not whole:
        return None
    # without a word of who was stable before, nothing says that it has only now become so
    lost = before is None or before.stable in (None, stable)
    return (_recorded(deployment, stable, served) if lost else None) or now


def _recorded(deployment: ModelDeploymentResource, stable: str, served: Iterable[Served]) -> str | None:
    """What the object that the revision serves says of its promotion by just this revision."""
    by = promoter(deployment, stable)
    return next(
        (s.status.promoted_at for s in served if s.status.promoted_by == by and _serves(deployment, stable, s)), None
    )


def promotion(served: Served, deployments: Iterable[ModelDeploymentResource]) -> Promotion | None:
    """The object's first promotion: the recorded one, else the earliest that these deployments tell of."""
    status = served.status
    if status.promoted_at and status.promoted_by:
        return Promotion(status.promoted_at, status.promoted_by)
    return min((p for d in deployments if (p := _promoted_by(served, d))), default=None)


def _promoted_by(served: Served, deployment: ModelDeploymentResource) -> Promotion | None:
    rollout = deployment.status.rollout
    if rollout is None or not rollout.stable or not rollout.stable_since:
        return None
    if not _serves(deployment, rollout.stable, served):
        return None
    return Promotion(rollout.stable_since, promoter(deployment, rollout.stable))


def _serves(deployment: ModelDeploymentResource, name: str, served: Served) -> bool:
    """Whether the revision of that name serves just this object: an adapter, or without one the base itself."""
    revision = next((r for r in deployment.spec.revisions if r.name == name), None)
    if revision is None or served.metadata.namespace != deployment.metadata.namespace:
        return False
    if isinstance(served, LoRAAdapterResource):
        return revision.adapter == served.metadata.name
    return revision.adapter is None and revision.base_model == served.metadata.name
