"""The pool's plan, from the one ConfigMap that holds it. A plan that cannot be read leaves the last one in force."""

from __future__ import annotations

import asyncio
import logging

from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.settings import Settings
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan, plan_text
from tuneyard.planning.agentstate import PlanChanged
from tuneyard.systems.kube.client import Api, Object
from tuneyard.systems.kube.informers import Informer, on_loop
from tuneyard.systems.kube.watching import Change

_log = logging.getLogger(__name__)


def read_plan(config_map: Object, pod: str) -> PoolPlan | None:
    """The pod's share of the plan in a ConfigMap.

    None, with a line in the log, where there is none that this version understands.
    """
    try:
        return PoolPlan.model_validate_json(plan_text(config_map) or "").share(pod)
    except (ValueError, TypeError, AttributeError) as error:
        _log.error("the plan cannot be read, keeping the last one: %s", error)
        return None


def follow_plan(api: Api, settings: Settings, knowledge: Knowledge) -> Informer:
    """Start to tell every plan of the pool; returns the informer, which the caller stops.

    A plan that is deleted stays in force: its pool is going, and the pods with it.
    """

    def on_change(change: Change, config_map: Object) -> None:
        plan = read_plan(config_map, settings.pod) if change != "DELETED" else None
        if plan is not None:
            _log.info("the plan has %d adapters for this pod", len(plan.adapters))
            knowledge.tell(PlanChanged(plan))

    informer = Informer(
        api,
        f"/api/v1/namespaces/{settings.namespace}/configmaps",
        on_loop(asyncio.get_running_loop(), on_change),
        field_selector=f"metadata.name={names.pool_plan(settings.pool)}",
    )
    informer.start()
    return informer
