"""What routes say of time, and whose deadline it was that ended a request."""

from __future__ import annotations

import pytest

from tuneyard.systems.envoy.deadlines import clients_own, tried
from tuneyard.systems.envoy.documents import IDLE_TIMEOUT


def test_the_clients_deadline_counts_also_where_the_deployment_has_none() -> None:
    route = tried(None, None)
    assert route["max_stream_duration"] == {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"}
    assert (route["timeout"], route["idle_timeout"]) == ("0s", IDLE_TIMEOUT)


def test_the_deployments_deadlines() -> None:
    route = tried(120, 30)
    assert route["max_stream_duration"] == {"max_stream_duration": "120s", "grpc_timeout_header_max": "120s"}
    assert (route["timeout"], route["idle_timeout"]) == ("0s", "30s"), "the router's own would take pods from others"
    assert "per_try" not in str(route["retry_policy"]), "a deadline is no reason to ask another pod"


@pytest.mark.parametrize(
    ("header", "own"),
    [
        ("2S", True),
        ("2000m", True),
        ("2040m", True),
        ("0S", True),
        ("99999999n", True),
        ("3S", False),
        ("1M", False),
        ("1H", False),
        ("", False),
        ("2", False),
        ("S", False),
        ("-1S", False),
        ("2S ", False),
        ("000000002S", False),
        ("٢S", False),
    ],
)
def test_whose_deadline_it_was(header: str, own: bool) -> None:
    assert clients_own(header, 2000.0) is own
