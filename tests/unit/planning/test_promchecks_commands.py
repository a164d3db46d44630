"""Checks of Prometheus, and what people order meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.toyworld.rollouts import WHOLE, rejected
from tests.unit.planning.test_promchecks import (
    answered,
    checked_world,
    evaluate,
)
from tests.unit.planning.test_rollout_analysis import BAD, GOOD
from tuneyard.api.reasons import Reason
from tuneyard.planning.evidence import Objective
from tuneyard.planning.promqueries import under_way

pytestmark = pytest.mark.lasting


def test_a_command_asks_for_no_check():
    world = checked_world()
    world.spec(WHOLE, bakeTime="10m")
    evaluate(world, 0.3, 0.3)
    world.command("promote", "v2")
    evaluate(world, 0.3, "timeout", counted={"v2": GOOD["v2"]})
    assert (world.weights, world.status.phase) == ({"v2": 100}, "Baking")
    evaluate(world, *["timeout"] * 20, counted={"v2": GOOD["v2"]})
    assert world.status.stable == "v2" and rejected(world) == []


def test_an_old_command_that_is_refused_while_it_bakes_brings_no_check_back():
    world = checked_world()
    world.spec(WHOLE, bakeTime="10m")
    world.command("pause", id_="old")
    world.settle()
    world.command("promote", "v2")
    evaluate(world, 0.3, counted={"v2": GOOD["v2"]})
    world.command("pause", id_="old")
    evaluate(world, *[0.3] * 5, counted={"v2": GOOD["v2"]})
    assert answered(world)[1] is False
    assert (world.status.phase, rejected(world)) == ("Baking", [])


@pytest.mark.parametrize("since", ["a higher weight", "other contents", "a retry"])
def test_a_command_of_before_the_steps_asks_for_checks(since: str):
    world = checked_world()
    world.spec({"v1": 90, "v2": 10} if since == "a higher weight" else WHOLE, bakeTime="10m")
    world.settle()
    world.command("promote", "v2")
    evaluate(world, 0.1)
    if since == "other contents":
        world.replace("v2")
    elif since == "a retry":
        world.broken["v2"] = Reason.LOAD_REFUSED
        world.settle()
        assert rejected(world) == [("v2", "LoadRefused")]
        del world.broken["v2"]
    world.spec(WHOLE, retryToken="again")
    world.settle()
    evaluate(world, *[0.1] * 36)
    assert world.status.phase == "Baking"
    assert answered(world)[0] == "promote"
    assert under_way(world.now)
    evaluate(world, *[0.3] * 3, counted={"v2": GOOD["v2"]})
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_below_all_traffic_a_command_leaves_checks_as_they_are():
    world = checked_world()
    world.spec({"v1": 60, "v2": 40})
    world.settle()
    world.command("promote", "v2")
    evaluate(world, 0.1)
    assert world.weights == {"v1": 60, "v2": 40} and under_way(world.now)
    evaluate(world, *[0.3] * 3)
    assert rejected(world) == [("v2", "AnalysisFailed")]


@pytest.mark.parametrize("by", ["command", "retryToken"])
@pytest.mark.parametrize("why", ["check", "answers"])
def test_a_retry_before_the_next_pass_is_not_rejected_by_the_old_evidence(by: str, why: str):
    world = checked_world()
    evaluate(world, *[0.3 if why == "check" else 0.1] * 2)
    for gateway in world.counting.values():
        for name, tally in (GOOD if why == "check" else BAD).items():
            gateway.count(name, tally, Objective.ERROR_RATE)
    world.clock += timedelta(seconds=30)
    world.asking.evaluate(world.now, world.clock)
    for _ in range(9):
        world.reconcile()
        if rejected(world):
            break
    assert rejected(world) == [("v2", "AnalysisFailed")]
    world.clock += timedelta(seconds=1)
    if by == "command":
        world.command("retry", "v2")
    else:
        world.spec(WHOLE, retryToken="again")
    world.settle()
    assert (rejected(world), world.weights) == ([], {"v1": 95, "v2": 5})
    evaluate(world, *[0.3] * 3)
    assert rejected(world) == [("v2", "AnalysisFailed")], "it is judged by what comes from then on"
