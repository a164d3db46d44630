"""Whom it concerns how much is asked of pools: the BaseModels of pools whose load asks for more replicas now.

Gateways tell something new every second. Rules:
- only those are woken whose plan would be another one, found by the rules that plans follow (planning/autoscaling.py);
- it is looked at most every LOOKING seconds, however many gateways speak;
- that the load asks for fewer, their bases see by themselves: that takes minutes anyway;
- nothing is kept here: who is woken once too often finds nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from tuneyard.api.autoscaling import ScalingStatus
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning import children
from tuneyard.planning.autoscaling import PoolNow, Scaled, decide
from tuneyard.planning.demand import DemandView
from tuneyard.planning.growth import PoolKey
from tuneyard.planning.observations import serves
from tuneyard.planning.poolload import Use, measured
from tuneyard.planning.poolreplicas import pool_status, scaled_by
from tuneyard.planning.pools import pool_of, serving_of
from tuneyard.planning.resolvedserving import Serving
from tuneyard.runtime.keys import BASE_MODEL, Key
from tuneyard.runtime.pace import Pace
from tuneyard.runtime.world import World

LOOKING = 0.9


class Scaling:
    """Looks at what gateways say; safe to use from many threads."""

    def __init__(
        self,
        world: World,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._world = world
        self._pace = Pace(LOOKING, clock)
        self._now = now

    def concerned(self, demand: DemandView) -> list[Key]:
        """The BaseModels that should look again."""
        if not self._pace.due():
            return []
        keys = dict.fromkeys((*demand.asked(), *demand.waited_for()))
        asked = self._world.deployments.all(k for k in keys if self._world.in_scope(k[0]))
        found = (self._grows(pool, uses, demand) for pool, uses in _by_pool(asked).items())
        return sorted({key for key in found if key is not None})

    def _grows(self, pool: PoolKey, uses: list[Use], demand: DemandView) -> Key | None:
        deployment, revision = uses[0]
        base = self._world.base_models.get(pool[0], revision.base_model)
        if base is None or scaled_by(revision.serving, deployment.spec.serving, base.spec.serving) is None:
            return None
        serving = serving_of(base, deployment, revision)
        told = pool_status(base, pool[1])
        if told is None or told.wanted_replicas is None or told.asleep_since:
            return None
        known, next_ = told.scaling or ScalingStatus(), self._next(base, pool, serving, uses, demand)
        if next_ is None:
            return None
        begins = bool(next_.state.higher_since) > bool(known.higher_since) or (next_.state.limit and not known.limit)
        more = next_.wanted > told.wanted_replicas or begins
        return Key(BASE_MODEL, pool[0], revision.base_model) if more else None

    def _next(
        self, base: BaseModelResource, pool: PoolKey, serving: Serving, uses: list[Use], demand: DemandView
    ) -> Scaled | None:
        """What those who are asked now would have it be; who else shares the pool is asked nothing."""
        label = children.label_value(base.metadata.name)
        pods = [p for p in self._world.pods.all(self._world.pod_index.of((pool[0], label))) if p.pool == pool[1]]
        settings, told = serving.scaled, pool_status(base, pool[1])
        if settings is None:
            return None
        load = measured(settings, pool, uses, demand, pods)
        now = PoolNow(serving.replicas, sum(map(serves, pods)), steady=False)
        return decide(settings, load, now, told.scaling if told else None, self._now())


def _by_pool(deployments: Iterable[ModelDeploymentResource]) -> dict[PoolKey, list[Use]]:
    found: dict[PoolKey, list[Use]] = {}
    for deployment in deployments:
        for revision in deployment.spec.revisions:
            if revision.external is None:
                key = (deployment.metadata.namespace, pool_of(deployment, revision))
                found.setdefault(key, []).append((deployment, revision))
    return found
