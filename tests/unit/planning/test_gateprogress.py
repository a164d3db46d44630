"""How far the gates of a candidate are."""

from __future__ import annotations

from tests.toyworld.gates import measured
from tests.toyworld.rollouts import RolloutWorld, later, rejected
from tests.unit.planning.test_gates import gated, states
from tuneyard.api.gatereports import GateReport
from tuneyard.planning.timestamps import rfc3339


def progress(world: RolloutWorld) -> tuple[int, int] | None:
    (state,) = world.status.gates or []
    return (state.progress.done, state.progress.total) if state.progress else None


def test_how_far_a_run_is_stands_in_the_status_seldom_enough():
    world = gated()
    assert progress(world) is None
    world.gates.is_at("g1", 20, 200)
    world.gates.is_at("g2", 24, 200)
    world.settle()
    assert progress(world) == (24, 200), "what the gateway says that knows most"
    written = world.now
    world.gates.is_at("g1", 90, 200)
    later(world, 9 / 60)
    assert world.now == written, "no writing at all"
    later(world, 1 / 60)
    assert progress(world) == (90, 200)
    message = next(c.message for c in world.now.status.conditions if c.type == "Reconciling")
    assert message.endswith(", 90 of 200 done")
    world.gates.told.clear()
    later(world, 1)
    assert progress(world) == (90, 200), "gateways that restart take nothing back"
    world.gates.is_at("g2", 85, 200)
    later(world, 1)
    assert progress(world) == (90, 200), "nor does who was not asked last"


def test_a_run_begins_at_nothing_whatever_the_one_before_did():
    world = gated()
    world.gates.is_at("g1", 150, 200)
    world.settle()
    world.gates.end(GateReport(cannot_run="the judge j gives no grade: status 503"))
    world.settle()
    assert (states(world), progress(world)) == ([("speed", "CannotRun")], None)
    later(world, 1)
    assert (states(world), progress(world)) == ([("speed", "Running")], None), "the gateway still tells of the first"
    world.gates.is_at("g1", 1, 200)
    world.settle()
    assert progress(world) == (1, 200)


def test_a_retried_run_begins_at_nothing_though_its_job_has_the_name_of_the_one_before():
    world = gated()
    world.gates.is_at("g1", 150, 200)
    world.gates.end(measured(200))
    world.settle()
    assert rejected(world) == [("v2", "GateFailed")]
    world.command("retry", "v2")
    world.settle()
    assert world.gates.made == world.gates.running * 2, "the same name"
    later(world, 1)
    assert (states(world), progress(world)) == ([("speed", "Running")], None), "the gateway still tells of the first"
    world.gates.is_at("g1", 1, 200)
    world.settle()
    assert progress(world) == (1, 200)


def test_it_is_known_since_when_a_gate_is_over():
    world = gated()
    world.gates.end(measured(100))
    world.settle()
    (passed,) = world.status.gates or []
    assert (passed.ended_at, passed.progress) == (rfc3339(world.clock), None)
    world = gated()
    world.command("promote", "v2")
    world.settle()
    later(world, 1)
    assert world.gates.results == [("v2", "speed", "Skipped")]
