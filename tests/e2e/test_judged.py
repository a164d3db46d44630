"""Rollouts that are judged by the answers of real engines: one that takes over by itself, and a rehearsal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.kubectl import ready
from tests.e2e.world import TrafficOn, World, deployment
from tests.statuses import judged_by

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

JUDGED = {
    "mode": "Progressive",
    "steps": [{"weight": 50, "hold": "3s"}],
    "analysis": {"slo": {"errorRate": "20%", "ttft": "1m"}, "minRequests": 10, "warmUp": "0s"},
}


@pytest.fixture
def busy(world: World) -> Iterator[TrafficOn]:
    """Enough for a judge to hear from ten streams of a candidate within a minute."""
    with world.traffic(rate=1.5) as running:
        running.wait_for(5)
        yield running


def test_a_candidate_that_answers_well_takes_over_by_itself(world, busy):
    world.apply(deployment({"v1": 0, "v2": 100}, rollout=JUDGED))
    # without a token found in a stream nothing is judged by ttft, and the rest would do for a pass
    world.wait_for(lambda d: judged_by(d["status"]["rollout"]) >= {"errorRate", "ttft"}, timeout=120)
    seen = world.wait_for(lambda d: d["status"]["rollout"]["stable"] == "v2" and ready(d), timeout=300)
    assert not seen["status"]["rollout"].get("verdicts")
    told = busy.summary()
    assert told.failed == told.cut == 0, told


def test_a_rehearsal_is_rolled_back_and_no_user_meets_it(world: World, traffic) -> None:
    world.apply(deployment({"v1": 100}, rollout=JUDGED))
    world.wait_for(lambda d: d["status"]["rollout"]["stable"] == "v1" and ready(d))
    options = ["--gateway", world.system.gateway, "--rate", "1", "--weight", "50", "--within", "3m"]
    told = world.tuneyard("drill", *options)
    assert told["reason"] == "AnalysisFailed"
    assert 0 < told["spoiled"] < told["requests"]
    users = traffic.summary()
    assert users.failed == users.cut == 0, users
