"""Bugs that were reported of other systems, each as the history that led to it, replayed against our rules.

Two leaders at once (argo-rollouts#2117) need processes: tests/contract/test_operator_faults.py.
"""

from __future__ import annotations

import pytest

from tests.toyworld.rollouts import GATEWAYS, WHOLE, RolloutWorld, canary, finished, later, rejected
from tests.unit.planning.test_rollout_analysis import judged_world, look
from tuneyard.planning.evidence import Tally

pytestmark = pytest.mark.lasting

BAD = {"v1": Tally(900, 5, 5), "v2": Tally(100, 100, 1, 99)}


def test_weight_goes_to_no_backend_that_is_not_ready():
    """kserve#5983, argo-rollouts#587: traffic was moved to pods that were not there yet, or not any more."""
    world = RolloutWorld()
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 100}
    world.ready["v2"] = True
    later(world, 5)
    later(world, 5)
    assert world.weights["v2"] == 25
    world.ready["v2"] = False
    assert world.routes().weights == {"v1": 100, "v2": 0}, "gateways do not wait for the operator"


def test_an_aborted_canary_is_back_at_exactly_0():
    """argo-rollouts#4841: some percent stayed with the canary after an abort."""
    world = finished(bakeTime="1h")
    world.command("abort", "v2")
    world.reconcile()
    for name in GATEWAYS:
        world.gateway(name)
        assert world.views[name].weights == {"v1": 100, "v2": 0}
    world.settle()
    assert world.weights == {"v1": 100}


def test_a_weight_of_0_is_written():
    """flagger#930: a zero was left out when the object was written, and read as the default."""
    world = canary()
    world.command("abort", "v2")
    world.settle()
    written = world.now.status.to_dict()
    assert written["rollout"]["allowed"] == {"v2": 0}
    assert [(t["revision"], t["weight"]) for t in written["traffic"]] == [("v1", 100), ("v2", 0)]
    assert written["rollout"]["weight"] == 0


@pytest.mark.parametrize("told", [{}, {"v1": Tally(900, 5, 5)}])
def test_silence_is_neither_failure_nor_success(told: dict[str, Tally]):
    """flagger#1035: no traffic was a failed check; flagger#1011: it was a passed one."""
    world = judged_world()
    look(world, told, looks=40, seconds=61)
    assert (world.weights, rejected(world)) == ({"v1": 95, "v2": 5}, [])
    assert world.conditions["Ready"][0] == "False"


def test_a_breach_counts_while_something_else_holds_the_rollout():
    """flagger#1801: while a gate was closed, breached metrics did not roll back."""
    world = judged_world()
    world.spec(WHOLE, paused=True)
    world.settle()
    look(world, BAD, looks=4)
    assert (rejected(world), world.weights) == ([("v2", "AnalysisFailed")], {"v1": 100})


@pytest.mark.parametrize("how", ["command", "token"])
def test_a_retry_needs_no_commit_that_changes_something_else(how: str):
    """flagger#1152: a failed canary could be tried again only by a change of its contents."""
    world = canary()
    world.command("abort", "v2")
    world.settle()
    assert world.weights == {"v1": 100}
    if how == "command":
        world.command("retry", "v2", id_="again")
    else:
        world.spec(WHOLE, retryToken="again")
    world.settle()
    assert (world.status.phase, world.weights) == ("Progressing", {"v1": 95, "v2": 5})


def test_nothing_is_stuck_after_an_abort():
    """argo-rollouts#3578, #3120: after an abort the rollout stayed Degraded, or took no other version."""
    world = canary()
    world.command("abort", "v2")
    world.settle()
    world.spec({"v1": 100, "v2": 0})
    world.settle()
    assert (world.status.phase, world.conditions["Ready"]) == ("Completed", ("True", "Ready"))
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    later(world, 5)
    later(world, 10)
    assert (world.status.stable, world.weights) == ("v3", {"v3": 100})


def test_a_rejected_canary_blocks_no_other():
    """OME: a failed canary had to be cleaned up before the next revision could begin."""
    world = judged_world()
    look(world, BAD, looks=4)
    assert rejected(world) == [("v2", "AnalysisFailed")]
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 50, "v3": 50})
    world.settle()
    assert (world.status.candidate, world.weights) == ("v3", {"v1": 95, "v3": 5})


def test_of_consecutive_canaries_none_keeps_what_the_one_before_had():
    """kserve#2130: with a second canary after the first, traffic leaked to the first one or to all of it at once."""
    world = canary()
    later(world, 5)
    assert world.weights == {"v1": 75, "v2": 25}
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    for name in GATEWAYS:
        world.gateway(name)
        assert world.views[name].weights == {"v1": 100, "v2": 0, "v3": 0}
    world.settle()
    assert world.weights == {"v1": 95, "v3": 5}
