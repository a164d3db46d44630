"""When a pool has no pods because nobody asks for it, and what the objects say of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    BASE,
    VOLUME,
    Situation,
    applied,
    at,
    base_model,
    deployment,
    pinned,
    pod,
    revision,
    stamp,
)
from tests.unit.planning.basemodels import applied_to
from tests.unit.planning.sleepers import (
    STEPS,
    conditions,
    demand,
    known,
    said,
    state,
)
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus, PoolStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.demand import DemandView
from tuneyard.planning.idling import held_on_demand, idle_timeout
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply
from tuneyard.planning.pools import pools_of

AFTER = "30m"
POOL = f"{BASE}-pool"


def sleepy(status: BaseModelStatus | None = None, **serving: Any) -> BaseModelResource:
    """A base whose pool of two may sleep."""
    given = {"artifact_volumes": [VOLUME], "replicas": 2, "scale_to_zero_after": AFTER, **serving}
    return base_model(serving=ServingSpec(**given), status=status)


def resting(name: str = "chat", **fields: Any) -> ModelDeploymentResource:
    """One that is idle."""
    given = {"revisions": [revision("v1", "v1")], "status": known(idle_since=stamp(0)), **fields}
    return deployment(name, **given)


def plain(**fields: Any) -> ModelDeploymentResource:
    """One that serves the base itself."""
    given = {"revisions": [revision("v1")], "status": known(), **fields}
    return deployment("plain", **given)


def looked_at(
    asked: DemandView, *deployments: ModelDeploymentResource, base: BaseModelResource | None = None, **fields: Any
) -> tuple[Situation, BaseModelStatus, Any]:
    """The situation after the BaseModel's plan was executed, what that said and the plan."""
    situation = Situation(
        bases=(base or sleepy(),),
        adapters=(pinned("v1"),),
        deployments=deployments,
        pods=(pod("a", "v1"), pod("b", "v1")),
        **fields,
    )
    situation = applied_to(situation)
    plan = plan_basemodel(replace(situation.base_model(), demand=asked))
    assert isinstance(plan.status, BaseModelStatus)
    return situation, plan.status, plan


def pool_of(status: BaseModelStatus) -> PoolStatus:
    assert status.pools
    (found,) = status.pools
    return found


def replicas(plan: Any) -> list[int]:
    return [
        a.object["spec"]["replicas"] for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Deployment"
    ]


QUIET = demand({"chat": said(1800)}, {"chat": said(4000)})


def test_it_says_that_it_sleeps_and_then_its_pods_go() -> None:
    situation, status, plan = looked_at(QUIET, resting())
    assert pool_of(status).asleep_since == stamp(0)
    assert (replicas(plan), plan.requeue_after) == ([], 0.0), "status first: who starts anew finds out what was meant"
    assert [e.reason for e in plan.events if e.reason is Reason.ASLEEP] == [Reason.ASLEEP]
    asleep = replace(situation, bases=(sleepy(status),), pods=())
    plan = plan_basemodel(replace(asleep.base_model(), demand=QUIET))
    assert replicas(plan) == [0]
    told = plan_basemodel(replace(applied_to(asleep).base_model(), demand=demand(expected=2)))
    assert isinstance(told.status, BaseModelStatus)
    assert conditions(told.status) | {"Resolved": None} == {
        "Ready": ("True", "Asleep"),
        "Available": ("True", "Asleep"),
        "Resolved": None,
    }
    assert (told.status.replicas, told.status.progress) == ("0/0", "asleep; the next request starts its pods")
    assert (pool_of(told.status).replicas, replicas(told), told.events) == (0, [], ())


