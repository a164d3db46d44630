"""A deployment whose stable revision is evaluated over days: time passes, and runs find what a test says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.toyworld.gates import QUALITY
from tests.toyworld.rollouts import RolloutWorld
from tuneyard.api.gatereports import EvaluationNumbers, GateReport

FIRST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
ASKED: dict[str, Any] = {"gates": [QUALITY], "drift": {"evaluation": {"gate": "quality", "maxDrop": 0.1}}}


def scored(score: float, digest: str = FIRST) -> GateReport:
    numbers = EvaluationNumbers(prompts=20, prompts_digest=digest, scores={"exactMatch": score})
    return GateReport(evaluation=numbers)


def watched(**rollout: Any) -> RolloutWorld:
    """v1 is stable, and its evaluation is asked for."""
    world = RolloutWorld()
    world.spec({"v1": 100}, **{**ASKED, **rollout})
    world.settle()
    return world


def hours(world: RolloutWorld, number: float) -> None:
    """Time passes, and the operator looks whenever it said it would."""
    until = world.clock + timedelta(hours=number)
    while world.clock < until and not world.gates.running:
        wait = world.plan.requeue_after
        world.clock = min(until, world.clock + timedelta(seconds=wait if wait else 86400))
        world.settle()


def run(world: RolloutWorld, score: float, digest: str = FIRST) -> None:
    """The next run begins within a day and an hour, and finds this."""
    hours(world, 26)
    assert len(world.gates.running) == 1, world.now.status.drift
    world.gates.end(scored(score, digest))
    world.settle()
