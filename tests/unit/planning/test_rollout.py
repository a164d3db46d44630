"""Rollouts by steps and time: each test is a story told to plans, with the weights that gateways would serve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import T0, at, child_of, stamp
from tests.toyworld.rollouts import WHOLE, RolloutWorld, canary, finished, later, reasons, rejected
from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.plan import Apply, Delete
from tuneyard.planning.rolloutrecord import RECORD_SECONDS, plan_orphan, record_of

# -- steps ------------------------------------------------------------------------------------------------------------


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


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_files_that_no_pod_can_load_are_a_verdict_at_once():
    world = RolloutWorld()
    world.broken["v2"] = Reason.NON_FINITE_VALUES
    world.spec(WHOLE)
    world.settle()
    assert rejected(world) == [("v2", "NonFiniteValues")]
    assert world.weights == {"v1": 100}
    assert world.status.allowed == {"v2": 0}
    assert world.now.status.to_dict()["rollout"]["allowed"] == {"v2": 0}, "a zero is written"
    assert world.conditions["Stalled"] == ("True", "CandidateRejected")
    assert world.conditions["Available"] == ("True", "Available")
    withheld = next(t.withheld or "" for t in world.now.status.traffic if t.revision == "v2")
    assert withheld.startswith("CandidateRejected")
    assert "RolledBack" in reasons(world)


def test_own_pods_that_keep_crashing_are_a_verdict_and_a_shared_pool_s_are_not():
    world = RolloutWorld(own={"v2"})
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}
    world.crashing.add("v2")
    world.settle()
    assert rejected(world) == [("v2", "EngineCrashed")]
    assert "OOMKilled" in (world.status.verdicts or [])[0].evidence


def test_the_deadline_runs_only_while_stable_has_pods_and_the_candidate_none():
    world = RolloutWorld()
    world.spec(WHOLE)
    world.settle()
    assert (world.status.waiting_since, world.plan.requeue_after) == (stamp(0), 1200)
    world.ready["v1"] = False
    later(world, 60)
    assert (world.status.waiting_since, rejected(world)) == (None, [])
    world.ready["v1"] = True
    later(world, 0)
    later(world, 19)
    assert rejected(world) == []
    later(world, 1)
    assert rejected(world) == [("v2", "ProgressDeadlineExceeded")]


def test_a_missing_adapter_gets_no_verdict_and_no_hot_loop():
    world = RolloutWorld()
    world.spec(WHOLE)
    world.settle()
    world.wait(60)
    seen = world.situation()
    plan = plan_modeldeployment(replace(seen, adapters=seen.adapters[:1]).deployment())
    assert isinstance(plan.status, ModelDeploymentStatus)
    assert plan.status.rollout is not None
    assert plan.status.rollout.verdicts is None
    assert plan.requeue_after is None


def test_the_next_candidate_does_not_wait_for_a_rejected_one():
    world = RolloutWorld()
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.spec(WHOLE)
    world.settle()
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    assert (world.status.stable, world.status.candidate, world.weights) == ("v1", "v3", {"v1": 95, "v3": 5})
    assert rejected(world) == [("v2", "LoadRefused")]
    later(world, 5)
    later(world, 10)
    assert (world.status.stable, world.weights) == ("v3", {"v3": 100})
    world.spec({"v1": 0, "v2": 50, "v3": 50})
    world.settle()
    assert world.weights == {"v3": 100}, "no later candidate lets a rejected one in"


def test_a_newer_candidate_leaves_the_older_one_where_it_is():
    world = canary({"v1": 50, "v2": 50})
    world.ready["v3"] = True
    world.spec({"v1": 50, "v2": 25, "v3": 25})
    world.settle()
    assert world.status.candidate == "v3"
    assert world.weights == {"v1": 90, "v2": 5, "v3": 5}
    world.broken["v3"] = Reason.LOAD_REFUSED
    world.settle()
    assert (world.status.candidate, world.weights) == ("v2", {"v1": 95, "v2": 5})
    assert later(world, 5).step == 1


def broken_canary() -> RolloutWorld:
    world = canary()
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.settle()
    assert rejected(world) == [("v2", "LoadRefused")]
    del world.broken["v2"]
    world.settle()
    return world


@pytest.mark.parametrize(
    ("what", "stays"),
    [
        (lambda w: w.lose_status(), True),
        (lambda w: w.recreate(), True),
        (lambda w: w.spec({"v1": 10, "v2": 90}), True),
        (lambda w: w.wait(100_000), True),
        (lambda w: w.spec(WHOLE, mode="Manual"), True),
        (lambda w: w.spec(WHOLE, retryToken="again"), False),
        (lambda w: w.editions.update({"v2": 1}), False),
        (lambda w: w.command("retry", "v2"), False),
    ],
    ids=["lost status", "re-created", "weights", "time", "Manual", "token", "contents", "command"],
)
def test_what_clears_a_verdict_and_what_does_not(what: Any, stays: bool):
    world = broken_canary()
    what(world)
    world.settle()
    assert rejected(world) == ([("v2", "LoadRefused")] if stays else [])
    if stays:
        assert world.weights == {"v1": 100}


def test_a_verdict_goes_with_the_revision_and_a_token_counts_once():
    world = broken_canary()
    world.spec({"v1": 100})
    world.settle()
    assert rejected(world) == []
    world = broken_canary()
    world.spec(WHOLE, retryToken="again")
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.settle()
    assert rejected(world) == [("v2", "LoadRefused")]
    world.spec({"v1": 1, "v2": 99}, retryToken=None)
    world.settle()
    assert rejected(world) == [("v2", "LoadRefused")]


def test_a_rejected_revision_that_is_alone_serves_nobody_and_says_so():
    world = broken_canary()
    world.spec({"v2": 100})
    world.settle()
    assert world.weights == {}
    assert world.conditions["Available"] == ("False", "CandidateRejected")
    assert world.status.stable == "v1", "who was stable is not forgotten"
    world.gateway("g1")
    assert world.views["g1"].unserved == 100
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 100}


def test_what_replaces_a_stable_revision_that_was_removed_is_not_a_candidate():
    world = canary()
    world.spec({"v2": 100})
    world.gateway("g1")
    assert world.views["g1"].weights == {"v2": 100}
    world.settle()
    assert (world.status.phase, world.status.stable) == ("Completed", "v2")


# -- what outlives the object -----------------------------------------------------------------------------------------


def test_the_position_is_not_kept_beyond_the_status_and_who_was_stable_is():
    world = canary()
    later(world, 5)
    assert world.weights == {"v1": 75, "v2": 25}
    world.recreate()
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}
    world = finished()
    world.recreate()
    world.settle()
    assert (world.status.stable, world.weights) == ("v2", {"v2": 100})


def test_the_record_is_written_after_the_status_and_only_when_it_differs():
    world = canary()
    record = record_of(world.record)
    assert record is not None
    assert record.stable is not None
    assert (record.deployment, record.stable.revision, record.verdicts) == ("chat", "v1", [])
    world.broken["v2"] = Reason.LOAD_REFUSED
    first = world.reconcile()
    assert (first.actions, first.requeue_after) == ((), 0.0), "weight goes down before anything else is written"
    (written,) = world.reconcile().actions
    assert isinstance(written, Apply)
    assert written.object["metadata"]["name"] == "chat-verdicts"
    assert world.reconcile().actions == ()


def test_a_manual_deployment_has_no_record_until_there_is_something_to_keep():
    world = RolloutWorld(rollout={})
    world.ready["v2"] = True
    world.spec({"v1": 90, "v2": 10})
    world.settle()
    assert world.record is None
    assert world.weights == {"v1": 90, "v2": 10}
    world.command("abort", "v2")
    world.settle()
    assert world.weights == {"v1": 100}
    world.recreate()
    world.settle()
    assert (rejected(world), world.weights) == ([("v2", "Aborted")], {"v1": 100})
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 100}, "Manual: the spec unless there is a verdict"


def test_the_record_goes_a_week_after_the_deployment():
    world = canary()
    assert world.record is not None
    (marked,) = plan_orphan(world.record, T0).actions
    assert isinstance(marked, Apply)
    assert marked.object["metadata"]["annotations"][names.ANNOTATION_UNUSED_SINCE] == stamp(0)
    assert "ownerReferences" not in marked.object["metadata"]
    waiting = child_of(marked.object)
    assert plan_orphan(waiting, at(60)).requeue_after == RECORD_SECONDS - 3600
    (gone,) = plan_orphan(waiting, at(7 * 24 * 60)).actions
    assert isinstance(gone, Delete)
    assert (gone.name, gone.uid) == ("chat-verdicts", waiting.uid)
    world.record = waiting
    world.settle()
    assert names.ANNOTATION_UNUSED_SINCE not in world.record.annotations, "a new deployment takes it up"


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
