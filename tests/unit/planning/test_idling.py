"""When a deployment's adapters are unloaded, when they are loaded again, and what is said of it meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    NAMESPACE,
    T0,
    VOLUME,
    Situation,
    adapter,
    applied,
    at,
    base_model,
    child_of,
    deployment,
    failed,
    pinned,
    pod,
    revision,
    stamp,
)
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus, PoolStatus
from tuneyard.api.conditions import Condition
from tuneyard.api.documents import DemandReport, DeploymentDemand, PlannedAdapter, PoolPlan, RevisionDemand
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning import children
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.demand import DemandView
from tuneyard.planning.idling import LOOK, has_no_room, held_on_demand, idle_timeout
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.poolplan import wanted_plan
from tuneyard.planning.pools import places, pools_of

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


def chat(status: ModelDeploymentStatus | None = None, **fields: Any) -> ModelDeploymentResource:
    chosen = {"revisions": REVISIONS, "traffic": {"v1": 90, "v2": 10}, **fields}
    return deployment(status=status or known(), **chosen)


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


def state(status: ModelDeploymentStatus) -> str:
    """In one word."""
    assert not (status.idle_since and status.waking_since)
    return "idle" if status.idle_since else "waking" if status.waking_since else "awake"


def conditions(status: Any) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


QUIET = demand(said(1800), said(4000))


def test_what_nobody_asks_for_goes_idle_and_says_so() -> None:
    status, _ = planned(chat(), QUIET)
    assert status.idle_since == stamp(0)
    assert conditions(status) == {
        "Ready": ("True", "Idle"),
        "Accepted": ("True", "Accepted"),
        "Available": ("True", "Idle"),
        "TrafficApplied": ("True", "Applied"),
    }
    assert status.reason == "Idle"
    assert {t.revision: (t.weight, t.withheld) for t in status.traffic} == {"v1": (90, None), "v2": (10, None)}
    again, wait = planned(chat(status), QUIET, loaded=(), minutes=5)
    assert (again.idle_since, again.reason, wait) == (stamp(0), "Idle", 300.0)
    assert {t.revision: (t.weight, t.ready_endpoints) for t in again.traffic} == {"v1": (90, 0), "v2": (10, 0)}
    assert again.rollout == status.rollout


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (demand(said(1799.9), said(4000)), "a gateway was asked in time"),
        (demand(said(1800, waiting=1), said(4000)), "somebody waits"),
        (demand(said(1800, flying=0.5), said(4000)), "a request is under way"),
        (demand(said(4000), expected=2), "a gateway does not say"),
        (demand(said(4000), {}), "a gateway knows nothing of it"),
        (demand(), "there is no gateway"),
    ],
)
def test_anything_else_keeps_it_awake(asked: DemandView, what: str) -> None:
    assert state(planned(chat(), asked)[0]) == "awake", what


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (known(observed_generation=0), "its spec was changed and not looked at yet"),
        (known(conditions=[condition("Ready", "False", "Loading")]), "something is under way"),
        (known(conditions=[condition("Ready", "False", "EngineCrashed")]), "something is wrong"),
        (known(rollout=RolloutStatus(stable="v1", allowed={"v2": 5})), "a rollout holds something back"),
        (ModelDeploymentStatus(), "it was never looked at"),
    ],
)
def test_what_is_under_way_is_not_idled(status: ModelDeploymentStatus, what: str) -> None:
    assert state(planned(chat(status), QUIET)[0]) == "awake", what


STEPS = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 10, "hold": "1m"}], "bakeTime": "1m"})


@pytest.mark.parametrize(
    ("rollout", "fields"),
    [
        (
            RolloutStatus(phase="Completed", stable="v2", allowed={"v1": 100}),
            {"traffic": {"v2": 100}, "rollout": STEPS},
        ),
        (RolloutStatus(phase="Completed", stable="v1", allowed={"v2": 0}), {"traffic": {"v1": 100}}),
        (RolloutStatus(phase="RolledBack", stable="v1", allowed={"v2": 0}), {"traffic": {"v1": 100}, "rollout": STEPS}),
    ],
)
def test_what_a_finished_rollout_leaves_behind_keeps_nothing_awake(
    rollout: RolloutStatus, fields: dict[str, Any]
) -> None:
    """It names what is proven or rejected for as long as that is listed."""
    assert state(planned(chat(known(rollout=rollout), **fields), QUIET)[0]) == "idle"


@pytest.mark.parametrize(
    ("phase", "allowed"),
    [("Progressing", {"v2": 0}), ("Progressing", None), ("Paused", {"v2": 0}), ("Baking", {"v2": 100})],
)
def test_a_rollout_by_steps_is_not_idled_before_it_has_ended(phase: Any, allowed: dict[str, int] | None) -> None:
    status = known(rollout=RolloutStatus(phase=phase, stable="v1", candidate="v2", allowed=allowed))
    assert state(planned(chat(status, traffic={"v2": 100}, rollout=STEPS), QUIET)[0]) == "awake"


def test_a_revision_whose_pod_is_lost_is_not_idled() -> None:
    assert state(planned(chat(), QUIET, loaded=("v1",))[0]) == "awake"


def test_without_a_timeout_nothing_idles_and_what_idles_wakes() -> None:
    assert planned(chat(), QUIET, bases=base(None))[1] is None
    assert state(planned(chat(), QUIET, bases=base(None))[0]) == "awake"
    assert state(planned(chat(known(idle_since=stamp(0))), QUIET, bases=base(None), loaded=())[0]) == "waking"


def test_the_longest_timeout_of_its_pools_counts() -> None:
    def lora(timeout: str | None) -> ServingSpec:
        return ServingSpec(lora=LoRASettings(idle_timeout=timeout))

    own = [revision("v1", "v1", serving=lora("5m")), revision("v2", "v2", serving=lora("2h"))]
    assert idle_timeout(chat(revisions=own), [base()]) == 7200
    never = [revision("v1", "v1"), revision("v2", "v2", serving=lora(None))]
    assert idle_timeout(chat(revisions=never), [base()]) is None
    assert idle_timeout(chat(), [base("1s")]) == 10, "gateways need a moment to tell of a request"
    assert idle_timeout(chat(revisions=[revision("v1"), revision("v2", "v2")]), [base()]) == 1800
    assert idle_timeout(chat(revisions=[revision("v1"), revision("v2")]), [base()]) is None, "nothing to unload"
    assert idle_timeout(chat(), []) is None, "its base is not there"


def test_it_looks_again_when_the_time_is_over() -> None:
    assert planned(chat(), demand(said(1000), said(1500)))[1] == 800
    assert planned(chat(), demand(said(1799.9), said(4000)))[1] == 1.0
    assert planned(chat(), demand(said(1000), expected=2))[1] == 60.0


IDLE = known(idle_since=stamp(0), conditions=[condition("Ready", "True", "Idle")])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (demand(said(4000), said(4000)), "idle"),
        (demand(said(0, waiting=1), said(4000)), "waking"),
        (demand(said(0, waiting=1), expected=2), "waking"),
        (demand(said(10), said(4000)), "waking"),
        (demand(said(10, requests=0), said(4000)), "idle"),
        (demand(), "idle"),
        (demand(expected=2), "idle"),
    ],
)
def test_who_waits_or_was_served_wakes_it(asked: DemandView, expected: str) -> None:
    """A gateway that has only begun has seen no request, however short its time is."""
    status, _ = planned(chat(IDLE), asked, loaded=(), minutes=10)
    assert state(status) == expected


def test_a_use_that_was_told_before_is_none_since() -> None:
    """A gateway with nothing new to tell is 20 s behind."""
    asked = demand(said(12), said(4000))
    assert state(planned(chat(IDLE), asked, bases=base("10s"), loaded=(), minutes=0.4)[0]) == "idle"


def test_a_changed_spec_wakes_it() -> None:
    status, _ = planned(chat(IDLE, generation=2), demand(said(4000), said(4000)), loaded=())
    assert state(status) == "waking"


def test_waking_is_work_until_everything_is_there_and_gateways_know() -> None:
    waits = demand(said(0, waiting=3), said(4000))
    status, wait = planned(chat(IDLE), waits, loaded=(), minutes=10)
    assert (status.waking_since, wait) == (stamp(10), LOOK)
    assert conditions(status)["Ready"] == ("False", "Loading")
    assert conditions(status)["Reconciling"] == ("True", "Loading")
    assert conditions(status)["Available"] == ("True", "Available")
    assert {t.revision: t.weight for t in status.traffic} == {"v1": 90, "v2": 10}
    status, _ = planned(chat(status), waits, loaded=("v1",), minutes=11)
    assert status.waking_since == stamp(10)
    status, _ = planned(chat(status), waits, held=("v2",), minutes=11)
    assert (status.waking_since, conditions(status)["Ready"]) == (stamp(10), ("True", "Ready"))
    status, _ = planned(chat(status), waits, minutes=12)
    assert (state(status), conditions(status)["Ready"]) == ("awake", ("True", "Ready"))


def test_what_cannot_be_loaded_is_awake_and_broken() -> None:
    """Then nothing is held for it any more."""
    waking = chat(known(waking_since=stamp(0)))
    broken = pod("a", "v2", reports={"v1": failed("RankTooHigh", "rank 64")})
    situation = Situation(bases=(base(),), adapters=(pinned("v1"), pinned("v2")), deployments=(waking,), pods=(broken,))
    plan = plan_modeldeployment(replace(situation.deployment(), demand=demand(said(0, waiting=1))))
    assert isinstance(plan.status, ModelDeploymentStatus)
    assert state(plan.status) == "awake"
    assert conditions(plan.status)["Stalled"] == ("True", "RankTooHigh")


def test_an_idle_one_whose_pods_are_broken_says_so() -> None:
    status, _ = planned(chat(IDLE), QUIET, bases=base(), loaded=(), minutes=1)
    assert conditions(status)["Ready"] == ("True", "Idle")
    gone, _ = planned(chat(IDLE), QUIET, adapters=(pinned("v1"),), loaded=(), minutes=1)
    assert conditions(gone)["Stalled"] == ("True", "AdapterNotFound")


# -- full pools ----------------------------------------------------------------------------------------------------


def full(name: str) -> LoRAAdapterResource:
    told = LoRAAdapterStatus(conditions=[condition("Loaded", "False", "PoolFull")])
    return adapter(name, status=told)


def test_in_a_full_pool_what_serves_nothing_is_idle_at_once() -> None:
    """Then the next request asks for a place; before, nobody did."""
    fresh = chat(ModelDeploymentStatus())
    adapters = (full("v1"), full("v2"))
    status, _ = planned(fresh, demand(said(3, requests=0), said(3, requests=0)), adapters=adapters, loaded=())
    assert (state(status), status.reason) == ("idle", "Idle")
    for asked in (demand(said(3), expected=2), demand(said(0, waiting=1), said(3))):
        status, _ = planned(fresh, asked, adapters=adapters, loaded=())
        assert (state(status), conditions(status)["Stalled"]) == ("awake", ("True", "PoolFull"))
    status, _ = planned(fresh, QUIET, adapters=adapters, loaded=(), bases=base(None))
    assert state(status) == "awake"


def test_a_version_without_a_place_beside_one_that_serves_is_no_reason_to_idle() -> None:
    status, _ = planned(chat(), demand(said(3), said(3)), adapters=(pinned("v1"), full("v2")), loaded=("v1",))
    assert (state(status), conditions(status)["Stalled"]) == ("awake", ("True", "PoolFull"))


def test_waiting_in_vain_for_room_ends_in_idleness() -> None:
    adapters = (full("v1"), full("v2"))
    waking = chat(known(waking_since=stamp(0)))
    status, _ = planned(waking, demand(said(0, waiting=1), said(3)), adapters=adapters, loaded=(), minutes=1)
    assert (state(status), status.reason, has_no_room(chat(status))) == ("waking", "PoolFull", True)
    status, _ = planned(chat(status), demand(said(0), said(3)), adapters=adapters, loaded=(), minutes=1)
    assert (state(status), has_no_room(chat(status))) == ("idle", False)


def events(
    what: ModelDeploymentResource, asked: DemandView, *adapters: LoRAAdapterResource, **fields: Any
) -> list[str]:
    situation = Situation(bases=(base(),), adapters=adapters, deployments=(what,), now=at(1), **fields)
    told = plan_modeldeployment(replace(situation.deployment(), demand=asked)).events
    return [e.message for e in told if e.reason == "Idle"]


def test_that_nobody_asks_is_said_only_where_nobody_asked() -> None:
    """Who was refused for want of room did ask, and does again with each retry."""
    (words,) = events(chat(), QUIET, pinned("v1"), pinned("v2"), pods=(pod("a", "v1", "v2"),))
    assert words.startswith("nobody asks for it")
    refused = chat(
        known(waking_since=stamp(0), reason="PoolFull", conditions=[condition("Ready", "False", "PoolFull")])
    )
    for what in (refused, chat(ModelDeploymentStatus())):
        assert events(what, demand(said(3), said(3)), full("v1"), full("v2"), pods=(pod("a"),)) == []


def test_a_share_does_not_wait_for_room_for_ever_while_another_revision_serves() -> None:
    """Then it goes to stable, as ever."""
    adapters, waiting = (pinned("v1"), full("v2")), demand(said(0, waiting=1), said(3))
    waking = chat(known(waking_since=stamp(0)))
    status, _ = planned(waking, waiting, adapters=adapters, loaded=("v1",), minutes=0.4)
    assert (state(status), {t.revision: t.weight for t in status.traffic}) == ("waking", {"v1": 90, "v2": 10})
    status, _ = planned(waking, waiting, adapters=adapters, loaded=("v1",), minutes=0.6)
    assert (state(status), {t.revision: t.weight for t in status.traffic}) == ("awake", {"v1": 100, "v2": 0})


@pytest.mark.parametrize(
    "fields", [{"traffic": {"v1": 90, "v2": 10}}, {"traffic": {"v2": 100}, "rollout": STEPS}], ids=["Manual", "steps"]
)
def test_nobody_is_refused_for_want_of_room_while_another_revision_has_a_place(fields: dict[str, Any]) -> None:
    """Requests for the one that is being loaded would be refused with it."""
    rollout = RolloutStatus(phase="Progressing", stable="v1", candidate="v2", allowed={"v2": 10})
    waking = chat(known(waking_since=stamp(0), rollout=rollout), **fields)
    waiting = demand(said(0, waiting=1), said(3))
    for adapters, loaded, expected in (
        ((pinned("v1"), full("v2")), (), False),
        ((full("v1"), full("v2")), (), True),
        ((pinned("v1"), full("v2")), ("v1",), True),
    ):
        status, _ = planned(waking, waiting, adapters=adapters, loaded=loaded, minutes=0.1)
        assert (state(status), has_no_room(chat(status, **fields))) == ("waking", expected)


@pytest.mark.parametrize(("mode", "allowed"), [(None, None), (STEPS, {"v2": 1})])
def test_a_candidate_without_a_place_never_unloads_what_serves(mode: Any, allowed: dict[str, int] | None) -> None:
    """Stable takes what the candidate cannot, whatever the spec gives it."""
    rollout = RolloutStatus(phase="Progressing", stable="v1", candidate="v2", allowed=allowed)
    adapters, fields = (pinned("v1"), full("v2")), {"traffic": {"v2": 100}, "rollout": mode}
    for flying in (0.0, 12.0):
        live = demand(said(0, flying=flying), said(0))
        status, _ = planned(chat(known(rollout=rollout), **fields), live, adapters=adapters, loaded=("v1",))
        assert (state(status), status.traffic[0].weight) == ("awake", 100)
    waking = chat(known(rollout=rollout, waking_since=stamp(0)), **fields)
    status, _ = planned(waking, demand(said(0, waiting=3), said(3)), adapters=adapters, loaded=("v1",), minutes=0.6)
    assert (state(status), status.traffic[0].weight) == ("awake", 100), "nor keeps it waking"


def test_a_revision_that_hangs_is_awaited_for_a_while_only_when_stable_serves() -> None:
    """After an edit that wakes, a candidate that never loads would keep its share, and its rollout no deadline."""
    waiting = demand(said(0, waiting=3), said(3))
    waking = chat(known(waking_since=stamp(0)))
    for minutes, weights, expected in ((1.9, [90, 10], "waking"), (2.1, [100, 0], "awake")):
        status, _ = planned(waking, waiting, loaded=("v1",), minutes=minutes)
        assert (state(status), [t.weight for t in status.traffic]) == (expected, weights)
    assert state(planned(waking, waiting, loaded=("v2",), minutes=2.1)[0]) == "waking", "stable is awaited"
    still = planned(waking, waiting, loaded=("v1",), held=("v1",), minutes=2.1)[0]
    assert state(still) == "waking", "a gateway does not know yet that stable is there"


def test_nobody_waits_for_a_pool_without_pods() -> None:
    lora = LoRASettings(idle_timeout=TIMEOUT)
    none = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], lora=lora, replicas=0))
    waking = chat(known(waking_since=stamp(0)))
    situation = Situation(bases=(none,), adapters=(pinned("v1"), pinned("v2")), deployments=(waking,))
    plan = plan_modeldeployment(replace(situation.deployment(), demand=demand(said(0, waiting=1))))
    assert isinstance(plan.status, ModelDeploymentStatus)
    assert state(plan.status) == "awake"


def quiet_one(name: str, **fields: Any) -> ModelDeploymentResource:
    return deployment(name, revisions=[revision("v1", name)], status=known(**fields))


def plan_map(bases: BaseModelResource, deployments: tuple[ModelDeploymentResource, ...], *holders: str) -> Any:
    """The ConfigMap of a plan in which these have a place."""
    (pool,) = pools_of(bases, deployments)
    adapters = [PlannedAdapter(name=n, source=pinned(n).spec.source) for n in holders]
    plan = PoolPlan(pool=pool.name, base_model=bases.metadata.name, adapters=adapters)
    return child_of(children.pool_plan(pool, bases, plan, {}, None))


def making_room(
    asked: dict[str, float], *, waking: bool = True, places: int = 2, waiting: int = 1, **a: Any
) -> list[str] | None:
    """Whom the base of a pool with two places asks to go when `late` is wanted beside `a`, of this status, and `b`."""
    bases = base(places=places)
    late = quiet_one("late", waking_since=stamp(0) if waking else None)
    deployments = (quiet_one("a", **a), quiet_one("b"), late)
    situation = Situation(
        bases=(bases,),
        adapters=tuple(pinned(n) for n in ("a", "b", "late")),
        deployments=deployments,
        children=(plan_map(bases, deployments, "a", "b"),),
        now=T0,
    )
    told = {name: said(idle) for name, idle in asked.items()} | {"late": said(0, waiting=waiting, requests=0)}
    plan = plan_basemodel(replace(situation.base_model(), demand=demand(told, told)))
    assert plan.status is not None
    return plan.status.pools[0].makes_room  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"a": 1000, "b": 1100}, ["b"]),
        ({"a": 1100, "b": 1000}, ["a"]),
        ({"a": 899, "b": 1000}, ["b"]),
        ({"a": 899, "b": 800}, None),
        ({"b": 899}, None),
    ],
)
def test_the_longest_unasked_makes_room_past_half_its_timeout(asked: dict[str, float], expected: list[str]) -> None:
    assert making_room(asked) == expected


@pytest.mark.parametrize(
    "a",
    [
        {"conditions": [condition("Ready", "False", "EngineCrashed")]},
        {"observed_generation": 0},
        {"rollout": RolloutStatus(stable="v1", allowed={"v0": 5})},
    ],
)
def test_who_cannot_go_is_not_asked_in_place_of_one_that_can(a: dict[str, Any]) -> None:
    """However long nobody has asked for it: it would stand in the way for as long as it cannot."""
    assert making_room({"a": 9000, "b": 1700}, **a) == ["b"]


def test_nobody_makes_room_for_what_nobody_waits_for() -> None:
    assert making_room({"a": 1000, "b": 1100}, waking=False) is None
    assert making_room({"a": 1000, "b": 1100}, places=3) is None
    assert making_room({"a": 1000, "b": 1100}, waiting=0) is None, "its clients have gone, or an edit woke it"


@pytest.mark.parametrize(
    ("idle", "timeout", "expected"),
    [(1000, "30m", "idle"), (899, "30m", "awake"), (59, "90s", "awake"), (61, "90s", "idle")],
)
def test_who_is_asked_to_make_room_goes_if_it_still_may(idle: float, timeout: str, expected: str) -> None:
    """Not within a minute of its last request, whatever the timeout is."""
    told = BaseModelStatus(pools=[PoolStatus(name="smollm2", makes_room=["chat"])])
    status, _ = planned(chat(), demand(said(idle), said(idle)), bases=base(timeout, status=told))
    assert state(status) == expected


# -- the pool's plan and the adapters ------------------------------------------------------------------------------


def placed(*deployments: ModelDeploymentResource, bases: BaseModelResource, holders: tuple[str, ...] = ()) -> set[str]:
    """The adapters of the plan after one that had `holders`."""
    situation = Situation(bases=(bases,), adapters=tuple(pinned(n) for n in ("a", "b", "c")), deployments=deployments)
    (pool,) = pools_of(bases, deployments)
    before = plan_map(bases, deployments, *holders)
    wanted = children.pool_deployment(pool, bases, situation.settings)
    return {a.name for a in wanted_plan(situation.base_model(), pool, before, wanted).plan.adapters}


def test_idle_adapters_leave_the_plan_at_once_and_take_no_room() -> None:
    idle = quiet_one("a", idle_since=stamp(0))
    others = (quiet_one("b"), quiet_one("c"))
    assert placed(idle, *others, bases=base(), holders=("a", "b")) == {"b", "c"}
    assert placed(idle, *others, bases=base(places=2), holders=("a", "b")) == {"b", "c"}
    also = deployment("also", revisions=[revision("v1", "a")])
    assert placed(idle, also, bases=base(), holders=("a",)) == {"a"}, "another deployment still wants it"
    assert placed(also, bases=base(), holders=("a", "b")) == {"a", "b"}, "nothing refers to b: it has its grace"


def test_copies_do_not_follow_who_sleeps() -> None:
    """A pool grows copies only into room that those that sleep do not need: else each of them that wakes moves all."""
    names = [f"a{number:02}" for number in range(12)]
    lora = LoRASettings(max_cpu_loras=10, idle_timeout=TIMEOUT)
    bases = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], lora=lora, replicas=4))
    found: list[int | None] = []
    for awake in (12, 9, 12):
        deployments = tuple(quiet_one(n, idle_since=stamp(0) if i >= awake else None) for i, n in enumerate(names))
        (pool,) = pools_of(bases, deployments)
        before = PoolPlan(pool=pool.name, base_model=bases.metadata.name, copies=found[-1] if found else 2)
        config_map = child_of(children.pool_plan(pool, bases, before, {}, None))
        situation = Situation(bases=(bases,), adapters=tuple(pinned(n) for n in names), deployments=deployments)
        wanted = children.pool_deployment(pool, bases, situation.settings)
        plan = wanted_plan(situation.base_model(), pool, config_map, wanted).plan
        (told,) = places(bases, deployments, situation.adapters, [config_map])
        assert told.copies == plan.copies, "adapters are told the same"
        found.append(plan.copies)
    assert found == [2, 2, 2]


def test_a_place_goes_to_whom_requests_wait_for() -> None:
    """Though it was created last."""
    waking = quiet_one("c", waking_since=stamp(0))
    assert placed(quiet_one("a"), quiet_one("b"), waking, bases=base(places=2), holders=("b",)) == {"b", "c"}


def test_what_an_idle_adapter_says() -> None:
    told = LoRAAdapterStatus(
        digest=pinned("a").status.digest, rank=8, conditions=[condition("Compatible", "True", "Compatible")]
    )
    situation = Situation(
        bases=(base(),),
        adapters=(adapter("a", status=told),),
        deployments=(quiet_one("a", idle_since=stamp(0)),),
        pods=(pod("p"),),
    )
    status: Any = plan_loraadapter(situation.adapter("a")).status
    assert conditions(status) == {
        "Ready": ("True", "Idle"),
        "Resolved": ("True", "Resolved"),
        "Compatible": ("True", "Compatible"),
        "Loaded": ("False", "Idle"),
    }
    assert (status.loaded, status.rank, status.used_by) == ("0/0", 8, ["a"])


# -- what gateways read --------------------------------------------------------------------------------------------


def test_requests_are_held_for_adapters_of_idle_and_waking_deployments_only() -> None:
    mixed = [revision("plain"), revision("v2", "v2")]
    for status, expected in (
        (known(), set()),
        (known(idle_since=stamp(0)), {"v2"}),
        (known(waking_since=stamp(0)), {"v2"}),
    ):
        assert held_on_demand(chat(status, revisions=mixed, traffic={"plain": 50, "v2": 50})) == expected
