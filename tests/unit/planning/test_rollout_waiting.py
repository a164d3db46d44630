"""What a judged candidate waits for, and what must not keep it waiting."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from tests.toyworld.rollouts import WHOLE, RolloutWorld, finished, later, rejected
from tests.unit.planning.test_rollout_analysis import GOOD, judged_world, look
from tuneyard.api.analysis import Slo
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import MAX_HISTORY, Outcome
from tuneyard.planning.evidence import Tally
from tuneyard.planning.rollouthistory import bounded

pytestmark = pytest.mark.lasting

BROKEN = {"v1": Tally(900, 90, 90, 9)}


def line(contents: str, outcome: Literal["Stable", "Rejected"]) -> Outcome:
    return Outcome(revision="v", content_hash=contents, outcome=outcome, at="2026-01-01T00:00:00Z")


def test_who_has_traffic_stays_the_candidate_while_it_is_judged():
    """Of two with traffic one would be watched by nobody."""
    world = judged_world()
    look(world, GOOD, looks=12, seconds=26)
    world.ready["v3"] = False
    world.spec({"v1": 50, "v2": 25, "v3": 25})
    world.settle()
    assert (world.status.candidate, world.weights.get("v3", 0)) == ("v2", 0)
    look(world, {"v1": Tally(900, 5, 5), "v2": Tally(100, 100, 1, 99)}, looks=3)
    assert rejected(world) == [("v2", "AnalysisFailed")]
    assert world.weights == {"v1": 100}
    world.ready["v3"] = True
    world.settle()
    assert (world.status.candidate, world.weights["v3"]) == ("v3", 5), "who is rejected blocks nobody"


def test_what_mends_a_broken_stable_goes_on():
    world = judged_world()
    world.spec({"v1": 100, "v2": 0})
    world.settle()
    look(world, BROKEN, looks=10, seconds=61)
    world.spec(WHOLE)
    world.settle()
    look(world, {"v1": Tally(900, 90, 90, 9), "v2": Tally(100)}, looks=12, seconds=26)
    assert world.status.analysis is not None
    assert world.weights["v2"] > 5, world.status.analysis


def test_a_gateway_that_is_silent_now_and_then_lets_the_time_of_an_inconclusive_candidate_run_on():
    world = judged_world(onInconclusive="Rollback", inconclusiveDeadline="30m")
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=5)
    later(world, 6)
    assert world.status.phase == "Inconclusive"
    gateway = next(iter(world.counting.values()))
    ran = 0
    while ran < 60:
        later(world, 9)
        ran += 9
        if rejected(world):
            break
        gateway.silent = True
        world.settle()
        later(world, 4)
        assert world.status.analysis is not None
        assert world.status.analysis.halted_since, "the time does not run while one gateway does not tell"
        gateway.silent = False
        world.settle()
    assert 27 <= ran <= 36, "what has run of it counts on, and the rest does not"
    assert rejected(world) == [("v2", "Inconclusive")]


@pytest.mark.parametrize("share", ["0%", "0.0%", "0.000%", "100%", "1", "-1%"])
def test_a_share_of_nothing_is_refused(share: str):
    """It could never be said that less than that will be bad."""
    with pytest.raises(ValidationError):
        Slo.from_dict({"errorRate": share})


@pytest.mark.parametrize("share", ["0.5%", "0.05%", "0.010%", "1%", "2.5%", "99.9%"])
def test_any_other_share_is_taken(share: str):
    assert Slo.from_dict({"errorRate": share}).error_rate == share


def test_who_has_all_that_the_spec_gives_it_lets_the_next_one_climb_after_its_hold():
    world = judged_world()
    world.ready["v3"] = True
    world.spec({"v1": 70, "v2": 5, "v3": 25})
    world.settle()
    assert (world.status.candidate, world.weights) == ("v2", {"v1": 95, "v2": 5})
    assert world.conditions["Ready"] == ("False", "Progressing"), "v3 has not what the spec gives it"
    work = next(c.message for c in world.now.status.conditions if c.type == "Reconciling")
    assert work == "v2 has 5 of 5 %; v3 is next when its hold is over"
    assert world.plan.requeue_after is not None and world.plan.requeue_after <= 300
    look(world, GOOD, looks=10, seconds=31)
    assert (world.status.candidate, world.weights) == ("v3", {"v1": 90, "v2": 5, "v3": 5})
    look(world, {**GOOD, "v3": Tally(100, 100, 1, 99)}, looks=3)
    assert rejected(world) == [("v3", "AnalysisFailed")]
    assert world.weights == {"v1": 95, "v2": 5}
    look(world, {"v1": Tally(900, 5, 5), "v2": Tally(100, 100, 1, 99)}, looks=3)
    assert world.weights == {"v1": 100}, "who rests is judged again when nobody else climbs"


def test_where_answers_are_judged_who_rests_has_passed():
    world = judged_world()
    world.ready["v3"] = True
    world.spec({"v1": 70, "v2": 5, "v3": 25})
    world.settle()
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=30, seconds=31)
    assert (world.status.candidate, world.weights) == ("v2", {"v1": 95, "v2": 5})
    work = next(c.message for c in world.now.status.conditions if c.type == "Reconciling")
    assert work.startswith("v2 has 5 of 5 %; v3 is next when it has passed: ")
    world.command("promote", "v2")
    look(world, {"v1": Tally(95), "v2": Tally(2)}, looks=11, seconds=31)
    assert world.weights == {"v1": 90, "v2": 5, "v3": 5}, "who is promoted needs no evidence"


def test_of_several_that_rest_one_stays_the_candidate():
    """With each change its evidence would begin anew, and so would the promise of how seldom it is wrong."""
    world = judged_world()
    world.ready["v3"] = True
    world.spec({"v1": 85, "v2": 5, "v3": 10})
    world.settle()
    look(world, GOOD, looks=10, seconds=31)
    look(world, {**GOOD, "v3": Tally(100)}, looks=40, seconds=31)
    assert (world.status.candidate, world.weights) == ("v3", {"v1": 85, "v2": 5, "v3": 10})
    since = world.status.analysis.since if world.status.analysis else None
    for _ in range(60):
        look(world, {**GOOD, "v3": Tally(100)}, seconds=31)
        assert world.status.candidate == "v3" and world.conditions["Ready"] == ("True", "Ready")
    assert world.status.analysis is not None and world.status.analysis.since == since


def test_a_command_ends_who_rests_beside_the_candidate():
    world = RolloutWorld()
    world.ready |= {"v2": True, "v3": True}
    world.spec({"v1": 85, "v2": 5, "v3": 10})
    world.settle()
    for _ in range(3):
        later(world, 6)
    assert (world.status.candidate, world.weights) == ("v2", {"v1": 85, "v2": 5, "v3": 10})
    world.command("abort", "v3")
    world.settle()
    assert (rejected(world), world.weights) == ([("v3", "Aborted")], {"v1": 95, "v2": 5})
    world.command("abort", "v1", id_="two")
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}, "nobody ends the stable one"


def test_each_rejection_is_told():
    """Also one that changes no phase, and one beside which another candidate goes on."""
    world = judged_world()
    world.spec(WHOLE, listed=["v1", "v2", "v3"])
    world.command("abort", "v2")
    world.settle()
    world.broken["v3"] = Reason.NON_FINITE_VALUES
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    world.ready["v4"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 0, "v4": 100})
    world.settle()
    world.command("abort", "v4", id_="again")
    world.ready["v5"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 0, "v4": 50, "v5": 50})
    world.settle()
    told = [e.message.split(" ")[0] for e in world.events if e.reason.value == "RolledBack"]
    assert told == ["v2", "v3", "v4"]


def test_one_that_is_rejected_again_and_again_takes_the_way_back_from_nobody():
    world = finished()
    world.ready["v3"] = True
    for number in range(MAX_HISTORY + 2):
        world.spec({"v1": 0, "v2": 0, "v3": 100}, retryToken=f"t{number}")
        world.settle()
        world.command("abort", "v3", id_=f"c{number}")
        world.settle()
        world.wait(1)
    assert len(world.status.history or ()) == MAX_HISTORY
    world.spec({"v1": 100, "v2": 0, "v3": 0})
    assert world.routes().weights["v1"] == 100, "at once, by the gateways alone"
    world.settle()
    assert (world.status.stable, world.weights) == ("v1", {"v1": 100})


def test_a_bounded_history_never_makes_a_rejected_one_stable():
    lines = [line("a", "Stable"), line("a", "Rejected"), line("b", "Stable")]
    lines += [line(f"c{n}", "Rejected") for n in range(MAX_HISTORY)]
    kept = bounded(lines)
    assert len(kept) == MAX_HISTORY and line("b", "Stable") in kept
    assert not [k for k in kept if k.content_hash == "a" and k.outcome == "Stable"]
    assert bounded([line(f"s{n}", "Stable") for n in range(MAX_HISTORY + 1)])[0].content_hash == "s1"
