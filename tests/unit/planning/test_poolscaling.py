"""A pool that is scaled by its load, by the plan of its base: its Deployment, its status, and what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    BASE,
    NAMESPACE,
    VOLUME,
    Situation,
    at,
    base_model,
    child_of,
    demand,
    deployment,
    pinned,
    pod,
    revision,
    stamp,
)
from tests.unit.planning.basemodels import DEPLOYMENT, applied_to, conditions
from tests.unit.planning.sleepers import known
from tuneyard.api import names
from tuneyard.api.autoscaling import Autoscaling, ScalingStatus
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus, PoolStatus
from tuneyard.api.documents import DemandReport, DeploymentDemand, EngineLoad, RevisionDemand
from tuneyard.api.modeldeployment import TrafficStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.demand import DemandView
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply, Plan

SCALED = {"minReplicas": 1, "maxReplicas": 6, "targets": {"inFlightRequests": 10}}


def scaled(
    status: BaseModelStatus | None = None, *, by: dict[str, Any] | None = None, **serving: Any
) -> BaseModelResource:
    block = {"artifact_volumes": [VOLUME], "autoscaling": Autoscaling.from_dict(by or SCALED), **serving}
    return base_model(serving=ServingSpec(**block), status=status)


def situation(**fields: Any) -> Situation:
    given = {"bases": (scaled(),), "adapters": (pinned("v1"),), "deployments": (deployment(),)}
    return Situation(**{**given, "pods": (pod("a", "v1"),), **fields})


def pool(plan: Plan) -> PoolStatus:
    assert isinstance(plan.status, BaseModelStatus) and plan.status.pools
    return plan.status.pools[0]


def replicas(plan: Plan) -> list[int | None]:
    """Of the Deployments that are applied; None where they are left out."""
    applied = [a.object for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Deployment"]
    return [obj["spec"].get("replicas") for obj in applied]


def planned(now: Situation) -> Plan:
    return plan_basemodel(now.base_model())


def told(plan: Plan) -> list[tuple[str, str]]:
    return [(e.reason.value, e.message) for e in plan.events if e.reason in (Reason.SCALED_UP, Reason.SCALED_DOWN)]


def test_a_load_gets_pods_in_the_pass_that_hears_of_it() -> None:
    begun = applied_to(situation())
    plan = planned(replace(begun, demand=demand({"v1": 52.0})))
    assert replicas(plan) == [4]
    assert (pool(plan).wanted_replicas, pool(plan).replicas) == (4, 4)
    assert pool(plan).reason == "inFlightRequests 52 in all, target 10 a replica"
    assert told(plan) == [("ScaledUp", f"pool {BASE}: 1 → 4 replicas, {pool(plan).reason}")]
    after = applied_to(applied_to(replace(begun, demand=demand({"v1": 52.0}))))
    again = planned(after)
    assert (replicas(again), again.status, told(again)) == ([], after.bases[0].status, []), "nothing is left to do"


def test_what_its_load_adds_is_no_work_of_somebodys_unless_something_is_wrong() -> None:
    now = applied_to(applied_to(situation(demand=demand({"v1": 52.0}))))
    plan = planned(now)
    assert conditions(plan)["Ready"] == ("True", "Ready")
    assert pool(plan).progress == "1 of 4 pods serve"
    sick = pod("b", engine="Starting", problem=Problem(Reason.UNSCHEDULABLE, "0/3 nodes"), created=stamp(1))
    assert conditions(planned(replace(now, pods=(*now.pods, sick))))["Ready"] == ("False", "Unschedulable")


def test_the_deployment_knows_it_where_the_status_is_lost() -> None:
    grown = applied_to(applied_to(situation(demand=demand({"v1": 52.0}))))
    lost = replace(grown, bases=(scaled(),), demand=demand({"v1": 52.0}))
    plan = planned(lost)
    assert (replicas(plan), pool(plan).wanted_replicas, told(plan)) == ([], 4, [])


def test_a_pool_of_a_fixed_number_goes_on_with_it() -> None:
    fixed = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], replicas=3))
    before = applied_to(situation(bases=(fixed,)))
    plan = planned(replace(before, bases=(scaled(before.bases[0].status),), demand=demand({"v1": 20.0})))
    assert (replicas(plan), pool(plan).wanted_replicas) == ([], 3)


def test_all_that_share_a_pool_count_together_and_those_who_wait() -> None:
    two = (deployment(), deployment("other", revisions=[revision("v1", "v1")]))
    first, second = demand({"v1": 13.0}), demand({"v1": 13.0}, deployment="other")
    (mine,), (others,) = first.reports, second.reports
    both = DemandReport(gateway="one", version=1, deployments={**mine.deployments, **others.deployments})
    begun = applied_to(situation(deployments=two))
    assert pool(planned(replace(begun, demand=first))).wanted_replicas == 1
    assert pool(planned(replace(begun, demand=DemandView((both,), 1)))).wanted_replicas == 2


def test_who_waits_counts_where_their_revision_is_served() -> None:
    own = ServingSpec(max_model_len=64)
    chat = deployment(
        revisions=[revision("v1", "v1"), revision("v2", "v1", serving=own), revision("v0", "v1", serving=own)],
        traffic={"v1": 95, "v2": 5, "v0": 0},
        status=known(waking_since=stamp(0)),
    )

    def wanted(**held: int) -> dict[str, int | None]:
        revisions = {name: RevisionDemand(waiting=count) for name, count in held.items()}
        told_ = DeploymentDemand(waiting=sum(held.values()), revisions=revisions)
        asked = DemandView((DemandReport(gateway="one", version=1, deployments={f"{NAMESPACE}/chat": told_}),), 1)
        plan = planned(replace(begun, demand=asked))
        assert isinstance(plan.status, BaseModelStatus)
        return {p.name: p.wanted_replicas for p in plan.status.pools or ()}

    begun = applied_to(situation(deployments=(chat,)))
    v2, v0 = (names.pool_name(BASE, "chat", name) for name in ("v2", "v0"))
    assert wanted(v1=48, v2=2) == {BASE: 4, v2: 1, v0: 1}
    assert wanted(v1=8, v0=48) == {BASE: 1, v2: 1, v0: 4}, "who names a revision waits for that one"


def test_a_silent_gateway_keeps_what_is_there() -> None:
    few = {"scaleDown": {"stabilizationWindow": "0s"}, **SCALED}
    status = BaseModelStatus(pools=[PoolStatus(name=BASE, wanted_replicas=4, scaling=ScalingStatus())])
    begun = situation(bases=(scaled(status, by=few),), demand=demand({"v1": 1.0}, expected=2))
    assert pool(planned(begun)).wanted_replicas == 4
    down = planned(replace(begun, demand=demand({"v1": 1.0})))
    assert pool(down).wanted_replicas == 1
    assert told(down)[0][0] == "ScaledDown"


def test_adapters_that_have_no_place_get_pods() -> None:
    many = tuple(pinned(f"a{n}") for n in range(5))
    users = tuple(deployment(f"d{n}", revisions=[revision("v1", f"a{n}")]) for n in range(5))
    base = scaled(lora=LoRASettings(max_cpu_loras=2))
    plan = planned(applied_to(situation(bases=(base,), adapters=many, deployments=users)))
    assert (pool(plan).wanted_replicas, pool(plan).reason) == (3, "its adapters need the places")


def test_engines_are_believed_while_each_pod_is_heard() -> None:
    by = {**SCALED, "targets": {"kvCacheUtilization": 70}, "scaleDown": {"stabilizationWindow": "0s"}}
    status = BaseModelStatus(pools=[PoolStatus(name=BASE, wanted_replicas=2, scaling=ScalingStatus())])
    begun = situation(bases=(scaled(status, by=by),), pods=(pod("a", "v1"), pod("b", "v1")))

    def wanted(**engines: EngineLoad) -> int | None:
        loads = {f"{NAMESPACE}/{name}": load for name, load in engines.items()}
        report = DemandReport(gateway="one", version=1, engines=loads)
        return pool(planned(replace(begun, demand=DemandView((report,), 1)))).wanted_replicas

    full, idle = EngineLoad(kv_cache=0.95), EngineLoad(kv_cache=0.05)
    assert wanted(a=full, b=full) == 3
    assert wanted(a=idle, b=idle) == 1
    assert wanted(a=idle) == 2, "nobody knows of b"
    assert wanted(a=idle, b=EngineLoad(kv_cache=0.05, age_seconds=31)) == 2
    assert wanted(a=full, b=full, c=full) == 3, "c is no pod of it"


def test_it_sleeps_as_others_do_and_wakes_with_the_fewest() -> None:
    by = {**SCALED, "minReplicas": 0}
    told_ = PoolStatus(name=BASE, asleep_since=stamp(0), wanted_replicas=4, scaling=ScalingStatus(since=stamp(-5)))
    base = scaled(BaseModelStatus(pools=[told_]), by=by, scale_to_zero_after="30m")
    asleep = situation(bases=(base,), deployments=(deployment(status=known(idle_since=stamp(0))),), pods=())
    plan = planned(asleep)
    assert (replicas(plan), pool(plan).wanted_replicas, pool(plan).replicas) == ([0], 1, 0)
    awake = replace(asleep, deployments=(deployment(status=known(waking_since=stamp(1))),), now=at(1))
    status = pool(plan)
    woken = replace(awake, bases=(scaled(BaseModelStatus(pools=[status]), by=by, scale_to_zero_after="30m"),))
    assert replicas(planned(woken)) == [1]


# -- rollouts between pools ------------------------------------------------------------------------------------------

STEPS = RolloutSpec.from_dict(
    {"mode": "Progressive", "steps": [{"weight": 10, "hold": "1m"}, {"weight": 50, "hold": "1m"}, {"weight": 100}]}
)
CANDIDATE = names.pool_name(BASE, "chat", "v2")


def climbing(phase: str, step: int, weight: int) -> Any:
    rollout = RolloutStatus(
        phase=phase, stable="v1", candidate="v2", step=step, allowed={"v2": weight} if weight else None
    )
    traffic = [
        TrafficStatus(revision="v1", spec_weight=0, weight=100 - weight),
        TrafficStatus(revision="v2", spec_weight=100, weight=weight),
    ]
    return deployment(
        revisions=[revision("v1", "v1"), revision("v2", "v1", serving=ServingSpec(max_model_len=64))],
        traffic={"v1": 0, "v2": 100},
        rollout=STEPS,
        status=known(rollout=rollout, traffic=traffic),
    )


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        (climbing("Gating", 0, 0), 1),
        (climbing("Progressing", 0, 10), 3),
        (climbing("Progressing", 1, 50), 5),
        (climbing("RolledBack", 1, 0), 1),
    ],
)
def test_a_candidate_has_pods_for_its_next_step_before_it_comes(user: Any, wanted: int) -> None:
    now = applied_to(situation(deployments=(user,)))
    plan = planned(replace(now, demand=demand({"v1": 55.0})))
    assert isinstance(plan.status, BaseModelStatus)
    found = {p.name: p.wanted_replicas for p in plan.status.pools or ()}
    assert found[CANDIDATE] == wanted


def test_stable_keeps_its_pods_while_it_is_the_way_back() -> None:
    by = {**SCALED, "scaleDown": {"stabilizationWindow": "0s"}}
    status = BaseModelStatus(pools=[PoolStatus(name=BASE, wanted_replicas=4, scaling=ScalingStatus())])
    for user, wanted in ((climbing("Baking", 3, 100), 4), (climbing("Completed", 3, 100), 1)):
        now = situation(bases=(scaled(status, by=by),), deployments=(user,), demand=demand({"v2": 40.0}))
        assert pool(planned(now)).wanted_replicas == wanted


# -- pools that somebody else scales ---------------------------------------------------------------------------------


def owned(*fields: str) -> dict[str, Any]:
    """managedFields of the operator's Deployment."""
    spec: dict[str, Any] = {"f:template": {}, "f:selector": {}, "f:strategy": {}}
    spec |= {"f:revisionHistoryLimit": {}, "f:progressDeadlineSeconds": {}, **{f: {} for f in fields}}
    told_ = {"f:metadata": {}, "f:spec": spec}
    return {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": told_}


def outside(now: Situation, number: int, *fields: str) -> Situation:
    """With so many replicas in its Deployment, of which the operator owns these fields too."""
    applied = [a.object for a in planned(now).actions if isinstance(a, Apply)]
    (found,) = [o for o in applied if (o["kind"], o["metadata"]["name"]) == DEPLOYMENT]
    obj = json.loads(json.dumps(found))
    obj["metadata"]["managedFields"] = [owned(*fields)]
    obj["spec"]["replicas"] = number
    return replace(now, children=(child_of(obj, updatedReplicas=number, observedGeneration=1),))


def test_somebody_elses_number_is_left_alone() -> None:
    theirs = situation(bases=(scaled(by={"external": True}),))
    assert replicas(planned(theirs)) == [None], "the API server's default until somebody says otherwise"
    grown = outside(theirs, 5)
    plan = planned(grown)
    assert replicas(plan) == []
    assert (pool(plan).replicas, pool(plan).wanted_replicas, plan.status.replicas) == (5, None, "1/5")  # type: ignore[union-attr]


def test_a_number_that_only_the_operator_has_set_stays_until_somebody_else_sets_one() -> None:
    theirs = situation(bases=(scaled(by={"external": True}),))
    mine = outside(theirs, 5, "f:replicas")
    assert replicas(planned(mine)) == [5], "left out it would fall back to 1"
    assert replicas(planned(outside(theirs, 7))) == [], "somebody has: it is theirs"
    assert replicas(planned(outside(theirs, 0, "f:replicas"))) == [1], "autoscalers leave alone what has none"
