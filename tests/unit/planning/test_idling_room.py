"""Full pools: who waits for a place, for how long, and who goes early to make one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import T0, Situation, adapter, at, pinned, pod, stamp
from tests.unit.planning.sleepers import (
    QUIET,
    STEPS,
    base,
    chat,
    condition,
    conditions,
    demand,
    known,
    plan_map,
    planned,
    quiet_one,
    said,
    state,
)
from tuneyard.api.basemodel import BaseModelStatus, PoolStatus
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.demand import DemandView
from tuneyard.planning.idling import has_no_room
from tuneyard.planning.modeldeployment import plan_modeldeployment


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
