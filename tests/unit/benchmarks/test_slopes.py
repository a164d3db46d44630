"""Whether a series grows, and how sure that is."""

from __future__ import annotations

import random

import pytest

from benchmarks.slopes import BLOCKS, slope_of


def series(slope: float, seed: int, *, noise: float = 2.0, jumps: int = 0) -> list[tuple[float, float]]:
    """A walk around a line, as memory goes: what is high now is high a moment later."""
    chance, off, found = random.Random(seed), 0.0, []
    for number in range(120):
        off = 0.6 * off + chance.gauss(0, noise)
        found.append((number / 120, 200 + slope * number / 120 + off + (300 if number < jumps else 0)))
    return found


def test_a_line_is_found_as_it_is() -> None:
    assert slope_of([(x, 5 + 3 * x) for x in range(60)]) == pytest.approx((3, 3, 3))


def test_what_is_flat_is_seldom_taken_for_growing() -> None:
    assert sum(slope_of(series(0, seed)).low > 0 for seed in range(300)) <= 9


def test_what_grows_is_seen() -> None:
    found = [slope_of(series(20, seed)) for seed in range(100)]
    assert all(slope.low > 0 for slope in found)
    assert all(slope.low <= slope.value <= slope.high for slope in found)
    assert sum(slope.low <= 20 <= slope.high for slope in found) >= 95


def test_a_few_odd_moments_move_nothing() -> None:
    assert abs(slope_of(series(0, 1, jumps=9)).value) < 15


def test_too_little_is_no_slope() -> None:
    with pytest.raises(ValueError, match="too few"):
        slope_of([(0.0, 1.0)] * (BLOCKS - 1))
    with pytest.raises(ValueError, match="never changes"):
        slope_of([(0.0, 1.0)] * BLOCKS)
