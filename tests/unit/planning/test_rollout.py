"""Rollouts by steps and time: each test is a story told to plans, with the weights that gateways would serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import stamp
from tests.toyworld.rollouts import GATEWAYS, WHOLE, RolloutWorld, canary, finished, hashes, later, reasons
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.planning.modeldeployment import plan_modeldeployment


def test_a_candidate_climbs_by_steps_and_takes_over():
    world = canary()
    assert world.weights == {"v1": 95, "v2": 5}
    assert world.status.to_dict() == {
        "phase": "Progressing",
        "stable": "v1",
        "stableSince": stamp(0),
        "candidate": "v2",
        "weight": 5,
        "target": 100,
        "step": 0,
        "position": "0/2",
        "stepStartedAt": stamp(0),
        "allowed": {"v2": 5},
        "contents": hashes(world),
        "history": [world.status.history[0].to_dict()],  # type: ignore[index]
    }
    assert world.plan.requeue_after == 300
    assert world.conditions["Reconciling"] == ("True", "Progressing")
    later(world, 4)
    assert world.weights == {"v1": 95, "v2": 5}
    later(world, 1)
    assert world.weights == {"v1": 75, "v2": 25}
    assert world.plan.requeue_after == 600
    later(world, 10)
    assert world.weights == {"v2": 100}
    assert (world.status.phase, world.status.stable, world.status.candidate) == ("Completed", "v2", None)
    assert world.status.allowed == {"v1": 100}, "going back to what was stable needs no steps"
    assert world.conditions["Ready"] == ("True", "Ready")
    assert reasons(world) == ["Progressing", "StepCompleted", "StepCompleted", "Promoted"]
    assert [(o.revision, o.outcome) for o in world.status.history or ()] == [("v1", "Stable"), ("v2", "Stable")]


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        ({"v1": 100, "v2": 0}, "v1"),  # a canary that is prepared, and gets nothing yet
        ({"v1": 0, "v2": 100}, "v2"),  # a candidate, of whose steps nothing is known any more
    ],
)
def test_of_those_that_traffic_names_the_older_one_is_stable_first(weights: dict[str, int], first: str) -> None:
    world = RolloutWorld(ready={"v1": True, "v2": True})
    world.stored = world.record = None
    world.spec(weights)
    world.settle()
    assert world.status.stable == "v1"
    assert world.weights == ({"v1": 100} if first == "v1" else {"v1": 95, "v2": 5})


def test_a_hold_begins_when_every_gateway_serves_the_weight():
    world = RolloutWorld()
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.reconcile()
    world.gateway("g1")
    world.reconcile()
    world.wait(60)
    world.reconcile()
    assert (world.status.step, world.status.step_started_at) == (0, None), "g2 has not said that it serves 5 %"
    world.gateway("g2")
    world.reconcile()
    assert world.status.step_started_at == stamp(60)


def test_the_spec_weight_is_the_ceiling_at_every_step():
    world = canary({"v1": 90, "v2": 10})
    later(world, 5)
    assert world.weights == {"v1": 90, "v2": 10}
    assert world.conditions["Ready"] == ("True", "Ready"), "it has what the spec gives it"
    later(world, 600)
    assert (world.status.phase, world.status.stable, world.status.position) == ("Progressing", "v1", "1/2")
    world.spec({"v1": 50, "v2": 50})
    world.settle()
    assert world.weights == {"v1": 75, "v2": 25}, "up by one step, and its hold begins again"
    later(world, 9)
    assert world.weights == {"v1": 75, "v2": 25}
    later(world, 1)
    assert world.weights == {"v1": 50, "v2": 50}
    world.spec({"v1": 98, "v2": 2})
    world.settle()
    assert world.weights == {"v1": 98, "v2": 2}, "down at once"


def test_gateways_give_a_candidate_nothing_that_the_operator_has_not_allowed():
    world = RolloutWorld()
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.gateway("g1")
    assert world.views["g1"].weights == {"v1": 100, "v2": 0}
    world.lose_status()
    world.gateway("g1")
    assert world.views["g1"].weights == {"v1": 100, "v2": 0}, "nor when the status is lost"


def test_a_spec_that_goes_back_is_followed_without_the_operator_and_without_steps():
    world = finished()
    world.spec({"v1": 100, "v2": 0})
    world.gateway("g1")
    assert world.views["g1"].weights == {"v1": 100, "v2": 0}
    world.settle()
    assert (world.status.phase, world.status.stable) == ("Completed", "v1")
    assert world.status.verdicts is None


def test_what_was_rejected_after_it_had_been_stable_begins_with_steps_again():
    world = finished()
    world.spec({"v1": 99, "v2": 1})
    world.settle()
    assert (world.status.candidate, world.weights) == ("v1", {"v1": 99, "v2": 1})
    world.command("abort", "v1")
    world.settle()
    assert world.weights == {"v2": 100}
    world.command("retry", "v1", id_="two")
    world.settle()
    assert world.weights == {"v1": 5, "v2": 95}


def test_a_candidate_that_was_taken_back_begins_anew():
    world = canary()
    later(world, 5)
    world.spec({"v1": 100, "v2": 0})
    world.settle()
    assert (world.status.phase, world.status.allowed) == ("Completed", {})
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}


def test_without_pods_of_stable_no_step_is_taken():
    world = canary()
    world.ready["v1"] = False
    later(world, 60)
    assert world.weights == {"v2": 5}
    assert world.status.step == 0
    assert world.conditions["Available"] == ("False", "StableNotReady")
    world.ready["v1"] = True
    assert later(world, 0).step == 1


def test_a_hold_begins_again_when_the_candidate_loses_its_pods():
    world = canary()
    world.wait(3)
    world.ready["v2"] = False
    world.settle()
    assert world.weights == {"v1": 100}
    assert (world.status.step_started_at, world.status.waiting_since) == (None, stamp(3))
    world.ready["v2"] = True
    later(world, 1)
    assert (world.status.step_started_at, world.status.waiting_since) == (stamp(4), None)


@pytest.mark.parametrize(
    ("steps", "weight"),
    [
        ([{"weight": 1}], 100),
        ([{"weight": 5, "hold": "1h"}, {"weight": 50}], 5),
        ([{"weight": 1, "hold": "1h"}, {"weight": 50}], 1),
        ([{"weight": 10, "hold": "1h"}], 10),
    ],
)
def test_steps_that_are_edited_on_the_way_are_found_by_weight(steps: list[dict[str, Any]], weight: int):
    world = canary()
    world.spec(WHOLE, steps=steps)
    world.settle()
    assert world.weights.get("v2") == weight


def test_bake_time_keeps_the_way_back():
    world = finished(bakeTime="1h")
    assert (world.status.phase, world.status.stable, world.weights) == ("Baking", "v1", {"v2": 100})
    assert world.conditions["Reconciling"] == ("True", "Baking")
    assert world.plan.requeue_after == 3600
    world.broken["v2"] = Reason.LOAD_REFUSED
    later(world, 30)
    assert (world.status.phase, world.weights) == ("RolledBack", {"v1": 100})
    assert later(finished(bakeTime="1h"), 60).stable == "v2"


def test_paused_in_the_spec_stops_the_steps_and_nothing_else():
    world = canary(paused=True)
    assert (world.status.phase, world.weights) == ("Paused", {"v1": 95, "v2": 5})
    assert world.conditions["Ready"] == ("False", "Paused")
    later(world, 60)
    assert world.status.step == 0
    world.broken["v2"] = Reason.NON_FINITE_VALUES
    later(world, 0)
    assert (world.status.phase, world.weights) == ("RolledBack", {"v1": 100})


def test_a_new_deployment_begins_with_what_its_traffic_names():
    world = RolloutWorld()
    world.stored, world.record = None, None
    world.ready = {"v1": True, "v2": True, "base": True}
    world.spec({"v1": 100}, listed=["base", "v1"])
    world.settle()
    assert (world.status.stable, world.weights) == ("v1", {"v1": 100}), "base can be asked for, and takes nothing"
    world.stored, world.record = None, None
    world.spec(WHOLE)
    world.settle()
    assert (world.status.stable, world.weights) == ("v1", {"v1": 95, "v2": 5}), "a new object begins at step 0"


@pytest.mark.parametrize("silent", ["step", "bake"])
def test_a_hold_does_not_end_while_a_gateway_is_silent(silent: str):
    world = canary(bakeTime="30m") if silent == "step" else finished(bakeTime="30m")
    world.wait(31)
    before = world.status
    seen = replace(world.situation(), applied=(), unreachable=GATEWAYS)
    dark = plan_modeldeployment(seen.deployment()).status
    assert isinstance(dark, ModelDeploymentStatus)
    assert dark.rollout is not None
    assert (dark.rollout.stable, dark.rollout.allowed) == (before.stable, before.allowed)
    assert dark.rollout.step_started_at == before.step_started_at, "what was held counts"
    world.settle()
    assert (world.status.stable, world.status.allowed) != (before.stable, before.allowed)
