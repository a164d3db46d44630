"""Rollouts whose candidate refuses requests, or whose answers nothing can judge; gateways and operators of before."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.toyworld.rollouts import GATEWAYS, RolloutWorld, later, rejected
from tests.unit.planning.test_rollout_analysis import judged_world, record
from tuneyard.planning.evidence import Objective, Tally

pytestmark = pytest.mark.lasting


def refusals(
    world: RolloutWorld,
    mine: Tally,
    other: Tally,
    looks: int,
    *,
    seconds: float = 5,
    told_by: tuple[str, ...] = GATEWAYS,
) -> None:
    """Time passes, and gateways count so many requests of v2 (`mine`) and v1, of which those are bad that were refused.

    What is not refused is judged by errorRate; gateways that are not named in `told_by` are older and tell only that.
    """
    for _ in range(looks):
        world.clock += timedelta(seconds=seconds)
        for name, gateway in world.counting.items():
            for revision, tally in (("v2", mine), ("v1", other)):
                if good := tally.judged - tally.bad:
                    gateway.count(revision, Tally(good))
                if tally.judged and name in told_by:
                    gateway.count(revision, tally, Objective.CLIENT_ERRORS)
                    gateway.count(revision, Tally(tally.judged), Objective.CLIENTS_LEFT)
                    gateway.count(revision, Tally(tally.judged, tally.bad), Objective.UNJUDGED)
        world.settle()


REFUSES, ANSWERS = Tally(2, 2, 2, 2), Tally(198, 1, 1)


@pytest.mark.parametrize("told_by", [GATEWAYS, GATEWAYS[:1]])
@pytest.mark.parametrize("action", ["Hold", "Promote"])
def test_a_candidate_that_refuses_what_stable_answers_is_rejected(action: str, told_by: tuple[str, ...]):
    world = judged_world(onInconclusive=action, inconclusiveDeadline="10m")
    refusals(world, REFUSES, ANSWERS, looks=20, told_by=told_by)
    assert rejected(world) == [("v2", "AnalysisFailed")] and world.weights == {"v1": 100}
    (told,) = (e.message for e in world.events if e.reason.value == "RolledBack")
    assert "of the requests to v2 were refused with status 400 to 499, in the same time " in told


@pytest.mark.parametrize(("action", "weight"), [("Hold", 5), ("Promote", 5), ("Rollback", None)])
def test_a_candidate_none_of_whose_answers_could_be_judged_is_not_promoted_for_having_waited(
    action: str, weight: int | None
):
    """It refuses all, and stable does so as well: nobody is worse."""
    world = judged_world(onInconclusive=action, inconclusiveDeadline="10m")
    refusals(world, REFUSES, Tally(198, 198, 198, 198), looks=30, seconds=60)
    assert world.weights.get("v2") == weight
    if weight:
        assert world.conditions["Ready"] == ("False", "Inconclusive"), "and not that nobody asks it"
        message = next(c.message for c in world.now.status.conditions if c.type == "Ready")
        assert "v2 is asked, but no objective could judge any of its " in message
        later(world, 60)
        assert world.weights["v2"] == 5, "nor when nobody asks it any more"


def test_older_gateways_do_not_tell_refusals_and_all_goes_on_as_it_did():
    world = judged_world(onInconclusive="Promote", inconclusiveDeadline="10m")
    refusals(world, REFUSES, ANSWERS, looks=10, told_by=())
    assert world.status.analysis is not None and rejected(world) == []
    refusals(world, REFUSES, ANSWERS, looks=20, seconds=60, told_by=())
    assert world.weights["v2"] > 5


def test_what_an_older_operator_has_not_read_of_refusals_is_where_they_begin():
    world = judged_world()
    refusals(world, Tally(20), Tally(380, 4), looks=4)
    assert world.evidence is not None and world.evidence.record is not None
    older = json.loads(world.evidence.record)
    assert older.pop("unnamed") is True
    older["seen"] = {
        process: {r: {o: n for o, n in objectives.items() if o == "errorRate"} for r, objectives in counts.items()}
        for process, counts in older["seen"].items()
    }
    older["analysis"] = {n: v for n, v in older["analysis"].items() if n not in ("unnamed", "ended", "asked")}
    for gateway in world.counting.values():
        gateway.count("v2", Tally(500, 500, 500, 500), Objective.CLIENT_ERRORS)
    world.evidence = replace(world.evidence, record=json.dumps(older))
    refusals(world, Tally(20), Tally(380, 4), looks=3)
    assert rejected(world) == []
    assert world.status.analysis is not None
    (refused,) = (o for o in world.status.analysis.objectives or () if o.objective == "clientErrors")
    assert (refused.candidate_judged, refused.candidate_bad) == (2 * 2 * 20, 0), "of the looks after the first"
    assert record(world).unnamed
