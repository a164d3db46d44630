"""What a rollout is about to send where, so that pods are there before it: for pools, and for the next step.

Rules (rollout.md 5):
- only what moves between pools counts: a candidate on stable's own pods needs no others;
- a candidate's pool has replicas for the next step's share of all that its deployment is asked, in good time: from the
  moment that the step before it begins;
- stable's pool gives none away while a candidate climbs or bakes: it is the way back, and that takes seconds only with
  its pods there. Once the candidate has what the spec gives it, for good, both are scaled by what they are asked;
- with the target inFlightRequests the share is counted in requests; without it, the candidate is believed to need as
  many replicas for a share as stable has for its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.autoscaling import Metric, for_load, most_replicas, targets_of
from tuneyard.planning.demand import DemandView
from tuneyard.planning.growth import PoolKey
from tuneyard.planning.pools import pool_of, serving_of
from tuneyard.planning.resolvedserving import Serving

_TINY = 1e-9


@dataclass(frozen=True)
class Move:
    """A candidate that is to get more, on other pods than stable's."""

    deployment: ModelDeploymentResource
    candidate: Revision
    stable: Revision
    weight: int
    """Percent that the candidate has."""
    next_weight: int
    """What it gets with the next step."""
    stable_weight: int

    @property
    def climbs(self) -> bool:
        """Whether there is a next step."""
        return self.next_weight > self.weight


@dataclass(frozen=True)
class Expected:
    """What rollouts ask of a pool beyond its load."""

    replicas: int = 0
    """Fewer would not do for the next step."""
    reason: str = ""
    way_back: bool = False
    """It serves a stable revision that a rollout may have to go back to."""


def moves(deployments: Iterable[ModelDeploymentResource]) -> list[Move]:
    """The rollouts under way between pools."""
    found = (_move(d) for d in deployments if d.spec.progressive and not d.metadata.deletion_timestamp)
    return [m for m in found if m is not None]


def _move(deployment: ModelDeploymentResource) -> Move | None:
    rollout = deployment.status.rollout or RolloutStatus()
    revisions = {r.name: r for r in deployment.spec.revisions}
    candidate, stable = revisions.get(rollout.candidate or ""), revisions.get(rollout.stable or "")
    if candidate is None or stable is None or rollout.phase in ("RolledBack", "Idle", "Completed"):
        return None
    if pool_of(deployment, candidate) == pool_of(deployment, stable):
        return None
    weights = {t.revision: t.weight for t in deployment.status.traffic}
    weight = weights.get(candidate.name, 0)
    return Move(
        deployment,
        candidate,
        stable,
        weight=weight,
        next_weight=max(weight, _next_weight(deployment, rollout, candidate.name)),
        stable_weight=weights.get(stable.name, 0),
    )


def _next_weight(deployment: ModelDeploymentResource, rollout: RolloutStatus, candidate: str) -> int:
    target = deployment.spec.weight_of(candidate)
    steps = (deployment.spec.rollout.steps if deployment.spec.rollout else None) or []
    if not (rollout.allowed or {}).get(candidate):
        return min(target, steps[0].weight if steps else 100)
    step = -1 if rollout.step is None else rollout.step
    return min(target, steps[step + 1].weight if step + 1 < len(steps) else 100)


def replicas_for(
    serving: Serving, move: Move, weight: int, demand: DemandView, bases: Mapping[str, BaseModelResource]
) -> int:
    """Replicas that the candidate needs for a weight; 0 where nothing scales its pool."""
    settings = serving.scaled
    if settings is None:
        return 0
    deployment, most = move.deployment, most_replicas(settings)
    target = targets_of(settings.targets).get(Metric.IN_FLIGHT)
    if target is not None:
        return min(most, for_load(target, asked_of(deployment, demand) * weight / 100))
    base = bases.get(move.stable.base_model)
    if base is None or not move.stable_weight:
        return 1
    stable = serving_of(base, deployment, move.stable).replicas
    return min(most, math.ceil(stable * weight / move.stable_weight - _TINY))


def asked_of(deployment: ModelDeploymentResource, demand: DemandView) -> float:
    """Requests to all of its revisions that are under way, or held."""
    key = deployment.metadata.key
    return demand.waiting(*key) + sum(demand.in_flight(*key, r.name) for r in deployment.spec.revisions)


def expected(
    pool: PoolKey,
    serving: Serving,
    under_way: Iterable[Move],
    demand: DemandView,
    bases: Mapping[str, BaseModelResource],
) -> Expected:
    """What the rollouts under way ask of a pool."""
    needed, words, way_back = 0, "", False
    for move in under_way:
        deployment = move.deployment
        if deployment.metadata.namespace != pool[0]:
            continue
        if pool_of(deployment, move.stable) == pool[1]:
            way_back = way_back or move.climbs or (deployment.status.rollout or RolloutStatus()).phase == "Baking"
        if pool_of(deployment, move.candidate) == pool[1] and move.climbs:
            replicas = replicas_for(serving, move, move.next_weight, demand, bases)
            if replicas > needed:
                needed = replicas
                words = f"{deployment.metadata.name}: {move.candidate.name} is about to get {move.next_weight} %"
    return Expected(needed, words, way_back)
