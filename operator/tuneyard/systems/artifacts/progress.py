"""How far a transfer is: bytes done of all, and how fast they came lately. Calls come from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from tuneyard.api.documents import Transfer

_WINDOW = 5.0
_STEP = 0.25
"""Bytes are counted in steps of so many seconds, so that an hour of small pieces takes no memory."""


class Progress:
    """What api.documents.Transfer is made of: `done` and `total` bytes, `rate()` in bytes per second.

    `done` includes what was there before.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.total = 0
        self.fetched = 0
        """Bytes that came over the network."""
        self._now = now
        self._lock = threading.Lock()
        self._steps: deque[tuple[float, int]] = deque()

    def begin(self, total: int) -> None:
        """A transfer of `total` bytes begins, or begins again."""
        with self._lock:
            self.done, self.total = 0, total

    def found(self, count: int) -> None:
        """So many bytes were there already."""
        with self._lock:
            self.done += count

    def came(self, count: int) -> None:
        """So many bytes came over the network."""
        now = self._now()
        with self._lock:
            self.done += count
            self.fetched += count
            if self._steps and now - self._steps[-1][0] < _STEP:
                self._steps[-1] = (self._steps[-1][0], self._steps[-1][1] + count)
            else:
                self._steps.append((now, count))
            self._forget(now)

    def rate(self) -> int:
        """Bytes per second over the last seconds; 0 when nothing came."""
        now = self._now()
        with self._lock:
            self._forget(now)
            if not self._steps:
                return 0
            span = max(now - self._steps[0][0], _STEP)
            return round(sum(count for _, count in self._steps) / span)

    def transfer(self) -> Transfer:
        """As pods report it."""
        return Transfer(done_bytes=self.done, total_bytes=self.total, bytes_per_second=self.rate())

    def _forget(self, now: float) -> None:
        while self._steps and now - self._steps[0][0] > _WINDOW:
            self._steps.popleft()
