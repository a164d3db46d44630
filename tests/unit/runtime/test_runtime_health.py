"""The liveness probe asks how fresh the watches are, and does not blame this process for an API server that is away."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.handlers.health import STALE_SECONDS, Health, HealthServer
from tuneyard.handlers.main import fixed_gateways, identity
from tuneyard.runtime.metrics import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("age", "up", "answers", "status"),
    [
        (1.0, 1000.0, True, 200),
        (STALE_SECONDS + 1, 1000.0, True, 503),
        (STALE_SECONDS + 1, 1000.0, False, 200),
        (float("inf"), 10.0, True, 200),
        (float("inf"), STALE_SECONDS + 1, True, 503),
    ],
)
def test_liveness(age: float, up: float, answers: bool, status: int) -> None:
    clock = Clock()
    health = Health({"pods": lambda: age}, lambda: answers, lambda: True, clock)
    clock.now = up
    assert health.healthz()[0] == status


@pytest.mark.lasting
def test_the_server_answers_probes_and_metrics() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.leader.set(1)
    metrics.drifts(lambda: [("team", "chat", True), ("team", "code", False)])
    health = Health({"pods": lambda: 1.0}, lambda: True, lambda: False)
    server = HealthServer(0, health, metrics.registry)
    server.start()
    try:
        told = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
        assert "tuneyard_leader 1.0" in told
        assert 'tuneyard_drifting{deployment="chat",namespace="team"} 1.0' in told
        assert 'tuneyard_drifting{deployment="code",namespace="team"} 0.0' in told
        assert urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz").status == 200
        for path, status in (("/readyz", 503), ("/elsewhere", 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}")
            assert refused.value.code == status
            refused.value.close()
    finally:
        server.stop()


def test_a_pod_is_itself_again_after_a_restart_and_other_processes_are_not() -> None:
    assert identity({"POD_NAME": "tuneyard-operator-0"}) == "tuneyard-operator-0"
    assert identity({}) != identity({})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TUNEYARD_GATEWAYS": ""}, {}),
        ({"TUNEYARD_GATEWAYS": "a=127.0.0.1:1, b=[::1]:2"}, {"a": "127.0.0.1:1", "b": "[::1]:2"}),
    ],
)
def test_gateways_of_an_operator_outside_the_cluster(
    environment: dict[str, str], expected: dict[str, str] | None
) -> None:
    assert fixed_gateways(environment) == expected
