"""Verdicts: what gives one, what clears it, and what is left of it when the deployment is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import T0, Situation, at, child_of, deployment, stamp
from tests.toyworld.rollouts import WHOLE, RolloutWorld, canary, finished, later, reasons, rejected
from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus, Verdict
from tuneyard.planning.children import template_hash
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import PodObservation, Problem
from tuneyard.planning.plan import Apply, Delete
from tuneyard.planning.pools import pool_for
from tuneyard.planning.rolloutrecord import RECORD_SECONDS, plan_orphan, record_of, takes_away
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.verdicts import waiting_since

pytestmark = pytest.mark.lasting


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


def test_pods_of_what_had_the_name_before_are_no_verdict_on_what_has_it_now(monkeypatch: pytest.MonkeyPatch):
    """A revision that crashed is taken out, and another one gets its name before its pods are gone."""
    world = RolloutWorld(own={"v2"})
    world.crashing.add("v2")
    made: list[str] = []
    pods = RolloutWorld._pods

    def observed(world: RolloutWorld, deployed: ModelDeploymentResource) -> list[PodObservation]:
        return [replace(p, wanted_as=made[0]) if p.problem else p for p in pods(world, deployed)]

    monkeypatch.setattr(RolloutWorld, "_pods", observed)
    made.append("another template")
    world.spec(WHOLE)
    world.settle()
    assert rejected(world) == []
    (base,) = world.situation().bases
    pool = pool_for(base, world.now, world.now.spec.revisions[-1])
    made[0] = template_hash(pool, base, world.asking.settings)
    world.settle()
    assert rejected(world) == [("v2", "EngineCrashed")]


@pytest.mark.parametrize(
    ("crashes", "replicas", "verdict"), [("own", 1, True), ("own", 2, False), ("shared", 1, False)]
)
def test_a_crash_is_the_candidate_s_when_only_it_runs_there_and_nothing_of_it_serves(
    monkeypatch: pytest.MonkeyPatch, crashes: str, replicas: int, verdict: bool
):
    """v1 or v2 has pods of its own, the other one is in the shared pool."""
    own = "v2" if crashes == "own" else "v1"
    world = RolloutWorld(own={own})
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.settle()
    real, name = RolloutWorld._pods, "own-v2" if crashes == "own" else "a"
    problem = Problem(Reason.ENGINE_CRASHED, "engine ended with exit code 139 after 3 restarts")

    def pods(self: RolloutWorld, deployed: ModelDeploymentResource) -> list[PodObservation]:
        found = real(self, deployed)
        sick = [replace(p, name="sick", problem=problem, report=None) for p in found if p.name == name]
        return [*(p for p in found if p.name != name or replicas > 1), *sick]

    monkeypatch.setattr(RolloutWorld, "_pods", pods)
    world.settle()
    assert rejected(world) == ([("v2", "EngineCrashed")] if verdict else [])
    later(world, 20)
    assert bool(rejected(world)) is (replicas == 1), "without a pod there is the deadline"


@pytest.mark.parametrize("reason", [Reason.LOAD_REFUSED, Reason.CANNOT_GENERATE])
def test_what_an_engine_refuses_once_may_pass_and_is_a_verdict_when_it_lasts(reason: Reason):
    world = RolloutWorld(lasting=None)
    world.broken["v2"] = reason
    world.spec(WHOLE)
    world.settle()
    assert (rejected(world), world.status.waiting_since) == ([], stamp(0))
    world.lasting = True
    world.settle()
    assert rejected(world) == [("v2", reason.value)]


def test_of_an_agent_that_does_not_say_whether_a_failure_lasts_only_the_deadline_speaks():
    world = RolloutWorld(lasting=None)
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.spec(WHOLE)
    world.settle()
    later(world, 19)
    assert rejected(world) == []
    later(world, 1)
    assert rejected(world) == [("v2", "ProgressDeadlineExceeded")]


def test_files_that_are_wrong_need_no_second_attempt():
    world = RolloutWorld(lasting=None)
    world.broken["v2"] = Reason.NON_FINITE_VALUES
    world.spec(WHOLE)
    world.settle()
    assert rejected(world) == [("v2", "NonFiniteValues")]


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


def test_the_deadline_does_not_run_for_what_is_loaded_on_demand():
    world = RolloutWorld()
    known = world.now
    seen = Seen(known, world.status, {}, {"v2": "known"}, {"v1": 1, "v2": 0}, {}, world.clock)
    assert waiting_since(seen, world.status, "v2", "v1") == stamp(0)
    assert waiting_since(replace(seen, on_demand=frozenset({"v2"})), world.status, "v2", "v1") is None


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


@pytest.mark.parametrize("mode", ["Manual", "Progressive"])
def test_who_lacks_its_spec_weight_for_a_verdict_is_said_unless_another_is_on_its_way(mode: str):
    world = broken_canary()
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 50, "v3": 50}, mode=mode)
    world.settle()
    assert world.status.candidate == "v3"
    told = ("Stalled", "CandidateRejected") if mode == "Manual" else ("Reconciling", "Progressing")
    assert world.conditions[told[0]] == ("True", told[1])
    later(world, 5)
    later(world, 10)
    assert world.weights == {"v1": 50, "v3": 50}
    assert world.conditions["Stalled"] == ("True", "CandidateRejected")


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


def test_a_verdict_outlives_the_time_in_which_the_model_name_is_another_one_s(monkeypatch: pytest.MonkeyPatch):
    world = broken_canary()
    world.recreate()
    real = RolloutWorld.situation
    older = deployment("older", model_name="chat", created=-5)

    def taken(self: RolloutWorld) -> Situation:
        seen = real(self)
        return replace(seen, deployments=(*seen.deployments, older))

    with monkeypatch.context() as patched:
        patched.setattr(RolloutWorld, "situation", taken)
        world.settle()
        assert world.conditions["Accepted"][0] == "False"
    assert rejected(world) == [("v2", "LoadRefused")]
    world.settle()
    assert (rejected(world), world.weights) == ([("v2", "LoadRefused")], {"v1": 100})


def test_the_deadline_does_not_run_while_nobody_knows_the_contents(monkeypatch: pytest.MonkeyPatch):
    world = RolloutWorld()
    real = RolloutWorld.situation
    world.spec(WHOLE)
    with monkeypatch.context() as patched:
        patched.setattr(RolloutWorld, "situation", lambda self: replace(real(self), adapters=real(self).adapters[:1]))
        world.settle()
        later(world, 25)
        assert (rejected(world), world.status.waiting_since) == ([], None)
    world.settle()
    assert (rejected(world), world.status.waiting_since) == ([], stamp(25)), "no pod has had time for it"
    later(world, 20)
    assert rejected(world) == [("v2", "ProgressDeadlineExceeded")]


def verdict(contents: str) -> Verdict:
    return Verdict(revision="v2", content_hash=contents, reason="Aborted", evidence="", at=stamp(0))


@pytest.mark.parametrize(
    ("stored", "planned", "first"),
    [
        ({}, {"allowed": {"v2": 5}}, False),
        ({"allowed": {"v2": 5}}, {"allowed": {"v2": 25}}, False),
        ({"allowed": {"v2": 5}}, {"allowed": {"v2": 5, "v3": 5}}, False),
        ({"allowed": {"v2": 25, "v3": 5}}, {"allowed": {"v2": 5, "v3": 25}}, True),
        ({"allowed": {"v2": 25}}, {"allowed": None}, True),
        ({"stable": "v1", "allowed": {"v2": 100}}, {"stable": "v2", "allowed": {"v1": 100}}, False),
        ({}, {"verdicts": [verdict("a")]}, True),
        ({"verdicts": [verdict("a")]}, {"verdicts": [verdict("a")]}, False),
        ({"verdicts": [verdict("a")]}, {"verdicts": [verdict("b"), verdict("a")]}, True),
        ({"verdicts": [verdict("a")], "allowed": {"v2": 0}}, {"allowed": {}}, False),
    ],
)
def test_what_takes_traffic_away_is_written_first(stored: dict[str, Any], planned: dict[str, Any], first: bool):
    status = ModelDeploymentStatus(rollout=RolloutStatus(**stored) if stored else None)
    known = deployment().model_copy(update={"status": status})
    assert takes_away(known, RolloutStatus(**planned)) is first
