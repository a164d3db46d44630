"""What a judged candidate waits for, and what must not keep it waiting."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.toyworld.rollouts import WHOLE, later, rejected
from tests.unit.planning.test_rollout_analysis import GOOD, judged_world, look
from tuneyard.api.analysis import Slo
from tuneyard.planning.evidence import Tally

BROKEN = {"v1": Tally(900, 90, 90, 9)}


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