@pytest.mark.parametrize(
    ("asked", "deployments", "wait", "what"),
    [
        (demand({"chat": said(1799)}, {"chat": said(4000)}), (resting(),), 1.0, "a gateway was asked in time"),
        (demand({"chat": said(1800, waiting=1)}), (resting(),), 60.0, "somebody waits"),
        (demand({"chat": said(1800, flying=0.5)}), (resting(),), 1800.0, "a request is under way"),
        (demand({"chat": said(4000)}, expected=2), (resting(),), 60.0, "a gateway does not say"),
        (demand({"chat": said(4000)}, {}), (resting(),), 60.0, "a gateway knows nothing of it"),
        (demand({"chat": said(4000), "plain": said(600)}), (resting(), plain()), None, "another one is awake"),
        (QUIET, (resting(generation=2),), None, "it was changed"),
        (QUIET, (resting(status=known(waking_since=stamp(0))),), None, "it is being loaded"),
    ],
)
def test_anything_else_keeps_its_pods(
    asked: DemandView, deployments: tuple[ModelDeploymentResource, ...], wait: float | None, what: str
) -> None:
    _, status, plan = looked_at(asked, *deployments)
    assert pool_of(status).asleep_since is None, what
    assert wait is None or plan.requeue_after == wait
    assert conditions(status)["Ready"][1] != "Asleep"


def test_what_cannot_be_read_may_need_it_but_wakes_nothing() -> None:
    _, status, _ = looked_at(QUIET, resting(), unreadable=("odd",))
    assert pool_of(status).asleep_since is None
    asleep = sleepy(BaseModelStatus(pools=[PoolStatus(name=BASE, asleep_since=stamp(0))]))
    _, status, _ = looked_at(QUIET, resting(), base=asleep, unreadable=("odd",))
    assert pool_of(status).asleep_since == stamp(0)


def asleep_base(**serving: Any) -> BaseModelResource:
    (pool,) = pools_of(sleepy(), [resting()])
    told = [PoolStatus(name=pool.name, asleep_since=stamp(0), progress="asleep; the next request starts its pods")]
    return sleepy(BaseModelStatus(observed_generation=1, pools=told), **serving)


@pytest.mark.parametrize(
    ("base", "user"),
    [
        (asleep_base(), resting(status=known(waking_since=stamp(1)))),
        (asleep_base(), resting(status=known())),
        (asleep_base(scale_to_zero_after=None), resting()),
        (sleepy(), resting()),
    ],
    ids=["somebody asks", "it was woken", "it may not sleep any more", "the status is lost"],
)
def test_it_has_all_its_pods_again(base: BaseModelResource, user: ModelDeploymentResource) -> None:
    (pool,) = pools_of(base, [user])
    assert (pool.pods, pool.asleep_since) == (2, None)
    situation = Situation(bases=(base,), adapters=(pinned("v1"),), deployments=(user,))
    plan = plan_basemodel(replace(situation.base_model(), demand=demand({"chat": said(0, waiting=3)})))
    assert replicas(plan) == [2]
    assert isinstance(plan.status, BaseModelStatus)
    assert pool_of(plan.status).asleep_since is None
    woken = base.status.pools is not None
    assert [e.reason for e in plan.events if e.reason is Reason.WOKEN] == ([Reason.WOKEN] if woken else [])


def test_its_adapters_sleep_with_it() -> None:
    (pool,) = pools_of(asleep_base(), [resting()])
    assert (set(pool.adapter_names), set(pool.idle)) == (set(), {"v1"})
    situation = Situation(bases=(asleep_base(),), adapters=(pinned("v1"),), deployments=(resting(),))
    status: Any = plan_loraadapter(situation.adapter("v1")).status
    assert conditions(status)["Ready"] == ("True", "Idle")


# -- deployments -----------------------------------------------------------------------------------------------------


def test_its_time_is_that_of_adapters_without_one_and_of_revisions_that_serve_the_base() -> None:
    both = sleepy(lora=LoRASettings(idle_timeout="5m"))
    assert idle_timeout(resting(), [sleepy()]) == 1800
    assert idle_timeout(resting(), [both]) == 300
    assert idle_timeout(plain(), [both]) == 1800
    assert idle_timeout(plain(), [sleepy(scale_to_zero_after="1s")]) == 10
    assert idle_timeout(plain(), [sleepy(scale_to_zero_after=None)]) is None


def judged(
    what: ModelDeploymentResource,
    asked: DemandView,
    base: BaseModelResource,
    *,
    pods: tuple[Any, ...] = (),
    minutes: float = 0,
) -> ModelDeploymentStatus:
    weights = {t.revision: t.weight for t in what.spec.traffic}
    situation = Situation(
        bases=(base,),
        adapters=(pinned("v1"),),
        deployments=(what,),
        pods=pods,
        applied=(applied("g0", what, weights),),
        gateways_expected=1,
        now=at(minutes),
    )
    plan = plan_modeldeployment(replace(situation.deployment(what.metadata.name), demand=asked))
    assert isinstance(plan.status, ModelDeploymentStatus)
    return plan.status


