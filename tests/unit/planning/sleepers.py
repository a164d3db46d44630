"""A deployment of two adapters that nobody asks for, and what its plan says; others that share its pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.builders import (
    NAMESPACE,
    VOLUME,
    Situation,
    applied,
    at,
    base_model,
    child_of,
    deployment,
    pinned,
    pod,
    revision,
    stamp,
)
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus
from tuneyard.api.conditions import Condition
from tuneyard.api.documents import DemandReport, DeploymentDemand, PlannedAdapter, PoolPlan, RevisionDemand
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning import children
from tuneyard.planning.demand import DemandView
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.pools import pools_of

REVISIONS = [revision("v1", "v1"), revision("v2", "v2")]
TIMEOUT = "30m"


def base(timeout: str | None = TIMEOUT, *, places: int = 8, status: BaseModelStatus | None = None) -> BaseModelResource:
    lora = LoRASettings(max_cpu_loras=places, idle_timeout=timeout)
    return base_model(serving=ServingSpec(artifact_volumes=[VOLUME], lora=lora), status=status)


def condition(type_: str, status: str, reason: str) -> Condition:
    return Condition.from_dict(
        {"type": type_, "status": status, "reason": reason, "lastTransitionTime": stamp(0), "observedGeneration": 1}
    )


READY = condition("Ready", "True", "Ready")


def known(**fields: Any) -> ModelDeploymentStatus:
    """The status of a deployment that is served as it should be, but for these fields."""
    told = {
        "observed_generation": 1,
        "rollout": RolloutStatus(phase="Progressing", stable="v1"),
        "conditions": [READY],
        **fields,
    }
    return ModelDeploymentStatus(**told)


STEPS = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 10, "hold": "1m"}], "bakeTime": "1m"})


def chat(status: ModelDeploymentStatus | None = None, **fields: Any) -> ModelDeploymentResource:
    chosen = {"revisions": REVISIONS, "traffic": {"v1": 90, "v2": 10}, **fields}
    return deployment(status=status or known(), **chosen)


def quiet_one(name: str, **fields: Any) -> ModelDeploymentResource:
    return deployment(name, revisions=[revision("v1", name)], status=known(**fields))


def said(idle: float, *, waiting: int = 0, requests: int = 5, flying: float = 0.0) -> DeploymentDemand:
    revisions = {"v1": RevisionDemand(requests=requests, in_flight=flying)} if requests else {}
    return DeploymentDemand(idle_seconds=idle, waiting=waiting, revisions=revisions)


def demand(*reports: dict[str, DeploymentDemand] | DeploymentDemand, expected: int | None = None) -> DemandView:
    """One gateway for each; a single demand is that for `chat`."""
    told = [r if isinstance(r, dict) else {"chat": r} for r in reports]
    return DemandView(
        tuple(
            DemandReport(
                gateway=f"g{number}", version=1, deployments={f"{NAMESPACE}/{name}": d for name, d in of_it.items()}
            )
            for number, of_it in enumerate(told)
        ),
        len(told) if expected is None else expected,
    )


QUIET = demand(said(1800), said(4000))


def planned(
    what: ModelDeploymentResource,
    asked: DemandView,
    *,
    bases: BaseModelResource | None = None,
    adapters: tuple[LoRAAdapterResource, ...] = (pinned("v1"), pinned("v2")),
    loaded: tuple[str, ...] = ("v1", "v2"),
    minutes: float = 0,
    held: tuple[str, ...] = (),
    **fields: Any,
) -> tuple[ModelDeploymentStatus, float | None]:
    """The status to be written and when to look again; pods have `loaded`, gateways serve the spec."""
    weights = {t.revision: t.weight for t in what.spec.traffic}
    told = applied("g0", what, weights)
    ((key, of_it),) = told.deployments.items()
    holding = told.model_copy(update={"deployments": {key: of_it.model_copy(update={"held": list(held)})}})
    situation = Situation(
        bases=(bases or base(),),
        adapters=adapters,
        deployments=(what,),
        pods=(pod("a", *loaded),),
        applied=(holding, applied("g1", what, weights)),
        now=at(minutes),
        **fields,
    )
    plan = plan_modeldeployment(replace(situation.deployment(), demand=asked))
    assert isinstance(plan.status, ModelDeploymentStatus)
    return plan.status, plan.requeue_after


def plan_map(bases: BaseModelResource, deployments: tuple[ModelDeploymentResource, ...], *holders: str) -> Any:
    """The ConfigMap of a plan in which these have a place."""
    (pool,) = pools_of(bases, deployments)
    adapters = [PlannedAdapter(name=n, source=pinned(n).spec.source) for n in holders]
    plan = PoolPlan(pool=pool.name, base_model=bases.metadata.name, adapters=adapters)
    return child_of(children.pool_plan(pool, bases, plan, {}, None))


def state(status: ModelDeploymentStatus) -> str:
    """In one word."""
    assert not (status.idle_since and status.waking_since)
    return "idle" if status.idle_since else "waking" if status.waking_since else "awake"


def conditions(status: Any) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}
