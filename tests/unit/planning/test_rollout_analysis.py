"""Rollouts that are judged by answers: when a step is taken, who is rejected for what, and what waits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import stamp
from tests.toyworld.gates import SPEED
from tests.toyworld.rollouts import GATEWAYS, PROGRESSIVE, WHOLE, RolloutWorld, later, reasons, rejected
from tuneyard.api import names
from tuneyard.api.analysis import AnalysisSpec
from tuneyard.api.evidence import EvidenceRecord
from tuneyard.api.rollout import RolloutSpec
from tuneyard.planning.analysis import Target
from tuneyard.planning.evidence import Objective, Tally
from tuneyard.planning.evidencerecord import evidence_of
from tuneyard.planning.plan import Apply, Delete
from tuneyard.planning.rolloutanalysis import rules_of
from tuneyard.planning.timestamps import rfc3339

pytestmark = pytest.mark.lasting

ANALYSIS = {"slo": {"errorRate": "1%", "ttft": "2s"}, "minRequests": 300}
GOOD = {"v1": Tally(950, 5, 5), "v2": Tally(50)}
BAD = {"v1": Tally(950, 5, 5), "v2": Tally(50, 20, 20, 8)}
STABLE_ONLY = {"v1": Tally(1000, 5, 5)}


def judged_world(**analysis: Any) -> RolloutWorld:
    """v1 is stable and has answered for ten minutes; v2 is loaded and has just been given all weight."""
    world = RolloutWorld(rollout={**PROGRESSIVE, "analysis": {**ANALYSIS, **analysis}})
    look(world, STABLE_ONLY, looks=10, seconds=61)
    world.events.clear()
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.settle()
    return world


def look(
    world: RolloutWorld,
    counted: dict[str, Tally],
    looks: int = 1,
    seconds: float = 5,
    objective: Objective = Objective.ERROR_RATE,
) -> None:
    """Time passes, both gateways count so many answers in it, and the operator looks."""
    for _ in range(looks):
        world.clock += timedelta(seconds=seconds)
        for gateway in world.counting.values():
            for revision, tally in counted.items():
                gateway.count(revision, tally, objective)
        world.settle()


def record(world: RolloutWorld) -> EvidenceRecord:
    found = evidence_of(world.evidence, world.now)
    assert found is not None
    return found


def counted(world: RolloutWorld) -> tuple[int, int]:
    """How many answers of candidate and stable the status speaks of, by errors."""
    assert world.status.analysis is not None
    (errors,) = (o for o in world.status.analysis.objectives or () if o.objective == "errorRate")
    return errors.candidate_judged, errors.stable_judged


def test_what_is_judged_follows_from_the_spec():
    spec = AnalysisSpec.from_dict(
        {"slo": {"errorRate": "0.5%", "e2e": "30s", "itl": "100ms", "feedback": "5%"}, "minRequests": 50}
    )
    rules = rules_of(RolloutSpec(mode="Progressive", steps=[], analysis=spec))
    assert rules is not None and rules.min_requests == 50
    assert rules.targets == [
        Target(Objective.ERROR_RATE, 0.005),
        Target(Objective.ITL, 0.05),
        Target(Objective.E2E, 0.05),
        Target(Objective.FEEDBACK, 0.05),
    ]
    assert rules_of(RolloutSpec(mode="Progressive", analysis=AnalysisSpec.from_dict({"slo": {}}))) is None
    assert rules_of(RolloutSpec(mode="Manual", analysis=spec)) is None


def test_a_good_candidate_climbs_step_by_step_and_every_step_tells_its_numbers():
    world = judged_world()
    assert world.weights == {"v1": 95, "v2": 5}
    look(world, GOOD, looks=12, seconds=26)
    assert world.weights == {"v1": 75, "v2": 25}
    look(world, GOOD, looks=12, seconds=51)
    assert world.status.stable == "v2" and rejected(world) == []
    told = [e.message for e in world.events if e.reason.value == "StepCompleted"]
    assert len(told) == 2 and all("errorRate: 0 of " in words and "is tolerated" in words for words in told)


def test_who_has_gates_after_an_inconclusive_one_is_told():
    world = judged_world()
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=12, seconds=26)
    assert world.status.phase == "Inconclusive"
    world.spec(WHOLE, gates=[SPEED])
    world.replace("v2")
    world.settle()
    assert (world.status.phase, reasons(world)[-1]) == ("Gating", "Gating")


def test_a_hold_that_is_over_is_not_enough():
    world = judged_world()
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=12, seconds=26)
    assert (world.status.phase, world.weights["v2"]) == ("Inconclusive", 5)
    assert world.conditions["Ready"] == ("False", "Inconclusive")
    message = next(c.message for c in world.now.status.conditions if c.type == "Ready")
    assert "v2 has 5 of 100 %, and stays there" in message and "of 300 answers of v2 have been judged" in message
    look(world, GOOD, looks=3)
    assert world.weights["v2"] == 25 and world.status.phase == "Progressing"


def test_a_bad_candidate_is_rejected_before_its_hold_is_over_and_its_numbers_stay():
    world = judged_world()
    look(world, BAD, looks=2)
    assert rejected(world) == [("v2", "AnalysisFailed")]
    assert world.weights == {"v1": 100} and world.status.phase == "RolledBack"
    evidence = (world.status.verdicts or [])[0].evidence
    assert "of the answers of v2 were bad" in evidence and "once in" in evidence
    (told,) = (e.message for e in world.events if e.reason.value == "RolledBack")
    assert evidence in told
    look(world, STABLE_ONLY, looks=20, seconds=50)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_a_breach_is_seen_while_the_rollout_is_paused():
    world = judged_world()
    world.spec(WHOLE, paused=True)
    world.settle()
    look(world, BAD, looks=3)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_silence_neither_rejects_nor_promotes():
    world = judged_world()
    look(world, {}, looks=50, seconds=60)
    assert (world.status.phase, world.weights["v2"], rejected(world)) == ("Inconclusive", 5, [])
    assert world.conditions["Ready"] == ("False", "NoTraffic")


@pytest.mark.parametrize("what", ["silent", "judging", "both"])
@pytest.mark.parametrize("action", ["Hold", "Promote", "Rollback"])
def test_an_outage_of_the_metrics_does_nothing_however_long_it_takes(what: str, action: str):
    world = judged_world(onInconclusive=action, inconclusiveDeadline="10m")
    look(world, GOOD, looks=20)
    for gateway in list(world.counting.values())[: 2 if what == "both" else 1]:
        gateway.silent, gateway.judging = what != "judging", what != "judging"
    look(world, {}, looks=12, seconds=600)
    assert world.status.analysis is not None and world.status.analysis.outcome == "MetricsUnavailable"
    assert (world.weights["v2"], rejected(world), world.status.phase) == (5, [], "Inconclusive")
    assert world.conditions["Ready"] == ("False", "MetricsUnavailable")
    for gateway in world.counting.values():
        gateway.silent, gateway.judging = False, True
    look(world, GOOD)
    assert world.weights["v2"] == 25


@pytest.mark.parametrize(
    ("action", "weight", "verdicts"),
    [("Hold", 5, []), ("Promote", 25, []), ("Rollback", None, [("v2", "Inconclusive")])],
)
def test_what_is_inconclusive_for_too_long(action: str, weight: int | None, verdicts: list[tuple[str, str]]):
    world = judged_world(onInconclusive=action, inconclusiveDeadline="30m")
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=5)
    later(world, 6)
    assert world.status.phase == "Inconclusive"
    assert world.status.analysis is not None and world.status.analysis.inconclusive_since == stamp_of(world)
    later(world, 29)
    assert (world.weights["v2"], rejected(world)) == (5, [])
    later(world, 2)
    assert (world.weights.get("v2"), rejected(world)) == (weight, verdicts)


def stamp_of(world: RolloutWorld) -> str:
    return rfc3339(world.clock)


def test_a_command_needs_no_evidence():
    world = judged_world()
    world.command("promote", "v2")
    world.settle()
    assert world.status.stable == "v2" or world.weights == {"v2": 100}


def test_what_is_beyond_a_promotion_needs_evidence():
    world = judged_world()
    world.spec({"v1": 60, "v2": 40})
    world.command("promote", "v2")
    world.settle()
    world.spec(WHOLE)
    look(world, STABLE_ONLY, looks=20, seconds=61)
    assert (world.weights, world.status.phase) == ({"v1": 60, "v2": 40}, "Inconclusive")
    look(world, {"v1": Tally(600, 3, 3), "v2": Tally(400, 2)}, looks=12, seconds=61)
    assert world.weights == {"v2": 100}


def test_while_it_bakes_only_gross_harm_counts():
    world = judged_world()
    world.spec(WHOLE, bakeTime="1h")
    look(world, GOOD, looks=12, seconds=26)
    look(world, GOOD, looks=12, seconds=51)
    assert world.weights == {"v2": 100} and world.status.phase == "Baking"
    look(world, {"v2": Tally(1000, 12, 12)}, looks=20)
    assert rejected(world) == []
    look(world, {"v2": Tally(1000, 200, 200, 40)}, looks=3)
    assert rejected(world) == [("v2", "AnalysisFailed")]
    assert world.weights == {"v1": 100}


def test_of_a_candidate_that_has_just_got_all_traffic_only_gross_harm_is_believed():
    world = judged_world()
    world.spec(WHOLE, bakeTime="1h")
    look(world, GOOD, looks=12, seconds=26)
    look(world, GOOD, looks=12, seconds=51)
    assert world.weights == {"v2": 100}
    look(world, {"v2": Tally(1000, 400, 400, 160)}, looks=8)
    assert rejected(world) == [], "errors end sooner than good answers"
    look(world, {"v2": Tally(1000, 900, 900, 810)}, looks=2)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_of_stable_beside_a_candidate_with_new_weight_only_gross_harm_is_believed():
    def broken(world: RolloutWorld) -> bool:
        assert world.status.analysis is not None
        return world.status.analysis.stable_broken is not None

    bad = {"v1": Tally(1000, 400, 400, 160), "v2": Tally(50, 20, 20, 8)}
    world = judged_world()
    look(world, bad, looks=10)
    assert not broken(world)
    look(world, bad, looks=6)
    assert broken(world)
    world = judged_world()
    look(world, {"v1": Tally(1000, 900, 900, 810), "v2": Tally(50, 45, 45, 40)}, looks=9)
    assert broken(world)


def test_latencies_do_not_count_while_caches_are_cold_and_errors_do():
    world = judged_world(warmUp="60s")
    look(world, {"v1": Tally(900), "v2": Tally(50, 50, 50, 50)}, looks=11, objective=Objective.TTFT)
    look(world, {"v1": Tally(900), "v2": Tally(50)}, looks=11, objective=Objective.TTFT)
    assert rejected(world) == []
    look(world, {"v1": Tally(900), "v2": Tally(50, 50, 50, 50)}, looks=2, objective=Objective.TTFT)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_other_objectives_begin_anew():
    world = judged_world()
    look(world, GOOD, looks=20)
    assert counted(world) == (2000, 38_000)
    world.spec(WHOLE, analysis={**ANALYSIS, "slo": {"errorRate": "2%"}})
    world.settle()
    look(world, GOOD)
    assert counted(world) == (100, 1900)


def test_stable_that_breaks_its_own_objective_holds_the_candidate_and_rejects_nobody():
    world = judged_world()
    look(world, {"v1": Tally(950, 60, 60, 4), "v2": Tally(50, 3, 3)}, looks=12, seconds=26)
    assert (world.weights["v2"], rejected(world), world.status.phase) == (5, [], "Inconclusive")
    assert world.conditions["Ready"] == ("False", "StableBroken")
    assert world.status.analysis is not None
    assert "beside v2, since it has traffic: errorRate: " in (world.status.analysis.stable_broken or "")
    look(world, GOOD, looks=30, seconds=50)
    assert world.weights["v2"] > 5, "it comes to rest again"


@pytest.mark.parametrize("crash", [False, True])
def test_no_answer_is_counted_twice_when_status_or_process_are_lost(crash: bool):
    world = judged_world()
    look(world, GOOD, looks=10)
    for number in range(10):
        for gateway in world.counting.values():
            for revision, tally in GOOD.items():
                gateway.count(revision, tally)
        world.clock += timedelta(seconds=5)
        if crash:
            world.reconcile(crash=True)
        else:
            world.lose_status()
        if number % 3:
            world.settle()
    look(world, GOOD)
    assert counted(world) == (21 * 100, 21 * 1900)


def test_a_gateway_that_begins_anew_loses_only_what_nobody_had_read():
    world = judged_world()
    look(world, GOOD, looks=5)
    world.counting["g1"].count("v2", Tally(7))
    world.clock += timedelta(seconds=1)
    world.counting["g1"].restart(world.clock)
    look(world, GOOD, looks=5)
    assert counted(world)[0] == 10 * 100


@pytest.mark.parametrize("silent", [False, True])
def test_what_a_former_rollout_of_the_candidate_had_is_no_evidence(silent: bool):
    world = judged_world()
    look(world, GOOD, looks=4)
    world.spec({"v1": 100})
    look(world, STABLE_ONLY, looks=2, seconds=61)
    world.counting["g2"].silent = silent
    world.spec(WHOLE)
    world.settle()
    look(world, {})
    world.counting["g2"].silent = False
    look(world, {})
    look(world, GOOD, looks=3)
    assert counted(world) == (300, 5700)


@pytest.mark.parametrize("old", [False, True])
def test_what_a_gateway_counts_of_the_contents_before_is_no_evidence_on_those_of_now(old: bool):
    world = judged_world()
    world.old_gateways = old
    look(world, GOOD, looks=2)
    world.editions["v2"] = 1
    world.gateway("g1")
    world.clock += timedelta(seconds=5)
    world.counting["g2"].count("v2", BAD["v2"])
    world.reconcile()
    heard = {"g1-1"} | ({"g2-1"} if old else set())
    assert record(world).seen.keys() == heard, "one that still serves the former ones has not answered"
    world.gateway("g2")
    world.clock += timedelta(seconds=5)
    world.reconcile()
    assert record(world).seen.keys() == {"g1-1", "g2-1"}
    assert (world.status.verdicts, world.status.candidate) == (None, "v2")


def test_contents_of_a_revision_that_is_not_compared_silence_nobody():
    world = judged_world()
    world.spec(WHOLE, listed=["v1", "v2", "v3"])
    look(world, GOOD, looks=8)
    before = counted(world)
    world.editions["v3"] = 1
    world.clock += timedelta(seconds=5)
    world.counting["g1"].count("v2", GOOD["v2"])
    world.reconcile()
    assert counted(world) == (before[0] + 50, before[1])


def test_the_next_candidate_is_judged_by_its_own_answers():
    world = judged_world()
    look(world, BAD, looks=2)
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    look(world, {"v1": Tally(950, 5, 5), "v3": Tally(50)}, looks=12, seconds=26)
    assert world.weights == {"v1": 75, "v3": 25}


def test_the_record_is_small_and_written_seldom():
    world = judged_world()
    look(world, GOOD, looks=30)
    assert len(json.dumps(record(world).to_dict())) < 8000
    before = (world.evidence, world.now.metadata.resource_version)
    for _ in range(3):
        look(world, GOOD, seconds=1)
    assert (world.evidence, world.now.metadata.resource_version) == before
    assert world.plan.requeue_after is not None and world.plan.requeue_after <= 2
    look(world, GOOD, seconds=2)
    assert (world.evidence, world.now.metadata.resource_version) != before
    quiet = world.now.metadata.resource_version
    look(world, {}, looks=5)
    assert world.now.metadata.resource_version == quiet


def test_the_record_goes_with_the_analysis():
    world = judged_world()
    look(world, GOOD)
    owner = next(a.object for a in actions(world) if isinstance(a, Apply))["metadata"]["ownerReferences"]
    assert [o["uid"] for o in owner] == [world.now.metadata.uid]
    world.rollout.pop("analysis")
    world.spec(WHOLE)
    plan = world.reconcile()
    assert [a.name for a in plan.actions if isinstance(a, Delete)] == [names.rollout_evidence("chat")]
    assert world.evidence is None


def test_a_config_map_of_that_name_that_is_somebody_else_s_is_left_alone():
    world = judged_world()
    look(world, GOOD)
    assert world.evidence is not None
    world.evidence = replace(world.evidence, component="")
    assert actions(world) == ()
    assert world.status.analysis is not None and not world.status.analysis.objectives, "and it is not believed"
    world.rollout.pop("analysis")
    world.spec(WHOLE)
    assert world.reconcile().actions == ()


@pytest.mark.parametrize("spoilt", ["", "{}", "nonsense"])
def test_evidence_that_cannot_be_read_begins_anew(spoilt: str):
    world = judged_world()
    look(world, GOOD, looks=10)
    assert world.evidence is not None
    world.evidence = replace(world.evidence, record=spoilt)
    world.settle()
    assert world.status.analysis is not None and not world.status.analysis.objectives
    look(world, GOOD, looks=2)
    assert counted(world) == (200, 3800)


def actions(world: RolloutWorld) -> tuple[Any, ...]:
    """Of a pass that has something to write."""
    world.clock += timedelta(seconds=6)
    for name in GATEWAYS:
        world.counting[name].count("v2", Tally(1))
    return world.reconcile().actions


def test_events_of_a_rollout_that_waits():
    world = judged_world()
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=12, seconds=26)
    assert reasons(world)[-1] == "Inconclusive"
    assert stamp(0) < stamp_of(world)
