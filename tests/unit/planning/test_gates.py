"""Gates before traffic: each test is a story of one candidate, with the Jobs that would exist."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import stamp
from tests.toyworld.gates import QUALITY, SPEED, Gates, measured
from tests.toyworld.rollouts import RolloutWorld, canary, later, reasons, rejected
from tuneyard.api.gatereports import EvaluationNumbers, GateReport
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning import gates, rollout
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.verdicts import failure


def gated(*gates: dict[str, Any], **rollout: Any) -> RolloutWorld:
    """v2 is loaded, has just been given weight, and its first gate runs."""
    return canary(gates=list(gates or (SPEED,)), **rollout)


def states(world: RolloutWorld) -> list[tuple[str, str]]:
    return [(g.name, g.state) for g in world.status.gates or ()]


def runs(world: RolloutWorld) -> int:
    return len(world.gates.made)


def test_a_candidate_gets_nothing_until_its_gate_has_passed():
    world = gated()
    assert world.weights == {"v1": 100}
    assert (world.status.phase, states(world)) == ("Gating", [("speed", "Running")])
    assert not world.status.allowed, "not named is nothing, and 0 would be a verdict"
    assert world.conditions["Reconciling"] == ("True", "Gating")
    assert world.gates.running == world.gates.jobs != []
    assert world.plan.requeue_after == 2
    later(world, 60)
    assert world.weights == {"v1": 100}


def test_who_passes_begins_at_the_first_step_and_its_job_goes():
    world = gated()
    world.gates.end(measured(105))
    world.settle()
    assert (world.status.phase, world.weights) == ("Progressing", {"v1": 95, "v2": 5})
    assert states(world) == [("speed", "Passed")]
    assert world.gates.jobs == []
    assert world.gates.results == [("v2", "speed", "Passed")]
    assert reasons(world) == ["Gating", "Progressing"]
    later(world, 5)
    later(world, 10)
    assert (world.status.stable, world.status.gates) == ("v2", None)


def test_who_fails_is_rejected_with_the_numbers():
    world = gated()
    world.gates.end(measured(200))
    world.settle()
    assert rejected(world) == [("v2", "GateFailed")]
    assert world.status.verdicts and world.status.verdicts[0].evidence == (
        "gate speed: ttftP95 200 ms is over 1.10x of stable's 100 ms"
    )
    assert (world.status.phase, world.weights, world.gates.jobs) == ("RolledBack", {"v1": 100}, [])
    assert states(world) == [("speed", "Failed")]
    later(world, 600)
    assert runs(world) == 1


def test_gates_run_one_after_the_other():
    world = gated(SPEED, QUALITY)
    assert states(world) == [("speed", "Running"), ("quality", "Waiting")]
    assert len(world.gates.jobs) == 1
    world.gates.end(measured(100))
    world.settle()
    assert states(world) == [("speed", "Passed"), ("quality", "Running")]
    assert world.weights == {"v1": 100}
    world.gates.end(GateReport(evaluation=EvaluationNumbers(prompts=5, scores={"exactMatch": 0.6})))
    world.settle()
    assert world.status.verdicts and world.status.verdicts[0].evidence == "gate quality: exactMatch 0.6 is under 0.8"


def test_a_gate_that_cannot_run_holds_and_is_tried_again_with_growing_delays():
    world = gated()
    delays = []
    for attempt in range(1, 9):
        world.gates.end(GateReport(cannot_run="the judge j gives no grade: status 503"))
        world.settle()
        (state,) = world.status.gates or []
        assert (state.state, state.attempt) == ("CannotRun", attempt + 1)
        assert (world.status.phase, world.weights, rejected(world)) == ("Gating", {"v1": 100}, [])
        delays.append(world.plan.requeue_after)
        later(world, (world.plan.requeue_after or 0) / 60)
    assert delays == [30, 60, 120, 240, 480, 960, 1800, 1800]
    assert world.conditions["Reconciling"] == ("True", "Gating"), "the ninth run is under way"
    world.gates.end(measured(100))
    world.settle()
    assert world.status.phase == "Progressing"


def test_what_cannot_run_says_why():
    world = gated()
    world.gates.end("Traceback: of a program that is broken")
    world.settle()
    assert world.conditions["Ready"] == ("False", "GateCannotRun")
    message = next(c.message for c in world.now.status.conditions if c.type == "Ready")
    assert message.startswith(
        "gate speed cannot run: its pod ended without a report (Error, exit code 0): Traceback: of a program"
    )


def test_a_job_that_is_lost_or_cannot_be_made_or_hangs_is_run_again():
    lost = gated()
    lost.gates.remove(lost.gates.jobs[0])
    lost.settle()
    assert states(lost) == [("speed", "CannotRun")]
    later(lost, 1)
    assert (states(lost), runs(lost)) == ([("speed", "Running")], 2)

    unmade = RolloutWorld(gates=Gates(broken=True))
    unmade.ready["v2"] = True
    unmade.spec({"v1": 0, "v2": 100}, gates=[SPEED])
    for _ in range(10):
        unmade.reconcile()
    assert (states(unmade), unmade.weights) == ([("speed", "Waiting")], {"v1": 100})
    assert any(isinstance(a, Apply) and a.object["kind"] == "Job" for a in unmade.plan.actions), "it is asked for again"

    hanging = gated({**SPEED, "timeout": "10m"})
    later(hanging, 11)
    assert states(hanging) == [("speed", "Running")]
    later(hanging, 1)
    assert states(hanging) == [("speed", "CannotRun")]
    assert "has not ended within its timeout of 600 s" in (hanging.status.gates or [])[0].message


def test_no_gate_begins_without_pods_to_measure():
    world = RolloutWorld()
    world.spec({"v1": 0, "v2": 100}, gates=[SPEED])
    world.settle()
    assert (states(world), world.gates.jobs) == ([("speed", "Waiting")], [])
    later(world, 21)
    assert rejected(world) == [("v2", "ProgressDeadlineExceeded")], "the deadline runs meanwhile"
    world = RolloutWorld()
    world.ready = {"v1": False, "v2": True}
    world.spec({"v1": 0, "v2": 100}, gates=[SPEED])
    world.settle()
    assert (states(world), world.gates.jobs) == ([("speed", "Waiting")], [])


def test_results_outlive_status_and_object():
    world = gated()
    world.gates.end(measured(100))
    world.settle()
    world.lose_status()
    world.settle()
    assert (world.status.phase, world.weights, runs(world)) == ("Progressing", {"v1": 95, "v2": 5}, 1)
    world.recreate()
    world.settle()
    assert (world.status.phase, world.weights, runs(world)) == ("Progressing", {"v1": 95, "v2": 5}, 1)


def test_a_lost_status_finds_the_job_that_runs():
    world = gated()
    world.lose_status()
    world.settle()
    assert (states(world), runs(world)) == ([("speed", "Running")], 1)


def test_a_crash_after_any_action_runs_no_gate_twice():
    world = gated()
    world.gates.end(measured(200))
    world.reconcile(crash=True)
    world.settle()
    assert (rejected(world), runs(world)) == ([("v2", "GateFailed")], 1)


def test_other_contents_and_another_limit_are_other_gates():
    world = gated()
    world.gates.end(measured(150))
    world.settle()
    world.editions["v2"] = 1
    world.settle()
    assert (states(world), rejected(world)) == ([("speed", "Waiting")], []), "no pod has the new contents yet"
    world = gated()
    world.gates.end(measured(150))
    world.settle()
    world.spec({"v1": 0, "v2": 100}, gates=[{"name": "speed", "benchmark": {"max": {"ttftP95": "2x"}}}])
    world.settle()
    assert (rejected(world), runs(world)) == ([("v2", "GateFailed")], 1), "a verdict stays until it is retried"
    world = gated()
    world.spec({"v1": 0, "v2": 100}, gates=[{"name": "speed", "benchmark": {"max": {"ttftP95": "2x"}}}])
    world.settle()
    assert (len(world.gates.jobs), runs(world)) == (1, 2), "the one with the old limit has gone"
    world.spec(
        {"v1": 0, "v2": 100}, gates=[{"name": "speed", "timeout": "2h", "benchmark": {"max": {"ttftP95": "2x"}}}]
    )
    world.settle()
    assert runs(world) == 2, "a timeout decides no number"


def test_a_candidate_that_climbs_is_not_gated_any_more():
    world = gated()
    world.gates.end(measured(100))
    world.settle()
    world.spec({"v1": 0, "v2": 100}, gates=[SPEED, QUALITY])
    world.settle()
    assert (world.status.phase, world.weights) == ("Progressing", {"v1": 95, "v2": 5})


def test_the_first_revision_and_what_was_stable_need_no_gates():
    world = RolloutWorld(rollout={"mode": "Progressive", "steps": [{"weight": 5}], "gates": [SPEED]})
    assert (world.status.stable, world.weights, world.gates.made) == ("v1", {"v1": 100}, [])
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    world.gates.end(measured(100))
    world.settle()
    assert world.status.stable == "v2"
    world.spec({"v1": 100, "v2": 0})
    world.settle()
    assert (world.status.stable, runs(world)) == ("v1", 1)


def test_promote_skips_and_that_is_kept():
    world = gated()
    world.command("promote", "v2")
    world.settle()
    assert (world.status.stable, world.weights, world.gates.jobs) == ("v2", {"v2": 100}, [])
    assert world.gates.results == [("v2", "speed", "Skipped")]
    answer = world.status.last_command
    assert answer and answer.message == "v2 gets its spec weight, 100 %; gates that are skipped: speed"


def test_retry_runs_them_again():
    world = gated(SPEED, QUALITY)
    world.gates.end(measured(100))
    world.settle()
    world.gates.end(GateReport(evaluation=EvaluationNumbers(prompts=5, scores={"exactMatch": 0.6})))
    world.settle()
    world.wait(1)
    world.command("retry", "v2")
    world.settle()
    assert (states(world), rejected(world)) == ([("speed", "Running"), ("quality", "Waiting")], [])
    world.wait(1)
    world.gates.end(measured(200))
    world.settle()
    assert rejected(world) == [("v2", "GateFailed")]
    world.wait(1)
    world.spec({"v1": 0, "v2": 100}, retryToken="again")
    world.settle()
    assert (states(world)[0], runs(world)) == (("speed", "Running"), 4)
    assert world.status.gates_since == stamp(3)


@pytest.mark.parametrize("token", [None, "again"])
def test_who_failed_and_comes_again_without_a_verdict_is_measured_again(token: str | None):
    world = gated(SPEED, QUALITY)
    world.gates.end(measured(100))
    world.settle()
    world.gates.end(GateReport(evaluation=EvaluationNumbers(prompts=5, scores={"exactMatch": 0.6})))
    world.settle()
    assert rejected(world) == [("v2", "GateFailed")]
    world.spec({"v1": 100})
    world.settle()
    assert rejected(world) == [], "the verdict went with the revision"
    world.wait(60)
    world.spec({"v1": 0, "v2": 100}, retryToken=token)
    world.settle()
    assert (states(world), rejected(world)) == ([("speed", "Passed"), ("quality", "Running")], [])
    world.wait(1)
    world.gates.end(GateReport(evaluation=EvaluationNumbers(prompts=5, scores={"exactMatch": 0.9})))
    world.settle()
    assert (world.status.phase, runs(world)) == ("Progressing", 3)
    assert world.gates.results == [("v2", "speed", "Passed"), ("v2", "quality", "Passed")]


def test_what_a_gate_found_is_kept_also_when_the_operator_ends_after_the_verdict():
    world = gated()
    world.gates.end(measured(200))
    world.reconcile(crash=True)
    assert (rejected(world), world.gates.results) == ([("v2", "GateFailed")], [])
    world.settle()
    assert (states(world), world.gates.jobs) == ([("speed", "Failed")], [])
    assert world.gates.results == [("v2", "speed", "Failed")]


def test_what_the_pod_of_an_earlier_job_of_that_name_says_is_not_of_this_run():
    world = gated()
    world.gates.lingering = []
    world.gates.end(measured(200))
    world.settle()
    world.wait(1)
    world.command("retry", "v2")
    for _ in range(8):
        world.reconcile()
        later(world, 0.05)
    assert world.gates.made == world.gates.made[:1] * 2, "the first run of the second try has the name of the first"
    assert (states(world), rejected(world)) == ([("speed", "Running")], [])
    world.wait(1)
    world.gates.end(measured(100))
    world.settle()
    assert (world.status.phase, states(world)) == ("Progressing", [("speed", "Passed")])


def test_paused_no_gate_begins_and_the_one_that_runs_goes_on():
    world = RolloutWorld()
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100}, gates=[SPEED], paused=True)
    world.settle()
    assert (world.status.phase, world.gates.jobs) == ("Paused", [])
    world.spec({"v1": 0, "v2": 100}, paused=False)
    world.settle()
    assert (world.status.phase, len(world.gates.running)) == ("Gating", 1)
    world.spec({"v1": 0, "v2": 100}, paused=True)
    world.settle()
    assert (world.status.phase, len(world.gates.running)) == ("Paused", 1)
    assert world.conditions["Reconciling"] == ("True", "Paused")


def test_the_gates_of_a_candidate_are_looked_at_once_a_pass(monkeypatch: pytest.MonkeyPatch):
    world = gated()
    looked: list[str] = []

    def counted(seen: Seen, status: RolloutStatus, candidate: str) -> gates.Gating:
        looked.append(candidate)
        return gates.gating(seen, status, candidate)

    monkeypatch.setattr(rollout, "gating", counted)
    world.reconcile()
    assert looked == ["v2"]
    looked.clear()
    world.gates.end(measured(200))
    world.reconcile()
    assert (looked, rejected(world)) == (["v2"], [("v2", "GateFailed")])


def test_a_job_nobody_waits_for_goes():
    for words, end in (
        ("the spec goes back", lambda w: w.spec({"v1": 100, "v2": 0})),
        ("aborted", lambda w: w.command("abort", "v2")),
        ("no gates any more", lambda w: w.spec({"v1": 0, "v2": 100}, gates=[])),
        ("no steps any more", lambda w: w.spec({"v1": 0, "v2": 100}, mode="Manual")),
    ):
        world = gated()
        end(world)
        world.settle()
        assert world.gates.jobs == [], words


@pytest.mark.parametrize("stopped", [False, True])
def test_a_promotion_of_who_is_rejected_in_the_same_pass_promotes_nobody_else(stopped: bool):
    world = gated()
    world.gates.end(measured(100))
    world.settle()
    world.ready["v3"] = True
    world.spec({"v1": 0, "v3": 50, "v2": 50}, listed=["v1", "v3", "v2"])
    world.settle()
    assert (world.status.candidate, world.weights) == ("v2", {"v1": 95, "v2": 5})
    if stopped:
        world.command("pause", id_="pause")
        world.settle()
    world.command("promote", "v2")
    why = Problem(Reason.ENGINE_CRASHED, "as the test has it")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rollout, "failure", lambda seen, name, to: why if name == "v2" else failure(seen, name, to))
        world.settle()
    assert rejected(world) == [("v2", "EngineCrashed")]
    assert (world.status.candidate, world.weights) == ("v3", {"v1": 100})
    assert world.status.phase == ("Paused" if stopped else "Gating"), "what is refused changes nothing"
    answer = world.status.last_command
    assert answer is not None and not answer.accepted
    assert answer.message == "v2 is rejected now (EngineCrashed: as the test has it): retry it first"
    assert reasons(world).count("CommandRefused") == 1


def test_a_candidate_that_follows_is_gated_while_the_one_before_keeps_its_share():
    world = gated()
    world.gates.end(measured(100))
    world.settle()
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 50, "v3": 50})
    world.settle()
    assert (world.status.candidate, world.status.phase, world.weights) == ("v3", "Gating", {"v1": 95, "v2": 5})
    world.gates.end(measured(100))
    world.settle()
    assert (world.status.candidate, world.weights) == ("v3", {"v1": 90, "v2": 5, "v3": 5})
