"""When the node counts as able to run pods, in particular after its kubelet was restarted."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.local.readiness import deployment_available, node_can_run

SINCE = 1_790_000_000.6  # 2026-09-21T14:13:20.6Z


def node(ready: str = "True", gpus: str | None = "8", heartbeat: str = "2026-09-21T14:13:22Z") -> dict[str, Any]:
    allocatable = {"cpu": "2"} | ({"nvidia.com/gpu": gpus} if gpus is not None else {})
    conditions = [
        {"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": heartbeat},
        {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat},
    ]
    return {"status": {"conditions": conditions, "allocatable": allocatable}}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (node(), True),
        (None, False),
        ({"status": {}}, False),
        (node(ready="False"), False),
        (node(ready="Unknown"), False),
        (node(gpus=None), False),
        (node(gpus="0"), False),
        # Reported by the kubelet before, or in the second in which it was stopped: what it offers is not known yet.
        (node(heartbeat="2026-09-21T14:13:19Z"), False),
        (node(heartbeat="2026-09-21T14:13:20Z"), False),
    ],
)
def test_node_can_run(seen: dict[str, Any] | None, expected: bool) -> None:
    assert node_can_run(seen, 8, SINCE) is expected


def test_a_cluster_without_gpus_waits_for_none() -> None:
    assert node_can_run(node(gpus=None), 0, SINCE)


def test_deployment_available() -> None:
    assert deployment_available({"status": {"availableReplicas": 1}})
    assert not deployment_available({"status": {}})
    assert not deployment_available({})
    assert not deployment_available(None)
