"""`tuneyard rollout status` and `tuneyard history` at 80 and 120 columns, and which revision a command means."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.toyworld.drifting import run, watched
from tests.toyworld.gates import QUALITY, SPEED, measured
from tests.toyworld.rollouts import RolloutWorld, canary, finished, later
from tests.unit.cli.test_status_render import compare, shown
from tests.unit.planning.test_promchecks import COST, DRIFT, checked_world, evaluate
from tests.unit.planning.test_rollout_analysis import judged_world, look
from tuneyard.api.gatereports import GateReport
from tuneyard.api.reasons import Reason
from tuneyard.cli.rollout import meant, new_command
from tuneyard.cli.rolloutrender import render_history, render_rollout
from tuneyard.cli.rolloutview import evidence_line, history_view, rollout_view, summary
from tuneyard.planning.evidence import Tally


def rolled_back() -> RolloutWorld:
    world = canary()
    later(world, 2)
    world.command("abort", "v2")
    world.settle()
    return world


def paused() -> RolloutWorld:
    world = canary()
    world.command("pause")
    world.settle()
    return world


def climbing() -> RolloutWorld:
    world = canary()
    later(world, 5)
    world.wait(4)
    return world


def inconclusive() -> RolloutWorld:
    world = judged_world()
    look(world, {"v1": Tally(950, 5, 5), "v2": Tally(50, 1, 1)}, looks=2)
    look(world, {"v1": Tally(950, 5, 5), "v2": Tally(50, 1, 1)}, seconds=300)
    return world


def checked() -> RolloutWorld:
    world = checked_world(DRIFT, COST)
    evaluate(world, {"drift": 0.12, "cost": 2}, {"drift": 0.31, "cost": "Prometheus has not answered within 10 s"})
    return world


def drifting() -> RolloutWorld:
    world = watched()
    run(world, 0.9)
    run(world, 0.7)
    return world


def gating() -> RolloutWorld:
    """The first of two gates has passed, the second runs."""
    world = canary(gates=[SPEED, QUALITY])
    world.gates.end(measured(104))
    world.settle()
    world.gates.is_at("g1", 12, 80)
    later(world, 3)
    return world


def gate_held() -> RolloutWorld:
    world = canary(gates=[SPEED, QUALITY])
    world.gates.end(GateReport(cannot_run="no pod took 20 of the requests to v2 (status 503: )"))
    world.settle()
    world.clock += timedelta(seconds=2)
    return world


CASES = {
    "checked": checked,
    "drifting": drifting,
    "gating": gating,
    "gate-cannot-run": gate_held,
    "climbing": climbing,
    "inconclusive": inconclusive,
    "rolled-back": rolled_back,
    "paused": paused,
    "baking": lambda: finished(bakeTime="1h"),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.lasting
def test_rollout_status(case: str, width: int) -> None:
    world = CASES[case]()
    view = rollout_view(world.now, world.clock)
    compare(f"rollout-{case}-{width}", shown(render_rollout(view), width))


def test_history() -> None:
    world = finished()
    world.broken["v3"] = Reason.LOAD_REFUSED
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    compare("history-100", shown(render_history(history_view(world.now)), 100))
    manual = RolloutWorld(rollout={})
    assert "no rollout by steps" in shown(render_history(history_view(manual.now)), 80)


def test_the_line_in_the_status() -> None:
    world = climbing()
    assert summary(rollout_view(world.now, world.clock)) == "rollout: v2 has 25 of 100 %, 1/2 steps done"
    told = summary(rollout_view(paused().now, world.clock))
    assert told == "rollout: v2 has 5 of 100 %, 0/2 steps done, paused by a command"
    assert summary(rollout_view(RolloutWorld(rollout={}).now, world.clock)) is None


@pytest.mark.lasting
def test_a_line_of_the_live_view() -> None:
    world = inconclusive()
    line = evidence_line(rollout_view(world.now, world.clock))
    assert line.startswith("rollout: v2 has 5 of 100 %, 0/2 steps done, Continue (Inconclusive): errorRate: 6 of 300")
    world = gating()
    line = evidence_line(rollout_view(world.now, world.clock))
    assert line == "rollout: v2 has 0 of 100 % (Gating): gate quality Running, 12 of 80 prompts"
    assert evidence_line(rollout_view(RolloutWorld().now, world.clock)) == "rollout: v1 is stable (Completed)"


@pytest.mark.parametrize(
    ("world", "action", "revision"),
    [(climbing, "abort", "v2"), (rolled_back, "retry", "v2"), (RolloutWorld, "abort", None), (climbing, "retry", "v2")],
)
def test_the_revision_that_is_meant(world: Any, action: str, revision: str | None) -> None:
    assert meant(world().now, action) == revision


def test_a_command_names_the_contents_that_stand_under_the_name() -> None:
    world = climbing()
    contents = (world.status.contents or {})["v2"]
    command = new_command(world.now, "abort", "v2")
    assert command.pop("id")
    assert command == {"action": "abort", "revision": "v2", "contentHash": contents}
    assert new_command(world.now, "resume", None).keys() == {"id", "action"}
    assert new_command(world.now, "retry", "v9").keys() == {"id", "action", "revision"}