NOBODY = demand({"plain": said(4000)})


def test_one_that_serves_a_base_idles_and_is_healthy_asleep() -> None:
    status = judged(plain(), NOBODY, sleepy(), pods=(pod("a"),))
    assert (state(status), conditions(status)["Ready"]) == ("idle", ("True", "Idle"))
    status = judged(plain(status=known(idle_since=stamp(0))), NOBODY, asleep_base(), minutes=5)
    assert conditions(status) == {
        "Ready": ("True", "Idle"),
        "Accepted": ("True", "Accepted"),
        "Available": ("True", "Idle"),
        "TrafficApplied": ("True", "Applied"),
    }
    (ready,) = [c for c in status.conditions if c.type == "Ready"]
    assert ready.message == f"pool {pool_name()} has no pods since {stamp(0)}; the next request starts them"
    assert state(judged(plain(), NOBODY, sleepy(scale_to_zero_after=None), pods=(pod("a"),))) == "awake"


def pool_name() -> str:
    return pools_of(sleepy(), [resting()])[0].name


def test_requests_are_held_for_revisions_whose_pool_may_sleep() -> None:
    idle = plain(status=known(idle_since=stamp(0)))
    assert held_on_demand(idle, [sleepy()]) == {"v1"}
    assert held_on_demand(plain(), [sleepy()]) == set()
    assert held_on_demand(idle, [sleepy(scale_to_zero_after=None)]) == set()
    assert held_on_demand(idle, []) == set()


def test_a_request_wakes_it_until_a_pod_serves() -> None:
    waits = demand({"plain": said(0, waiting=500)})
    status = judged(plain(status=known(idle_since=stamp(0))), waits, asleep_base(), minutes=9)
    assert (status.waking_since, conditions(status)["Ready"]) == (stamp(9), ("False", "Starting"))
    assert conditions(status)["Available"] == ("True", "Available"), "its requests are held, not refused"
    waking = plain(status=known(waking_since=stamp(9)))
    assert state(judged(waking, NOBODY, sleepy(), minutes=25)) == "waking", "pods may take longer than anybody waits"
    assert state(judged(waking, NOBODY, sleepy(), pods=(pod("a"),), minutes=25)) == "idle"
    asked = demand({"plain": said(60)})
    assert state(judged(waking, asked, sleepy(), pods=(pod("a"),), minutes=25)) == "awake"


@pytest.mark.parametrize(("minutes", "expected"), [(14, "waking"), (16, "awake")])
def test_a_node_may_have_to_come_first(minutes: float, expected: str) -> None:
    nowhere = replace(
        pod("a", engine="Starting"), report=None, problem=Problem(Reason.UNSCHEDULABLE, "0/3 nodes are available")
    )
    waking = plain(status=known(waking_since=stamp(0)))
    waits = demand({"plain": said(0, waiting=1)})
    assert state(judged(waking, waits, sleepy(), pods=(nowhere,), minutes=minutes)) == expected
    other = deployment("plain", revisions=[revision("v1", "v1")], status=known(waking_since=stamp(0)))
    bases = sleepy(scale_to_zero_after=None, lora=LoRASettings(idle_timeout=AFTER))
    assert state(judged(other, waits, bases, pods=(nowhere,), minutes=minutes)) == "awake", (
        "of a pool that never sleeps"
    )


@pytest.mark.parametrize("phase", ["Gating", "Progressing", "Inconclusive", "Paused", "Baking"])
def test_a_rollout_keeps_its_pools_awake(phase: Any) -> None:
    rollout = RolloutStatus(phase=phase, stable="v1", candidate="v2", allowed={"v2": 0})
    moving = plain(
        revisions=[revision("v1"), revision("v2", "v1")],
        traffic={"v2": 100},
        rollout=STEPS,
        status=known(rollout=rollout),
    )
    assert state(judged(moving, NOBODY, sleepy(), pods=(pod("a", "v1"),))) == "awake"
