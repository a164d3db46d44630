"""From when on the numbers of Prometheus count."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toyworld.rollouts import PROGRESSIVE, WHOLE, RolloutWorld, rejected
from tests.unit.planning.test_promchecks import (
    checked_world,
    evaluate,
    said,
)
from tests.unit.planning.test_rollout_analysis import ANALYSIS, GOOD, STABLE_ONLY, look

pytestmark = pytest.mark.lasting

RATE = {"name": "rate", "query": 'sum(rate(r{revision="$candidate"}[1m]))', "min": 0.1}


def late_world(**analysis: Any) -> RolloutWorld:
    """v2 has been given its first weight just now, and no gateway has seen that yet."""
    spec = {**ANALYSIS, "prometheus": [RATE], **analysis}
    world = RolloutWorld(rollout={**PROGRESSIVE, "analysis": spec})
    look(world, STABLE_ONLY, looks=10, seconds=61)
    world.ready["v2"] = True
    world.spec(WHOLE)
    for _ in range(3):
        world.reconcile()
    assert world.weights == {"v1": 95, "v2": 5}
    assert not world.views["g1"].weights.get("v2")
    return world


def passes(world: RolloutWorld, number: float, minutes: float) -> None:
    """The operator looks every five seconds, a check is evaluated every thirty, and gateways see nothing of it."""
    world.asking.answers["rate"] = number
    for n in range(int(minutes * 12)):
        world.wait(1 / 12)
        if n % 6 == 0:
            world.asking.evaluate(world.now, world.clock)
        world.reconcile()


def test_no_number_counts_before_every_gateway_serves_the_candidate_and_it_has_warmed_up():
    world = late_world(warmUp="60s")
    passes(world, 0.0, minutes=10)
    assert rejected(world) == [] and said(world)[0].get("value") is None
    assert said(world)[0]["message"] == "it is evaluated when every gateway serves this weight"
    assert world.status.analysis is not None and world.status.analysis.inconclusive_since is None
    evaluate(world, {"rate": 0.0}, {"rate": 0.0}, {"rate": 0.0})
    assert (rejected(world), said(world)[0]["failures"]) == ([], 1), "two of them within warm-up"
    evaluate(world, {"rate": 0.0}, {"rate": 0.0})
    assert rejected(world) == [("v2", "AnalysisFailed")]


def test_a_step_is_taken_by_a_number_of_after_every_gateway_served_it():
    world = late_world(warmUp="0s")
    world.settle()
    world.spec(WHOLE, steps=[{"weight": 5, "hold": "5m"}, {"weight": 25, "hold": "0s"}])
    evaluate(world, *[{"rate": 0.3}] * 9)
    while world.weights["v2"] == 5:
        world.wait(1 / 12)
        world.asking.evaluate(world.now, world.clock)
        for gateway in world.counting.values():
            for revision, tally in GOOD.items():
                gateway.count(revision, tally)
        world.reconcile()
    assert world.views["g1"].weights["v2"] == 5
    passes(world, 0.3, minutes=2)
    assert said(world)[0]["message"] == "it is evaluated when every gateway serves this weight"
    passes(world, 0.01, minutes=2)
    assert rejected(world) == [("v2", "AnalysisFailed")], "it has users, whoever has not confirmed how many"


def test_one_that_has_lost_its_traffic_warms_up_again():
    world = checked_world(RATE, warmUp="60s")
    evaluate(world, *[{"rate": 0.3}] * 3)
    assert said(world)[0]["value"] == "0.3"
    world.ready["v2"] = False
    world.wait(1)
    world.settle()
    world.ready["v2"] = True
    world.wait(1)
    world.settle()
    assert world.weights["v2"] == 5
    evaluate(world, {"rate": 0.0}, {"rate": 0.0})
    assert said(world)[0]["failures"] == 0
    evaluate(world, {"rate": 0.0})
    assert said(world)[0]["failures"] == 1
