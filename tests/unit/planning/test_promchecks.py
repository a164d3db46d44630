"""Rollouts with checks of Prometheus: what a number out of bounds does, and what no number does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.builders import SETTINGS
from tests.toyworld.rollouts import PROGRESSIVE, WHOLE, RolloutWorld, rejected
from tests.unit.planning.test_rollout_analysis import ANALYSIS, BAD, GOOD, STABLE_ONLY, look, record
from tuneyard.api.promchecks import PrometheusCheck
from tuneyard.planning.promchecks import breach, limits

pytestmark = pytest.mark.lasting

DRIFT = {"name": "drift", "query": 'drift{revision="$candidate"}', "max": 0.2}
COST = {"name": "cost", "query": "cost", "min": 1, "max": 3, "failures": 2}


def checked_world(*checks: dict[str, Any], **analysis: Any) -> RolloutWorld:
    """As judged_world, with checks."""
    spec = {**ANALYSIS, "warmUp": "0s", "prometheus": list(checks) or [DRIFT], **analysis}
    world = RolloutWorld(rollout={**PROGRESSIVE, "analysis": spec})
    look(world, STABLE_ONLY, looks=10, seconds=61)
    world.events.clear()
    world.ready["v2"] = True
    world.spec(WHOLE)
    world.settle()
    return world


def evaluate(world: RolloutWorld, *answers: float | str | Mapping[str, float | str], counted: Any = GOOD) -> None:
    """Half a minute each: the checks are evaluated and give that, beside as many answers as always."""
    for answer in answers:
        given = answer if isinstance(answer, Mapping) else {"drift": answer}
        world.asking.answers.update(given)
        look(world, counted, seconds=25)
        world.asking.evaluate(world.now, world.clock)
        look(world, counted)


def ready_words(world: RolloutWorld) -> str:
    return next(c.message for c in world.now.status.conditions if c.type == "Ready")


def answered(world: RolloutWorld) -> tuple[str, bool]:
    """The last command, and whether it was carried out."""
    assert world.status.last_command is not None
    return world.status.last_command.action, world.status.last_command.accepted


def said(world: RolloutWorld) -> list[dict[str, Any]]:
    assert world.status.analysis is not None
    return [c.to_dict() for c in world.status.analysis.checks or ()]


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        ({"max": 0.2}, 0.2, None),
        ({"max": 0.2}, 0.31, "0.31 is above max 0.2"),
        ({"min": 5}, 5, None),
        ({"min": 5}, 4.5, "4.5 is below min 5"),
        ({"min": -1, "max": 1}, 0, None),
        ({"min": -1, "max": 1}, -2, "-2 is below min -1"),
        ({"max": 0}, 1e-9, "1e-09 is above max 0"),
    ],
)
def test_bounds(check: dict[str, Any], value: float, words: str | None):
    assert breach(PrometheusCheck.from_dict({"name": "x", "query": "q", **check}), value) == words


def test_bounds_in_words():
    assert limits(PrometheusCheck.from_dict(COST)) == "min 1, max 3"


def test_within_bounds_it_climbs_and_each_step_says_so():
    world = checked_world(DRIFT, COST)
    evaluate(world, *[{"drift": 0.1, "cost": 2}] * 12)
    assert world.weights == {"v1": 75, "v2": 25}
    evaluate(world, *[{"drift": 0.12, "cost": 2}] * 21)
    assert world.status.stable == "v2" and rejected(world) == []
    told = [e.message for e in world.events if e.reason.value == "StepCompleted"]
    assert len(told) == 2
    assert all("errorRate: 0 of " in words and "check cost: 2 is within min 1, max 3" in words for words in told)
    assert "check drift: 0.12 is within max 0.2" in told[1]


def test_no_step_is_taken_without_a_number_of_this_step():
    world = checked_world()
    evaluate(world, *[0.1] * 10)
    assert world.weights["v2"] == 25
    world.spec(WHOLE, steps=[{"weight": 5, "hold": "5m"}, {"weight": 25, "hold": "0s"}])
    look(world, GOOD, looks=3)
    assert world.weights["v2"] == 25, "the last number is of the step before"
    assert "not been evaluated at this weight" in ready_words(world)
    assert world.status.analysis is not None and world.status.analysis.outcome == "Continue"
    evaluate(world, 0.1)
    assert world.status.stable == "v2" or world.weights["v2"] == 100


def test_out_of_bounds_holds_and_so_often_in_a_row_rejects():
    world = checked_world()
    evaluate(world, *[0.1] * 9, 0.25)
    look(world, GOOD, looks=8)
    assert (world.weights["v2"], rejected(world), world.status.phase) == (5, [], "Inconclusive")
    assert "check drift: 0.25 is above max 0.2, 1 of 3 times in a row" in ready_words(world)
    assert said(world) == [
        {
            "name": "drift",
            "value": "0.25",
            "limit": "max 0.2",
            "failures": 1,
            "message": "0.25 is above max 0.2, 1 of 3 times in a row",
        }
    ]
    evaluate(world, 0.25)
    assert (world.weights["v2"], rejected(world)) == (5, [])
    evaluate(world, 0.31)
    assert rejected(world) == [("v2", "AnalysisFailed")] and world.weights == {"v1": 100}
    evidence = (world.status.verdicts or [])[0].evidence
    assert evidence == "check drift: 0.31 is above max 0.2, 3 times in a row"
    (told,) = (e.message for e in world.events if e.reason.value == "RolledBack")
    assert evidence in told


def test_a_number_within_bounds_ends_the_row():
    world = checked_world()
    evaluate(world, *[0.3, 0.3, 0.1] * 4)
    assert rejected(world) == [] and said(world)[0]["failures"] == 0
    evaluate(world, 0.3, 0.3, 0.3)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_each_check_counts_for_itself():
    world = checked_world(DRIFT, COST)
    evaluate(world, {"drift": 0.3, "cost": 2}, {"drift": 0.1, "cost": 0.5}, {"drift": 0.3, "cost": 2})
    assert rejected(world) == []
    evaluate(world, {"drift": 0.1, "cost": 0.5}, {"drift": 0.1, "cost": 4})
    assert rejected(world) == [("v2", "AnalysisFailed")]
    assert (world.status.verdicts or [])[0].evidence == "check cost: 4 is above max 3, 2 times in a row"


@pytest.mark.parametrize("nothing", ["HTTP status 503", float("nan"), float("inf")])
@pytest.mark.parametrize("action", ["Hold", "Promote", "Rollback"])
def test_no_number_holds_however_long_it_takes_and_counts_neither_way(nothing: float | str, action: str):
    world = checked_world(onInconclusive=action, inconclusiveDeadline="1m")
    evaluate(world, 0.1, 0.3, 0.3)
    evaluate(world, *[nothing] * 15)
    assert (world.weights["v2"], rejected(world), world.status.phase) == (5, [], "Inconclusive")
    assert world.conditions["Ready"] == ("False", "MetricsUnavailable")
    assert "check drift: it has no number: " in ready_words(world)
    (drift,) = said(world)
    assert (drift["value"], drift["failures"]) == ("0.3", 2)
    evaluate(world, 0.3)
    assert rejected(world) == [("v2", "AnalysisFailed")], "the third in a row"


def test_after_an_outage_a_number_within_bounds_lets_it_climb():
    world = checked_world()
    evaluate(world, *[0.1] * 5, *["timeout"] * 10)
    assert world.weights["v2"] == 5
    evaluate(world, 0.1)
    assert world.weights["v2"] == 25


@pytest.mark.parametrize(
    ("action", "weight", "verdicts"), [("Hold", 5, []), ("Promote", 25, []), ("Rollback", None, ["Inconclusive"])]
)
def test_nobody_is_promoted_for_being_inconclusive_while_a_check_is_out_of_bounds(
    action: str, weight: int | None, verdicts: list[str]
):
    world = checked_world(onInconclusive=action, inconclusiveDeadline="20s", minRequests=100_000)
    evaluate(world, *[0.1] * 9, 0.3, 0.3)
    assert [reason for _, reason in rejected(world)] == verdicts
    assert verdicts or world.weights["v2"] == 5
    evaluate(world, 0.1)
    assert world.weights.get("v2") == weight


def test_without_a_server_it_holds_and_says_what_to_set():
    world = checked_world()
    world.asking.settings = SETTINGS
    look(world, GOOD, looks=12, seconds=26)
    assert (world.weights["v2"], world.status.phase) == (5, "Inconclusive")
    assert world.conditions["Ready"] == ("False", "MetricsUnavailable")
    assert world.conditions["Accepted"] == ("True", "Accepted")
    assert "set prometheus.url in Tuneyard's chart" in ready_words(world)
    look(world, BAD, looks=3)
    assert rejected(world) == [("v2", "AnalysisFailed")], "its answers count all the same"


def test_what_nobody_evaluates_is_said_to_be_silent():
    world = checked_world()
    look(world, GOOD, looks=17)
    assert (world.status.analysis.outcome if world.status.analysis else "") == "Continue"
    look(world, GOOD, looks=3)
    assert world.status.analysis is not None and world.status.analysis.outcome == "MetricsUnavailable"
    assert world.status.analysis.sentence == "check drift: it has never been evaluated at this weight"


def test_a_number_that_has_become_old_says_nothing():
    world = checked_world()
    evaluate(world, 0.1)
    look(world, GOOD, looks=40, seconds=10)
    assert world.weights["v2"] == 5
    assert world.conditions["Ready"] == ("False", "MetricsUnavailable")
    assert "it has not been evaluated since 2026-" in ready_words(world)


def test_with_all_traffic_on_the_candidate_a_check_still_counts():
    world = checked_world()
    world.spec(WHOLE, bakeTime="10m")
    evaluate(world, *[0.1] * 34)
    assert world.weights == {"v2": 100} and world.status.phase == "Baking"
    evaluate(world, *[0.1] * 15, 0.3, 0.3, counted={"v2": GOOD["v2"]})
    look(world, {"v2": GOOD["v2"]}, looks=8)
    assert (world.status.stable, world.status.phase) == ("v1", "Inconclusive"), "it does not take over"
    evaluate(world, 0.3, counted={"v2": GOOD["v2"]})
    assert rejected(world) == [("v2", "AnalysisFailed")] and world.weights == {"v1": 100}


def test_with_all_traffic_on_the_candidate_no_number_holds():
    world = checked_world()
    world.spec(WHOLE, bakeTime="10m")
    evaluate(world, *[0.1] * 34)
    evaluate(world, *["timeout"] * 20, counted={"v2": GOOD["v2"]})
    assert (world.status.stable, world.conditions["Ready"][1]) == ("v1", "MetricsUnavailable")
    evaluate(world, 0.1, counted={"v2": GOOD["v2"]})
    assert world.status.stable == "v2"


@pytest.mark.parametrize("crash", [False, True])
def test_the_row_survives_operator_and_status_and_nothing_counts_twice(crash: bool):
    world = checked_world()
    evaluate(world, 0.3, 0.3)
    for _ in range(20):
        world.asking.restart()
        world.asking.evaluate(world.now, world.clock)
        world.reconcile(crash=crash)
        world.lose_status()
        world.settle()
    assert rejected(world) == []
    assert record(world).checks["drift"].failing == 2
    evaluate(world, 0.3)
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_another_candidate_and_another_query_begin_anew_and_other_bounds_do_not():
    world = checked_world()
    evaluate(world, 0.3, 0.3)
    world.spec(WHOLE, analysis={**ANALYSIS, "prometheus": [{**DRIFT, "query": "other"}]})
    evaluate(world, 0.3, 0.3)
    assert rejected(world) == []
    world.spec(WHOLE, analysis={**ANALYSIS, "prometheus": [{**DRIFT, "query": "other", "max": 0.5}]})
    evaluate(world, 0.7)
    assert rejected(world) == [("v2", "AnalysisFailed")]
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100}, analysis={**ANALYSIS, "warmUp": "0s", "prometheus": [DRIFT]})
    world.settle()
    evaluate(world, 0.3, 0.3, counted={"v1": GOOD["v1"], "v3": GOOD["v2"]})
    assert rejected(world) == [("v2", "AnalysisFailed")]
    evaluate(world, 0.3, counted={"v1": GOOD["v1"], "v3": GOOD["v2"]})
    assert ("v3", "AnalysisFailed") in rejected(world)


def test_a_breach_is_seen_while_the_rollout_is_paused():
    world = checked_world()
    world.spec(WHOLE, paused=True)
    evaluate(world, 0.3, 0.3, 0.3)
    assert rejected(world) == [("v2", "AnalysisFailed")]


@pytest.mark.parametrize(("number", "words"), [(0.12, "0.12 is within max 0.2"), (0.3, "0.3 is above max 0.2, 0 of 3")])
def test_an_early_number_takes_the_place_of_one_of_the_step_before_and_is_none_of_the_row(number: float, words: str):
    world = checked_world({**DRIFT, "interval": "1h"})
    evaluate(world, 0.1)
    look(world, GOOD, looks=60)
    assert world.weights["v2"] == 25
    assert said(world)[0]["message"] == "it has not been evaluated at this weight yet"
    for _ in range(3):  # as other processes ask at their start
        world.asking.restart()
        evaluate(world, number)
    assert said(world)[0]["message"].startswith(words)
    assert rejected(world) == [] and record(world).checks["drift"].failing == 0


def test_evaluations_are_written_with_a_look_and_stay_small():
    world = checked_world(*({**DRIFT, "name": f"drift-{n}"} for n in range(8)))
    evaluate(world, *[{f"drift-{n}": 0.1 for n in range(8)}] * 5)
    assert len(json.dumps(record(world).to_dict())) < 9000
    before = (world.evidence, world.now.metadata.resource_version)
    world.asking.evaluate(world.now, world.clock)
    world.settle()
    assert (world.evidence, world.now.metadata.resource_version) == before


def test_a_clock_that_went_back_makes_nothing_new():
    world = checked_world()
    evaluate(world, 0.1)
    known = record(world).checks["drift"]
    assert known.at is not None
    ahead = record(world).model_copy(update={"checks": {"drift": known.model_copy(update={"at": known.at + 86400})}})
    world.asking.restart()
    assert world.evidence is not None
    world.evidence = type(world.evidence)(**{**vars(world.evidence), "record": json.dumps(ahead.to_dict())})
    look(world, GOOD)
    assert said(world)[0].get("value") is None
    evaluate(world, 0.15)
    assert said(world)[0]["value"] == "0.15"


def test_the_time_of_what_is_inconclusive_does_not_run_before_the_first_number_of_a_step():
    world = checked_world(onInconclusive="Rollback", inconclusiveDeadline="5s")
    world.spec(WHOLE, steps=[{"weight": 5, "hold": "0s"}, {"weight": 25, "hold": "1h"}])
    look(world, GOOD, looks=12)
    assert (world.weights["v2"], world.status.phase, rejected(world)) == (5, "Inconclusive", [])
    evaluate(world, 0.1)
    assert (world.weights["v2"], rejected(world)) == (25, [])


def test_what_the_candidate_before_had_out_of_bounds_is_not_the_next_one_s():
    world = checked_world({**DRIFT, "query": "drift_of_all"})
    evaluate(world, 0.3, 0.3)
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    evaluate(world, 0.3, 0.3, counted={"v1": GOOD["v1"], "v3": GOOD["v2"]})
    assert rejected(world) == []
    evaluate(world, 0.3, counted={"v1": GOOD["v1"], "v3": GOOD["v2"]})
    assert rejected(world) == [("v3", "AnalysisFailed")]
