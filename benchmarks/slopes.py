"""Whether something grows, of a series that is noisy and whose neighbours are alike: memory, for example.

The series is cut into BLOCKS of equal length, whose medians stand for it: what is alike within a block counts once. Of
the lines through each two of them the median slope is taken (Theil and Sen), which a few odd blocks do not move, and
from the same slopes the interval that holds the true one with CONFIDENCE (Kendall's test turned around).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

BLOCKS = 12
CONFIDENCE = 0.99
_Z = 2.576
"""Of a normal distribution, for that."""


class Slope(NamedTuple):
    """Growth per unit of x, and the interval around it."""

    value: float
    low: float
    high: float


def slope_of(points: Sequence[tuple[float, float]]) -> Slope:
    """The slope of y over x, points in the order of x; ValueError where there are fewer points than blocks."""
    if len(points) < BLOCKS:
        raise ValueError(f"{len(points)} samples are too few for a slope: {BLOCKS} at least")
    bounds = [round(number * len(points) / BLOCKS) for number in range(BLOCKS + 1)]
    blocks = [points[begin:end] for begin, end in pairwise(bounds)]
    middles = [(statistics.median(x for x, _ in b), statistics.median(y for _, y in b)) for b in blocks]
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(middles, 2) if x2 > x1)
    if not slopes:
        raise ValueError("x never changes")
    width = _Z * math.sqrt(BLOCKS * (BLOCKS - 1) * (2 * BLOCKS + 5) / 18)
    low = max(0, math.floor((len(slopes) - width) / 2) - 1)
    high = min(len(slopes) - 1, math.ceil((len(slopes) + width) / 2))
    return Slope(statistics.median(slopes), slopes[low], slopes[high])
