"""When a deployment's adapters are unloaded, when they are loaded again, and what is said of it meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import VOLUME, Situation, base_model, failed, pinned, pod, revision, stamp
from tests.unit.planning.sleepers import (
    QUIET,
    STEPS,
    TIMEOUT,
    base,
    chat,
    condition,
    conditions,
    demand,
    known,
    planned,
    said,
    state,
)
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.demand import DemandView
from tuneyard.planning.idling import LOOK, held_on_demand, idle_timeout
from tuneyard.planning.modeldeployment import plan_modeldeployment


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


@pytest.mark.parametrize(("timeout", "soon"), [("10s", 10.0), ("5m", 60.0)])
def test_what_no_gateway_tells_of_yet_is_looked_at_again_within_its_timeout(timeout: str, soon: float) -> None:
    """Nothing else may ever come of it: gateways send a report of their own only when somebody waits."""
    assert planned(chat(), demand(said(4000), {}), bases=base(timeout))[1] == soon
    assert planned(chat(known(observed_generation=0)), demand({}), bases=base(timeout))[1] == soon


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


def test_requests_are_held_for_adapters_of_idle_and_waking_deployments_only() -> None:
    mixed = [revision("plain"), revision("v2", "v2")]
    for status, expected in (
        (known(), set()),
        (known(idle_since=stamp(0)), {"v2"}),
        (known(waking_since=stamp(0)), {"v2"}),
    ):
        assert held_on_demand(chat(status, revisions=mixed, traffic={"plain": 50, "v2": 50})) == expected
