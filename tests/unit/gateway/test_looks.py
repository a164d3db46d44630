"""Prometheus looks at a leaving gateway once more, and nobody waits for one that does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from tuneyard.gateway.looks import MOST, Looks


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def looked(at: Iterable[float]) -> tuple[Looks, Clock]:
    clock = Clock()
    looks = Looks(clock)
    for clock.now in at:
        with looks.one():
            pass
    return looks, clock


@pytest.mark.parametrize(
    ("at", "within"),
    [
        ([], 0),
        ([5], 0),
        ([5, 15], 11),
        ([5, 7, 15, 17], 8.8),  # two Prometheis
        ([0, 10_000], MOST),
        ([0, 100, *range(101, 109)], 1.1),
    ],
)
def test_who_is_waited_for(at: list[float], within: float) -> None:
    assert looked(at)[0].within == pytest.approx(within)


async def test_nobody_is_waited_for_who_does_not_look() -> None:
    async with asyncio.timeout(1):
        await looked([5])[0].another()
        await looked([5, 5.001])[0].another()


async def test_the_next_look_ends_the_waiting_and_one_under_way_does_not() -> None:
    looks, clock = looked([0, 20])
    clock.now = 30.0
    with looks.one():
        clock.now = 31.0
        waiting = asyncio.create_task(looks.another())
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    with looks.one():
        clock.now = 32.0
    async with asyncio.timeout(1):
        await waiting
