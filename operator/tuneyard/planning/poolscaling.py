"""How many pods a pool gets that is scaled by its load (`serving.autoscaling`), and what is remembered of it.

Rules:
- autoscaling.py decides; here stands what it is told of a pool: its load (poolload.py), which of its pods serve, the
  places that its adapters need, and what rollouts are about to send (rolloutshares.py);
- the number is applied in the pass that decides on it, and stands in the base's status from then on: there the other
  objects of the base, and the next operator, find it. Where the status is lost, the Deployment has it still;
- a pool that sleeps is not scaled; it wakes with the fewest that it may have;
- what is being replaced, or cannot be applied, gives no pods away;
- of a pool that somebody else scales, the Deployment says how many there are. Until that somebody has set the number
  for the first time the operator goes on applying the one that is there: a field that its only owner leaves out of an
  apply falls back to its default, 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tuneyard.api.autoscaling import Autoscaling, ScalingStatus
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.planning.autoscaling import LOOK, PoolNow, bounded, decide, least_replicas
from tuneyard.planning.observations import BaseModelObservation, ChildObservation, serves
from tuneyard.planning.ownership import owns
from tuneyard.planning.podgroups import LEADER_WORKER_SET
from tuneyard.planning.poolload import measured, uses_of
from tuneyard.planning.poolreplicas import pool_status
from tuneyard.planning.pools import Pool, belongs
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutshares import expected, moves

_WAKES = "it wakes with the fewest that it may have"


@dataclass(frozen=True)
class PoolScale:
    """What is decided of a pool's pods."""

    pool: Pool
    """With as many replicas as it is to have."""
    wanted: int | None = None
    """None: nobody scales it by its load."""
    reason: str | None = None
    state: ScalingStatus | None = None
    before: int | None = None
    """How many were wanted until now, where that is known."""
    wait: float | None = None
    """After how many seconds time alone may change it."""


def next_pool_scale(
    obs: BaseModelObservation,
    base: BaseModelResource,
    pool: Pool,
    deployment: ChildObservation | None,
    *,
    frozen: bool,
) -> PoolScale:
    """How many pods the pool has from now on; `deployment`: its Deployment, `frozen`: it is not applied now."""
    if pool.serving.scales_outside:
        replicas = 1 if deployment is None else deployment.replicas
        if keeps_replicas(deployment):
            # nobody has taken it over yet, and autoscalers leave alone what has none
            replicas = max(1, replicas)
        return PoolScale(_with(pool, replicas))
    settings, told = pool.serving.scaled, pool_status(base, pool.name)
    if settings is None:
        return PoolScale(pool)
    before = told.wanted_replicas if told else None
    if pool.asleep_since:
        least = least_replicas(settings)
        return PoolScale(_with(pool, least), least, _WAKES, ScalingStatus(), before)
    current = _current(settings, pool, before, deployment)
    known, reason = (told.scaling, told.reason) if told else (None, None)
    if frozen:
        return PoolScale(_with(pool, current), current, reason, known, before, LOOK)
    key, pods = (pool.namespace, pool.name), [p for p in obs.pods if p.pool == pool.name]
    load = measured(settings, key, uses_of(key, obs.deployments), obs.demand, pods)
    found = decide(settings, load, _pool_now(obs, base, pool, current, deployment), known, obs.now)
    first = f"begins with {found.wanted}"
    words = clipped(found.reason) if found.reason else reason or first
    return PoolScale(_with(pool, found.wanted), found.wanted, words, found.state, before, found.look)


def keeps_replicas(deployment: ChildObservation | None) -> bool:
    """Whether nobody but the operator has set the replicas of a Deployment that somebody else is to scale."""
    return deployment is not None and owns(deployment.owned, {"metadata": {}, "spec": {"replicas": 1}})


def _with(pool: Pool, replicas: int) -> Pool:
    return replace(pool, serving=replace(pool.serving, replicas=replicas))


def _current(settings: Autoscaling, pool: Pool, before: int | None, deployment: ChildObservation | None) -> int:
    """What it should have until now: as the status says, else as the Deployment does, else the fewest."""
    if before is not None:
        return max(1, before)
    if deployment is not None and not deployment.deleted and deployment.replicas:
        # groups of pods are replaced with one more beside them (grouprolling.py)
        surge = deployment.kind == LEADER_WORKER_SET[1] and deployment.old_replicas > 0
        return bounded(settings, deployment.replicas - surge)
    return bounded(settings, pool.serving.replicas)


def _pool_now(
    obs: BaseModelObservation, base: BaseModelResource, pool: Pool, current: int, deployment: ChildObservation | None
) -> PoolNow:
    bases = {b.metadata.name: b for b in (*obs.siblings, base)}
    key = (pool.namespace, pool.name)
    rollouts = expected(key, pool.serving, moves(obs.deployments), obs.demand, bases)
    least, words = rollouts.replicas, rollouts.reason
    places = _for_places(obs, pool)
    if places > least:
        least, words = places, "its adapters need the places"
    replaced = deployment is not None and deployment.old_replicas > 0
    return PoolNow(
        replicas=current,
        serving=sum(serves(p) for p in obs.pods if p.pool == pool.name),
        least=least,
        least_reason=words,
        steady=not (rollouts.way_back or replaced or obs.unreadable),
    )


def _for_places(obs: BaseModelObservation, pool: Pool) -> int:
    """Pods without which some adapter would have no place."""
    lora = pool.serving.lora
    wanted = sum(1 for a in obs.adapters if a.metadata.name in pool.adapter_names and belongs(pool, a))
    return math.ceil(wanted * (lora.copies or 1) / lora.max_cpu_loras)
