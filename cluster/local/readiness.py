"""Whether the cluster can run pods, read from its API objects. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def node_can_run(node: dict[str, Any] | None, gpus: int, since: float) -> bool:
    """Whether the node is ready and offers `gpus` fake GPUs, as reported after `since` (seconds since 1970).

    A kubelet that was restarted has forgotten its device plugins, while the API still shows what they offered before.
    A pod that gets there in between is rejected for good. Reports are stamped in whole seconds, so one of the same
    second does not count: after a restart the plugin takes more than a second to register, and that is reported anew.
    """
    status = node["status"] if node else {}
    ready = [entry for entry in status.get("conditions", ()) if entry["type"] == "Ready" and entry["status"] == "True"]
    if not ready or int(status.get("allocatable", {}).get("nvidia.com/gpu", 0)) != gpus:
        return False
    return datetime.fromisoformat(ready[0]["lastHeartbeatTime"]).timestamp() > int(since)


def deployment_available(deployment: dict[str, Any] | None) -> bool:
    """Whether at least one pod of the Deployment serves."""
    return bool((deployment or {}).get("status", {}).get("availableReplicas"))
