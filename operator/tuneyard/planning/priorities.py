"""Who may wait when a pool is full: priorities of tenants, and up to where each may fill a pool.

Rules:
- a pool holds so many requests for each of its pods; each priority has a share of that, in percent. While more is under
  way, requests of that priority are refused, the lowest one first;
- requests of all tenants count, whatever their priority: it is the pool that is full, not somebody's part of it;
- a pool of which nobody knows a pod is not full: requests for it wait, or are refused, for other reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

PRIORITY = "priority"
"""The entry of a tenant's policy."""


class Priority(StrEnum):
    """Of a tenant's requests."""

    HIGH = "High"
    NORMAL = "Normal"
    LOW = "Low"


def priority_of(data: Mapping[str, Any]) -> Priority:
    """What a policy says of it; ValueError where that is none."""
    text = data.get(PRIORITY, Priority.NORMAL)
    try:
        return Priority(text)
    except ValueError:
        raise ValueError(f"{PRIORITY} is {', '.join(Priority)}, not {str(text)[:64]!r}") from None


@dataclass(frozen=True)
class PoolLimits:
    """How many requests pools hold, and which part of that each priority may fill."""

    per_pod: int
    """Requests that one pod works at, or has waiting, without anybody minding."""
    pools: Mapping[str, int] = field(default_factory=dict)
    """The same for single pools, by `namespace/pool`."""
    shares: Mapping[Priority, int] = field(
        default_factory=lambda: {Priority.HIGH: 100, Priority.NORMAL: 90, Priority.LOW: 70}
    )
    """Percent."""

    def filled(self, pool: str, pods: int, under_way: int) -> float:
        """How full a pool is, in percent; 0 where nobody knows a pod of it."""
        most = self.pools.get(pool, self.per_pod) * pods
        return 100 * under_way / most if most else 0.0

    def refused(self, filled: float) -> list[Priority]:
        """Whose requests are refused while a pool is so full."""
        return [priority for priority in Priority if filled >= self.shares[priority]]
