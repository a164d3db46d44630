"""Priorities of tenants, and whose requests a pool refuses as it fills."""

from __future__ import annotations

import pytest

from tuneyard.planning.priorities import PoolLimits, Priority, priority_of


def test_what_a_policy_says() -> None:
    assert priority_of({}) is Priority.NORMAL
    assert [priority_of({"priority": p.value}) for p in Priority] == list(Priority)
    for wrong in ("", "high", "Urgent", 1, None):
        with pytest.raises(ValueError, match="High, Normal, Low"):
            priority_of({"priority": wrong})


@pytest.mark.parametrize(
    ("under_way", "refused"),
    [(0, ""), (13, ""), (14, "Low"), (17, "Low"), (18, "Normal Low"), (19, "Normal Low"), (20, "High Normal Low")],
)
def test_the_lowest_first(under_way: int, refused: str) -> None:
    limits = PoolLimits(10)
    assert limits.refused(limits.filled("team/chat", 2, under_way)) == [Priority(p) for p in refused.split()]


def test_pools_are_what_they_are() -> None:
    limits = PoolLimits(10, {"team/large": 100}, {Priority.HIGH: 300, Priority.NORMAL: 100, Priority.LOW: 50})
    assert limits.filled("team/chat", 1, 10) == 100
    assert limits.filled("team/large", 1, 10) == 10
    assert limits.filled("team/chat", 0, 10) == 0, "nobody knows a pod"
    assert limits.refused(299) == [Priority.NORMAL, Priority.LOW]
