"""Stable's evaluation over days: each test is a story of one deployment, with the Jobs that would exist."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.toyworld.drifting import FIRST, OTHER, hours, run, scored, watched
from tests.toyworld.gates import QUALITY, SPEED
from tests.toyworld.rollouts import RolloutWorld
from tuneyard.api import names
from tuneyard.api.drift import EvaluationDriftStatus
from tuneyard.api.gatereports import DriftRun, GateReport, GateReports, Sample
from tuneyard.planning.driftruns import MAX_RUNS, bounded_runs, compared_runs, next_start
from tuneyard.planning.gateobservations import REPORTS_KEY, JobMark

pytestmark = pytest.mark.lasting


def evaluation(world: RolloutWorld) -> EvaluationDriftStatus:
    drift = world.now.status.drift
    assert drift is not None and drift.evaluation is not None
    return drift.evaluation


def message(world: RolloutWorld) -> str:
    return next(c.message for c in world.now.status.conditions if c.type == "Drifting")


def told(world: RolloutWorld) -> list[str]:
    return [e.reason.value for e in world.events if e.reason.value.startswith("Drift")]


def runs(world: RolloutWorld) -> list[tuple[str, float]]:
    kept = world.gates.objects.get(("ConfigMap", names.gate_reports("chat")))
    found = GateReports.model_validate_json(kept["data"][REPORTS_KEY]).drift if kept else []
    return [(r.revision, r.scores["exactMatch"]) for r in found]


def test_a_baseline_then_a_run_a_day_and_a_drift_that_begins_and_ends_once():
    world = watched()
    assert (evaluation(world).state, world.conditions["Drifting"]) == ("Waiting", ("False", "Steady"))
    hours(world, 1)
    (job,) = world.gates.jobs
    assert evaluation(world).state == "Running"
    mark = JobMark.model_validate_json(
        world.gates.objects["Job", job]["metadata"]["annotations"][names.ANNOTATION_GATE]
    )
    assert (mark.gate, mark.revision, mark.stable) == ("quality", "v1", "v1")
    world.gates.end(scored(0.9))
    world.settle()
    assert (world.gates.jobs, runs(world), world.conditions["Drifting"]) == ([], [("v1", 0.9)], ("False", "Steady"))
    assert "v1 had exactMatch 0.9 at" in message(world)
    first = world.clock
    run(world, 0.85)
    assert timedelta(hours=23) < world.clock - first < timedelta(hours=25)
    assert (world.conditions["Drifting"], told(world)) == (("False", "Steady"), [])
    run(world, 0.75)
    assert world.conditions["Drifting"] == ("True", "Drifting")
    assert "v1 has exactMatch 0.75 against 0.9" in message(world) and "0.15 below, and maxDrop is 0.1" in message(world)
    run(world, 0.83)
    assert world.conditions["Drifting"][0] == "True", "more than half of it is left"
    run(world, 0.86)
    assert world.conditions["Drifting"] == ("False", "Steady")
    assert told(world) == ["Drifting", "DriftEnded"]
    assert len(runs(world)) == 5


def test_a_drift_changes_no_traffic_and_nothing_that_is_waited_for():
    world = watched()
    run(world, 0.9)
    before = (world.weights, world.status, world.conditions)
    run(world, 0.2)
    after = world.conditions
    assert after.pop("Drifting") == ("True", "Drifting") and before[2].pop("Drifting") == ("False", "Steady")
    assert (world.weights, world.status, after) == before
    assert after == {t: c for t, c in after.items() if t not in ("Stalled", "Reconciling")}
    assert after["Ready"][0] == "True"


def test_what_is_not_asked_for_is_not_there():
    world = watched(drift=None, gates=None)
    assert (world.now.status.drift, "Drifting" in world.conditions) == (None, False)
    world = watched()
    hours(world, 1)
    assert len(world.gates.jobs) == 1
    world.spec({"v1": 100}, drift=None)
    world.settle()
    assert (world.gates.jobs, world.now.status.drift, "Drifting" in world.conditions) == ([], None, False)
    assert told(world) == []


def test_a_job_that_was_made_just_before_nobody_asks_any_more_is_found():
    world = watched()
    while not world.gates.made:
        world.wait(5)
        world.reconcile()
    world.spec({"v1": 100}, drift=None)
    world.settle()
    assert (world.gates.jobs, world.now.status.drift, "Drifting" in world.conditions) == ([], None, False)


@pytest.mark.parametrize("nobody_asks", [True, False])
def test_a_job_that_could_not_be_deleted_is_deleted_later(nobody_asks: bool, monkeypatch: pytest.MonkeyPatch):
    world = watched(gates=[QUALITY])
    hours(world, 1)
    (job,) = world.gates.jobs
    with monkeypatch.context() as changed:
        # what the API server answers with 409, because it has changed since
        changed.setattr(world.gates, "remove", lambda _: None)
        world.ready["v2"] = True
        world.spec({"v1": 100}, drift=None) if nobody_asks else world.spec({"v1": 50, "v2": 50}, gates=[QUALITY, SPEED])
        world.settle()
        assert world.gates.jobs.count(job) == 1
        assert world.plan.requeue_after is not None and world.plan.requeue_after <= 2
    world.settle()
    assert job not in world.gates.jobs
    assert (world.now.status.drift is None) == nobody_asks


def test_a_run_that_a_crash_kept_from_being_made_is_made():
    world = watched()
    world.gates.broken = True
    for _ in range(20):
        world.wait(5)
        world.reconcile()
        if evaluation(world).state == "Running":
            break
    assert (evaluation(world).state, world.gates.jobs) == ("Running", [])
    world.gates.broken = False
    hours(world, 2)
    assert (len(world.gates.running), told(world)) == (1, [])


def test_other_prompts_begin_another_baseline():
    world = watched()
    run(world, 0.9)
    run(world, 0.4, OTHER)
    assert world.conditions["Drifting"] == ("False", "Steady")
    assert "v1 had exactMatch 0.4 at" in message(world)
    run(world, 0.25, OTHER)
    assert "v1 has exactMatch 0.25 against 0.4" in message(world)
    assert world.conditions["Drifting"][0] == "True"
    run(world, 0.88, FIRST)
    assert world.conditions["Drifting"] == ("False", "Steady"), "the first prompts have their old baseline"
    assert "exactMatch 0.88 against 0.9" in message(world)


def test_a_run_that_cannot_run_is_said_and_is_no_drift():
    world = watched()
    run(world, 0.9)
    hours(world, 25)
    delays = []
    for attempt in range(1, 5):
        world.gates.end(GateReport(cannot_run="the judge j gives no grade: status 503"))
        world.settle()
        assert (evaluation(world).state, evaluation(world).attempt) == ("CannotRun", attempt + 1)
        assert world.conditions["Drifting"] == ("False", "DriftUnmeasured")
        assert message(world).endswith("the evaluation cannot run: the judge j gives no grade: status 503")
        delays.append(world.plan.requeue_after)
        hours(world, 1)
        assert world.conditions["Drifting"] == ("False", "DriftUnmeasured"), "until a run has found something"
    assert delays == [30, 60, 120, 240]
    world.gates.end(scored(0.88))
    world.settle()
    assert world.conditions["Drifting"] == ("False", "Steady")
    assert (told(world), runs(world)) == (["DriftUnmeasured"], [("v1", 0.9), ("v1", 0.88)])
    assert evaluation(world).trouble is None


def test_one_that_cannot_run_while_it_drifts_stays_a_drift():
    world = watched()
    run(world, 0.9)
    run(world, 0.5)
    hours(world, 25)
    world.gates.end("Traceback")
    world.settle()
    assert world.conditions["Drifting"] == ("True", "Drifting")
    assert "0.4 below" in message(world) and "cannot run: its pod ended without a report" in message(world)


def test_a_job_that_is_lost_or_hangs_is_run_again():
    world = watched()
    hours(world, 1)
    world.gates.lose()
    world.settle()
    assert evaluation(world).state == "CannotRun" and "its Job is gone" in (evaluation(world).trouble or "")
    hours(world, 1)
    world.clock += timedelta(minutes=33)
    world.settle()
    assert evaluation(world).state == "CannotRun"
    assert "has not ended within its timeout of 1800 s" in (evaluation(world).trouble or "")
    assert world.gates.jobs == []


def test_neither_a_lost_status_nor_another_object_loses_the_baseline_or_runs_twice():
    world = watched()
    run(world, 0.9)
    run(world, 0.7)
    made = len(world.gates.made)
    for lose in (world.lose_status, world.recreate):
        lose()
        world.settle()
        assert world.conditions["Drifting"] == ("True", "Drifting")
        hours(world, 10)
        assert len(world.gates.made) == made
    run(world, 0.71)
    assert "0.71 against 0.9" in message(world)


def test_a_lost_status_finds_the_job_that_runs():
    world = watched()
    hours(world, 1)
    world.lose_status()
    world.settle()
    assert (evaluation(world).state, len(world.gates.made)) == ("Running", 1)


def test_a_crash_after_any_action_neither_loses_a_result_nor_runs_twice():
    world = watched()
    hours(world, 1)
    world.gates.end(scored(0.9))
    for _ in range(3):
        world.reconcile(crash=True)
    world.settle()
    assert (runs(world), len(world.gates.made), world.gates.jobs) == ([("v1", 0.9)], 1, [])


def test_days_without_an_operator_are_one_run():
    world = watched()
    run(world, 0.9)
    world.clock += timedelta(days=5)
    world.settle()
    hours(world, 2)
    assert (len(world.gates.running), len(world.gates.made)) == (1, 2)


def test_nothing_runs_while_a_rollout_is_under_way_and_a_new_stable_revision_has_a_baseline_of_its_own():
    world = watched(gates=[QUALITY])
    run(world, 0.9)
    run(world, 0.6)
    assert world.conditions["Drifting"][0] == "True"
    hours(world, 25)
    (job,) = world.gates.jobs
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    assert world.status.phase == "Gating" and job not in world.gates.jobs
    assert world.conditions["Drifting"][0] == "True", "v1 still serves"
    assert message(world).endswith("; the evaluation is run again when no rollout is under way")
    world.gates.end(scored(0.95))
    world.settle()
    while world.status.stable != "v2":
        assert not world.gates.jobs
        world.clock += timedelta(minutes=10)
        world.settle()
    assert world.conditions["Drifting"] == ("False", "Steady")
    assert told(world) == ["Drifting", "DriftEnded"]
    assert "v2 had exactMatch 0.95 at" in message(world), "what the gate found"
    run(world, 0.7)
    assert "v2 has exactMatch 0.7 against 0.95" in message(world)
    assert runs(world)[-2:] == [("v2", 0.95), ("v2", 0.7)]


def test_a_rejected_candidate_keeps_nobody_from_watching_stable():
    world = watched(gates=[QUALITY])
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    world.gates.end(scored(0.1))
    world.settle()
    assert world.status.phase == "RolledBack"
    run(world, 0.9)
    assert runs(world) == [("v1", 0.9)]


def test_an_adapter_object_that_is_away_for_a_moment_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    world = watched()
    run(world, 0.9)
    run(world, 0.6)
    hours(world, 26)
    (before, jobs), said = (world.now.status.drift, world.gates.running), len(world.events)
    assert world.conditions["Drifting"] == ("True", "Drifting") and len(jobs) == 1
    with monkeypatch.context() as away:
        away.setattr(RolloutWorld, "adapters", lambda _: ())
        world.settle()
        assert world.conditions["Drifting"] == ("True", "Drifting")
        assert (world.now.status.drift, world.gates.running) == (before, jobs)
    world.settle()
    assert (world.now.status.drift, world.gates.running) == (before, jobs)
    assert [e.reason.value for e in world.events[said:] if e.reason.value.startswith("Drift")] == []
    with monkeypatch.context() as away:
        away.setattr(RolloutWorld, "adapters", lambda _: ())
        world.spec({"v1": 100}, drift=None)
        world.settle()
        assert (world.now.status.drift, world.gates.jobs) == (None, []), "who asks for nothing needs no contents"


def test_without_a_pod_of_stable_nothing_is_run():
    world = watched()
    world.ready["v1"] = False
    world.settle()
    hours(world, 3)
    assert (world.gates.made, evaluation(world).state) == ([], "Waiting")
    assert "the next run waits for a pod of v1" in message(world)
    world.ready["v1"] = True
    world.settle()
    hours(world, 2)
    assert len(world.gates.running) == 1


def test_reports_that_are_somebody_elses_are_not_written():
    world = watched()
    world.gates.objects["ConfigMap", names.gate_reports("chat")] = {
        "kind": "ConfigMap", "metadata": {"name": names.gate_reports("chat"), "labels": {names.LABEL_COMPONENT: "x"}},
    }  # fmt: skip
    hours(world, 3)
    assert world.gates.made == []
    assert "is not the operator's" in message(world)


def test_the_worst_answers_of_the_newest_run_are_kept():
    world = watched()
    for answer in ("one", "two"):
        hours(world, 26)
        world.gates.end(scored(0.9).model_copy(update={"samples": [Sample(prompt="p", answer=answer)]}))
        world.settle()
    kept = world.gates.objects["ConfigMap", names.gate_reports("chat")]["data"][REPORTS_KEY]
    found = GateReports.model_validate_json(kept).drift
    assert [[s.answer for s in r.samples] for r in found] == [[], ["two"]]


def test_another_rhythm_is_heard_at_once():
    world = watched()
    run(world, 0.9)
    world.spec({"v1": 100}, drift={"evaluation": {"gate": "quality", "every": "1h"}})
    world.settle()
    hours(world, 2)
    assert len(world.gates.running) == 1


def test_results_of_gates_and_of_stable_are_kept_side_by_side():
    world = watched(gates=[SPEED, QUALITY])
    run(world, 0.9)
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    world.gates.end(GateReport(cannot_run="no"))
    world.settle()
    world.command("promote", "v2")
    world.settle()
    assert runs(world) == [("v1", 0.9)]
    assert ("v2", "speed", "Skipped") in world.gates.results


# -- when -------------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(("every", "least", "most"), [(86400, 23, 25), (3600, 0.9, 2.1), (5400, 0.9, 2.1)])
def test_runs_come_as_often_as_asked(every: int, least: float, most: float):
    for n in range(50):
        last = next_start(f"team/{n}", every, None, NOW)
        start = next_start(f"team/{n}", every, last, last)
        assert timedelta(hours=least) < start - last < timedelta(hours=most)
        assert next_start(f"team/{n}", every, last, start) == start, "it is due then"


def test_runs_of_many_are_spread_also_when_all_are_late():
    for last in (None, NOW - timedelta(days=9)):
        starts = [next_start(f"team/{n}", 86400, last, NOW) for n in range(600)]
        minutes = [int((s - NOW).total_seconds() // 60) for s in starts]
        assert max(minutes) <= 60
        assert max(minutes.count(m) for m in set(minutes) - {0}) < 30
        assert minutes.count(0) < 120, "a twelfth of them at once"


def test_a_clock_that_went_back_waits_no_longer_than_usual():
    start = next_start("team/chat", 86400, NOW + timedelta(days=30), NOW)
    assert start - NOW < timedelta(hours=26)


# -- what -------------------------------------------------------------------------------------------------------------


def kept_run(n: int, score: float, digest: str = FIRST, key: str = "k") -> DriftRun:
    return DriftRun(
        key=key, at=f"2026-{1 + n // 28:02d}-{1 + n % 28:02d}T00:00:00Z", revision="v1", content_hash="c", gate="q",
        prompts=5, prompts_digest=digest, scores={"exactMatch": score, "judge": 0.5},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "drifting"),
    [
        ([0.9], False),
        ([0.9, 0.85], False),
        ([0.9, 0.8499], True),
        ([0.9, 0.5, 0.86], True),
        ([0.9, 0.5, 0.875], False),
        ([0.9, 0.5, 0.95], False),
        ([0.9, 0.86], False),
        ([0.9, 1.0, 0.86], False),
    ],
)
def test_a_drift_needs_more_than_max_drop_and_ends_at_half_of_it(scores: list[float], drifting: bool):
    assert compared_runs([kept_run(n, s) for n, s in enumerate(scores)], 0.05)[0] is drifting


def test_runs_are_bounded_and_baselines_stay():
    runs: list[DriftRun] = []
    for n in range(330):
        runs = bounded_runs([*runs, kept_run(n, 0.9 - n / 1000, key=f"k{n // 30}")])
    assert len(runs) <= MAX_RUNS + 8
    assert runs[-1] == kept_run(329, 0.9 - 0.329, key="k10")
    kept = {r.key for r in runs}
    assert kept == {f"k{n}" for n in range(3, 11)}
    for n in range(3, 9):
        assert [r for r in runs if r.key == f"k{n}"] == [kept_run(30 * n, 0.9 - 30 * n / 1000, key=f"k{n}")]
    assert len(json.dumps([r.to_dict() for r in runs])) < 40_000
