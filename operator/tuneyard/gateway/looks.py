"""When Prometheus looks at the metrics' page, so that a process that leaves is looked at once more.

Rules:
- nobody is waited for who has not looked before, at least twice: how long it takes until he comes again is the longest
  time that lay between two of the last looks, and MOST at most;
- a look counts that began after the waiting did. One that was under way may show what was there before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

MOST = 30.0
"""Seconds: what the chart's PodMonitor asks for."""
_LATE = 1.1
"""A look may come a little later than the one before did."""
_KEPT = 8


class Looks:
    """Notes them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: deque[float] = deque(maxlen=_KEPT)
        self._awaited: float | None = None
        self._another = asyncio.Event()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around each."""
        began = self._clock()
        yield
        self._began.append(began)
        if self._awaited is not None and began >= self._awaited:
            self._another.set()

    @property
    def within(self) -> float:
        """In how many seconds from now the next one is to be expected, 0: nobody looks."""
        return min(MOST, _LATE * max((b - a for a, b in pairwise(self._began)), default=0.0))

    async def another(self) -> None:
        """Wait for one more."""
        self._awaited = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.within):
                await self._another.wait()
