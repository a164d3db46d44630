"""Whether full pools refuse who may wait, as the gateway's pod says by environment.

TUNEYARD_PRIORITIES is a JSON object: `requestsPerPod`, `pools` (the same by `namespace/pool`), and `shares` in percent
by priority, `{"High": 100, "Normal": 90, "Low": 70}`. Empty, or with 0 requests per pod, nobody is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tuneyard.planning.priorities import PoolLimits, Priority


def priority_options(environment: Mapping[str, str]) -> PoolLimits | None:
    """What the environment says, None where priorities are not used; ValueError where it makes no sense."""
    text = environment.get("TUNEYARD_PRIORITIES", "")
    if not text:
        return None
    try:
        told = json.loads(text)
        per_pod, pools = int(told["requestsPerPod"]), {str(p): int(n) for p, n in told.get("pools", {}).items()}
        shares = {priority: int(told.get("shares", {}).get(priority, 100)) for priority in Priority}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"TUNEYARD_PRIORITIES cannot be read: {error!r}") from None
    if not per_pod:
        return None
    low, normal, high = (shares[p] for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH))
    if min(per_pod, low, *pools.values()) < 1 or not low <= normal <= high:
        raise ValueError(
            "TUNEYARD_PRIORITIES: numbers are 1 or more, and Low may fill no more than Normal, that than High"
        )
    return PoolLimits(per_pod, pools, shares)
