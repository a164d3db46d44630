"""Ready, Reconciling and Stalled, and the words that reasons come with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.builders import T0, at, stamp
from tuneyard.api.conditions import Condition, merged
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import ObjectReference
from tuneyard.planning.readiness import readiness, stalled_by, stalled_event
from tuneyard.planning.remedies import REMEDIES, TEXT_LIMIT, clipped, named, unnamed, with_remedy
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

DONE = Problem(Reason.READY, "all there")
BROKEN = Problem(Reason.UNSCHEDULABLE, "no node")
BUSY = Problem(Reason.LOADING, "1 of 2")
ABOUT = ObjectReference("v1", "Thing", "ns", "name")


@pytest.mark.parametrize(
    ("problem", "work", "expected"),
    [
        (None, None, {"Ready": ("True", "Ready")}),
        (None, BUSY, {"Ready": ("False", "Loading"), "Reconciling": ("True", "Loading")}),
        (BROKEN, BUSY, {"Ready": ("False", "Unschedulable"), "Stalled": ("True", "Unschedulable")}),
    ],
)
def test_conditions_after_kstatus(problem, work, expected):
    assert {f.type: (f.status, f.reason.value) for f in readiness(problem, work, DONE)} == expected


def test_an_obstacle_is_an_event_when_it_is_new():
    stalled = merged([], readiness(BROKEN, None, DONE), stamp(0), 1)
    assert stalled_event(stalled, BROKEN, ABOUT) == ()
    assert stalled_event(stalled, None, ABOUT) == ()
    (event,) = stalled_event(stalled, Problem(Reason.ENGINE_CRASHED, "x"), ABOUT)
    assert (event.type, event.reason, event.about) == ("Warning", Reason.ENGINE_CRASHED, ABOUT)


def test_a_refusal_stalls_what_was_planned_and_keeps_its_time():
    planned = ModelDeploymentStatus(
        model_name="chat",
        conditions=[
            Condition(type="Ready", status="True", reason="Ready", last_transition_time=stamp(0)),
            Condition(type="Accepted", status="True", reason="Accepted", last_transition_time=stamp(0)),
        ],
    )
    refused = Problem(Reason.INVALID_SPEC, "the API server refuses Deployment x")
    first = stalled_by(planned, refused, planned.conditions, 7, at(1))
    assert (first.model_name, first.observed_generation) == ("chat", 7)
    assert {c.type: (c.status, c.last_transition_time) for c in first.conditions} == {
        "Ready": ("False", stamp(1)),
        "Stalled": ("True", stamp(1)),
        "Accepted": ("True", stamp(0)),
    }
    assert stalled_by(planned, refused, first.conditions, 7, at(2)) == first


@pytest.mark.parametrize("reason", REMEDIES)
def test_words_have_a_remedy_once_and_can_be_read_back(reason):
    problem = Problem(reason, "something is so")
    assert with_remedy(problem) == f"something is so; {REMEDIES[reason]}"
    assert unnamed(named(problem)) == problem


def test_a_problem_without_words_has_its_documented_ones():
    assert with_remedy(Problem(Reason.SHAPE_MISMATCH, "")) == Reason.SHAPE_MISMATCH.doc.rstrip(".")


@pytest.mark.parametrize("text", ["", "serving", "1 of 2 pods serve", "pod a: crashed"])
def test_other_words_name_no_problem(text):
    assert unnamed(text) is None


def test_texts_fit_into_a_status():
    assert len(named(Problem(Reason.ENGINE_CRASHED, "x" * 5000))) == TEXT_LIMIT
    assert clipped("short") == "short"
    assert clipped("half \udcff") == "half \\udcff", "the API takes no halves of characters"


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05Z"),
    ],
)
def test_times_are_utc_in_whole_seconds(moment, text):
    assert rfc3339(moment) == text
    assert parsed_time(text) == moment.replace(microsecond=0)


@pytest.mark.parametrize("text", [None, "", "yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_none(text):
    assert parsed_time(text) is None


def test_grace_is_counted_from_the_past():
    assert remaining(at(-1), 60, T0) == 0
    assert remaining(at(-0.5), 60, T0) == 30
    assert remaining(at(5), 60, T0) == 60
