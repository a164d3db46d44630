"""A pool's plan, or that of what a node's cache keeps, from the one ConfigMap that holds it.

A plan that cannot be read leaves the last one in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.settings import Settings
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan, PrewarmPlan, plan_text
from tuneyard.planning.agentstate import PlanChanged
from tuneyard.systems.kube.client import Api, Object
from tuneyard.systems.kube.informers import Informer, OnChange, on_loop
from tuneyard.systems.kube.watching import Change

_log = logging.getLogger(__name__)


_Plan = TypeVar("_Plan", PoolPlan, PrewarmPlan)


def read_plan(config_map: Object, pod: str) -> PoolPlan | None:
    """The pod's share of the plan in a ConfigMap.

    None, with a line in the log, where there is none that this version understands.
    """
    plan = _read(PoolPlan, config_map)
    return None if plan is None else plan.share(pod)


def follow_plan(api: Api, settings: Settings, knowledge: Knowledge) -> Informer:
    """Start to tell every plan of the pool; returns the informer, which the caller stops."""

    def heard(plan: PoolPlan) -> None:
        knowledge.tell(PlanChanged(plan))

    def read(config_map: Object) -> PoolPlan | None:
        return read_plan(config_map, settings.pod)

    on_change = on_loop(asyncio.get_running_loop(), _telling(read, heard))
    return _started(api, settings.namespace, names.pool_plan(settings.pool), on_change)


def follow_prewarm_plan(api: Api, namespace: str, name: str, heard: Callable[[PrewarmPlan], None]) -> Informer:
    """Start to tell every plan in the ConfigMap of this name, in a thread of the informer's; the caller stops that."""
    return _started(api, namespace, name, _telling(lambda config_map: _read(PrewarmPlan, config_map), heard))


def _read(kind: type[_Plan], config_map: Object) -> _Plan | None:
    try:
        return kind.model_validate_json(plan_text(config_map) or "")
    except (ValueError, TypeError, AttributeError) as error:
        _log.error("the plan cannot be read, keeping the last one: %s", error)
        return None


def _telling(read: Callable[[Object], _Plan | None], heard: Callable[[_Plan], None]) -> OnChange:
    """A plan that is deleted stays in force: whom it is for is going, and the pods with it."""

    def on_change(change: Change, config_map: Object) -> None:
        plan = read(config_map) if change != "DELETED" else None
        if plan is not None:
            _log.info("the plan has %d adapters", len(plan.adapters))
            heard(plan)

    return on_change


def _started(api: Api, namespace: str, name: str, on_change: OnChange) -> Informer:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    informer = Informer(api, path, on_change, field_selector=f"metadata.name={name}")
    informer.start()
    return informer
