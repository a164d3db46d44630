"""Times to the first token of the last minute: as gateways count them, and their percentiles over all gateways.

Counts in fixed classes add up over gateways and revisions, which percentiles do not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

EDGES = (25, 50, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 20000, 60000)
"""Milliseconds up to which a class goes; the last one holds what is longer, too."""
LEAST_ANSWERS = 10
"""Streams below which a percentile says nothing."""


def edge_of(milliseconds: float) -> int:
    """The class of a time."""
    return EDGES[min(bisect_left(EDGES, milliseconds), len(EDGES) - 1)]


def added(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """All of them together; classes that nobody knows are left out."""
    found: dict[int, int] = {}
    for each in counts:
        for edge, count in each.items():
            if edge in EDGES and count > 0:
                found[edge] = found.get(edge, 0) + count
    return found


def percentile(counts: Mapping[int, int], percent: float) -> float | None:
    """Milliseconds, interpolated within a class; None for too few streams."""
    total = sum(counts.values())
    if total < LEAST_ANSWERS:
        return None
    rank, below, lower = total * percent / 100, 0, 0
    for edge in EDGES:
        count = counts.get(edge, 0)
        if below + count >= rank and count:
            return lower + (edge - lower) * (rank - below) / count
        below, lower = below + count, edge
    return float(EDGES[-1])
