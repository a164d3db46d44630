"""Who is rejected while nobody else can serve: what it keeps, for how long, and what never comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.toyworld.gates import SPEED, measured
from tests.toyworld.rollouts import WHOLE, RolloutWorld, canary, later, rejected
from tests.unit.planning.test_rollout_analysis import judged_world, look
from tuneyard.planning.evidence import Tally

pytestmark = pytest.mark.lasting


def baking_world() -> RolloutWorld:
    """v2 has all traffic, and bakes."""
    world = judged_world()
    world.spec(WHOLE, bakeTime="1h")
    world.command("promote", "v2")
    world.settle()
    return world


def serving_on(traffic: dict[str, int], **rollout: object) -> RolloutWorld:
    """v2 has what the steps give it after the first, and is rejected while v1 has no pod."""
    world = canary(traffic, **rollout)
    later(world, 5)
    world.ready["v1"] = False
    world.settle()
    world.command("abort", "v2", id_="off")
    world.settle()
    assert [name for name, _ in rejected(world)] == ["v2"]
    return world


@pytest.mark.parametrize("how", ["answers", "abort", "abort in mode Manual"])
def test_who_is_rejected_serves_on_while_stable_has_no_pod(how: str):
    """Otherwise some bad answers would become none at all."""
    manual = how == "abort in mode Manual"
    world = canary({"v1": 50, "v2": 50}, mode="Manual") if manual else baking_world()
    served = world.weights["v2"]
    world.ready["v1"] = False
    world.settle()
    if how == "answers":
        look(world, {"v2": Tally(100, 1, 1)}, looks=20, seconds=6)
        look(world, {"v2": Tally(100, 60, 56, 4)}, looks=8, seconds=6)
    else:
        world.command("abort", "v2", id_="off")
        world.settle()
        assert world.status.last_command is not None
        assert "serves on until v1 has a ready pod" in world.status.last_command.message
    assert [name for name, _ in rejected(world)] == ["v2"]
    assert world.weights == {"v2": served}
    assert world.conditions["Stalled"] == ("True", "CandidateRejected")
    said = next(e.message for e in reversed(world.events) if e.reason.value == "RolledBack")
    assert said.startswith("v2 is rejected, and it serves on until v1 has a ready pod; weight 0 stops it at once: ")
    world.ready["v1"] = True
    world.settle()
    assert world.weights == {"v1": 100}
    world.ready["v1"] = False
    world.settle()
    assert world.weights == {}, "what was taken away does not come back"


def test_weight_0_stops_who_is_rejected_and_serves_on():
    world = baking_world()
    world.ready["v1"] = False
    world.command("abort", "v2", id_="off")
    world.settle()
    assert world.weights == {"v2": 100}
    world.spec({"v1": 100, "v2": 0})
    assert world.routes().weights["v2"] == 0, "gateways do that by themselves"
    world.settle()
    assert world.weights == {}


@pytest.mark.parametrize("lost", [RolloutWorld.lose_status, RolloutWorld.recreate])
@pytest.mark.parametrize("mode", ["Manual", "Progressive"])
def test_what_was_taken_away_does_not_come_back_with_a_lost_status(
    lost: Callable[[RolloutWorld], None], mode: str
) -> None:
    world = canary({"v1": 50, "v2": 50}, mode=mode)
    world.command("abort", "v2")
    world.settle()
    world.ready["v1"] = False
    world.settle()
    lost(world)
    world.settle()
    assert [name for name, _ in rejected(world)] == ["v2"]
    assert world.weights == {}


@pytest.mark.parametrize("mode", ["Manual", "Progressive"])
def test_it_never_gets_more_than_it_had(mode: str) -> None:
    world = serving_on({"v1": 90, "v2": 10}, mode=mode)
    assert world.weights == {"v2": 10}
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    assert world.weights == {"v2": 10}
    world.spec({"v1": 0, "v2": 100}, mode="Manual")
    world.settle()
    assert world.weights == {"v2": 10}
    world.spec({"v1": 95, "v2": 5})
    world.settle()
    assert world.weights == {"v2": 5}


def test_it_keeps_that_also_when_its_own_pod_is_away_for_a_moment() -> None:
    world = serving_on(WHOLE)
    assert world.weights == {"v2": 25}
    world.ready["v2"] = False
    world.settle()
    assert world.weights == {}
    world.ready["v2"] = True
    world.settle()
    assert world.weights == {"v2": 25}


def test_the_same_contents_under_another_name_serve_nothing() -> None:
    world = serving_on(WHOLE)
    world.editions["v3"] = world.fetched["v3"] = 0
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 50, "v3": 50})
    world.settle()
    assert world.weights.get("v2", 0) <= 25 and "v3" not in world.weights, "no step without stable"


@pytest.mark.parametrize("how", ["command", "token"])
def test_a_retry_begins_again(how: str) -> None:
    world = serving_on(WHOLE)
    if how == "command":
        world.command("retry", "v2", id_="again")
    else:
        world.spec(WHOLE, retryToken="again")
    world.settle()
    assert (world.status.position, world.weights) == ("0/2", {"v2": 5})
    world.ready["v1"] = True
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}


def test_a_retry_has_its_gates_run_again() -> None:
    world = canary(gates=[SPEED])
    world.gates.end(measured(105))
    world.settle()
    later(world, 5)
    world.ready["v1"] = False
    world.command("abort", "v2", id_="off")
    world.settle()
    assert world.weights == {"v2": 25}
    world.wait(1)
    world.command("retry", "v2", id_="again")
    world.settle()
    assert (world.status.phase, world.weights) == ("Gating", {})
    world.ready["v1"] = True
    world.settle()
    assert (len(world.gates.made), world.weights) == (2, {"v1": 100})
