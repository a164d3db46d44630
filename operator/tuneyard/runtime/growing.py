"""Whom it concerns how much is asked of them: the BaseModels of pools in which an adapter deserves more copies now.

Gateways tell something new every second. Nearly always it changes no plan, and a pass over a base with thousands of
adapters takes a while. Rules:
- only those are woken whose plan would be another one, found by the rule that plans follow (planning/growth.py);
- it is looked at most every LOOKING seconds, however many gateways speak: a load that rises is told again in the next
  second, because gateways smooth it;
- that an adapter deserves fewer copies its base sees by itself, some seconds later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.planning import growth
from tuneyard.planning.children import ANNOTATION_GROWN, marks_of
from tuneyard.planning.demand import DemandView
from tuneyard.planning.observations import ChildObservation
from tuneyard.planning.pools import holders, plan_of, pool_of, serving_of
from tuneyard.runtime.keys import BASE_MODEL, Key
from tuneyard.runtime.pace import Pace
from tuneyard.runtime.world import CONFIG_MAP, World

LOOKING = 0.9


@dataclass(frozen=True)
class _Known:
    """What of a pool's plan growth depends on."""

    config_map: ChildObservation
    copies: int | None
    adapters: frozenset[str]
    grown: dict[str, growth.Grown]


class Growing:
    """Looks at what gateways say; safe to use from many threads."""

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._pace = Pace(LOOKING, clock)
        self._lock = threading.Lock()
        self._known: dict[growth.PoolKey, _Known] = {}

    def concerned(self, demand: DemandView) -> list[Key]:
        """The BaseModels that should look again."""
        if not self._pace.due():
            return []
        asked = self._world.deployments.all(d for d in demand.asked() if self._world.in_scope(d[0]))
        loads = {pool: load for pool, load in growth.pool_loads(asked, demand).items() if load.hottest > growth.QUIET}
        keys = (self._grows(pool, load, asked) for pool, load in loads.items())
        return sorted({key for key in keys if key is not None})

    def _grows(self, pool: growth.PoolKey, loads: growth.Loads, asked: Iterable[ModelDeploymentResource]) -> Key | None:
        known = self._plan(pool)
        if known is None or known.copies is None:
            return None
        deployment, revision = _user(pool, asked)
        base = self._world.base_models.get(pool[0], revision.base_model)
        if base is None:
            return None
        limits = growth.bounds(serving_of(base, deployment, revision), known.copies)
        more = known.adapters.intersection(growth.grows(loads, known.grown, limits))
        return Key(BASE_MODEL, pool[0], revision.base_model) if more else None

    def _plan(self, pool: growth.PoolKey) -> _Known | None:
        """The pool's plan, read once until it changes: it may be long."""
        config_map = self._world.children[CONFIG_MAP].get(pool[0], names.pool_plan(pool[1]))
        with self._lock:
            known = self._known.get(pool)
            if config_map is None:
                self._known.pop(pool, None)
                return None
            if known is None or known.config_map is not config_map:
                plan, grown = plan_of(config_map), growth.remembered(marks_of(config_map, ANNOTATION_GROWN))
                copies, adapters = (plan.copies, frozenset(holders(plan))) if plan else (None, frozenset[str]())
                known = self._known[pool] = _Known(config_map, copies, adapters, grown)
            return known


def _user(
    pool: growth.PoolKey, deployments: Iterable[ModelDeploymentResource]
) -> tuple[ModelDeploymentResource, Revision]:
    """A revision that the pool serves."""
    mine = (d for d in deployments if d.metadata.namespace == pool[0])
    return next((d, r) for d in mine for r in d.spec.revisions if pool_of(d, r) == pool[1])
