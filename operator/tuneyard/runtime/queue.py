"""The queue of keys to reconcile: level-triggered, each key at most once in it and at most once at work.

Rules:
- adding a key that waits already changes nothing; adding one that is being worked on makes it run once more afterwards,
  so that a change that came during a pass is never missed and two passes of one object never overlap;
- what somebody changed goes before what is only affected by it, or one edit would wait for a thousand looks that mostly
  find nothing; of every four keys one comes from those that wait behind, so that they are never starved;
- a key has at most one later time: the earlier of two wins, and a run at once clears it;
- failures in a row delay a key by 1, 2, 5, then 10 s with jitter; a success ends the row. A change does not wait for
  that, but what is told every second does (`not_failing`).
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from tuneyard.runtime.keys import Key

ERROR_DELAYS = (1.0, 2.0, 5.0, 10.0)
_SHARE = 4


class WorkQueue:
    """Keys that wait, wait for a time, or are being worked on; safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._urgent: OrderedDict[Key, float] = OrderedDict()
        self._others: OrderedDict[Key, float] = OrderedDict()
        self._taken = 0
        self._working: set[Key] = set()
        self._again: dict[Key, bool] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._closed = False

    def add(self, key: Key) -> None:
        """Reconcile the key, which was changed itself, as soon as a worker is free."""
        with self._changed:
            self._add(key, urgent=True)

    def add_all(self, keys: Iterable[Key]) -> None:
        """Reconcile these keys, which a change may concern, after what was changed itself."""
        with self._changed:
            for key in keys:
                self._add(key, urgent=False)

    def add_after(self, key: Key, seconds: float) -> None:
        """Reconcile the key in that many seconds, unless it is due earlier."""
        with self._changed:
            self._later(key, seconds)

    def get(self) -> Key | None:
        """The next key, which the caller gives back with done() or failed(); None once the queue is closed."""
        with self._changed:
            while not self._closed:
                wait = self._promote()
                if self._urgent or self._others:
                    self._taken += 1
                    behind = self._others and (not self._urgent or self._taken % _SHARE == 0)
                    key, _ = (self._others if behind else self._urgent).popitem(last=False)
                    self._working.add(key)
                    return key
                self._changed.wait(wait)
            return None

    def done(self, key: Key, again_after: float | None = None) -> None:
        """The pass succeeded; `again_after`: seconds after which time alone asks for another one."""
        with self._changed:
            self._failures.pop(key, None)
            self._finish(key)
            if again_after is not None:
                self._later(key, again_after)

    def failed(self, key: Key) -> float:
        """The pass failed; returns the seconds after which it is tried again."""
        with self._changed:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = ERROR_DELAYS[min(failures, len(ERROR_DELAYS)) - 1] * random.uniform(0.75, 1.25)  # noqa: S311
            # a change that came meanwhile waits with the rest: what failed a moment ago mostly fails again
            self._again.pop(key, None)
            self._finish(key)
            self._later(key, delay)
            return delay

    def not_failing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of the keys whose last pass did not fail; the others have a time at which they are tried again."""
        with self._changed:
            return [key for key in keys if key not in self._failures]

    def close(self) -> None:
        """Let every get() return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def idle(self) -> bool:
        """Whether nothing waits for a worker and nothing is being worked on; later times do not count."""
        with self._changed:
            self._promote()
            return not self._urgent and not self._others and not self._working

    def __len__(self) -> int:
        with self._changed:
            return len(self._urgent) + len(self._others) + len(self._again)

    def oldest(self) -> float:
        """Seconds that the key that has waited longest has waited; 0 for none."""
        with self._changed:
            firsts = [next(iter(lane.values())) for lane in (self._urgent, self._others) if lane]
            return self._clock() - min(firsts) if firsts else 0.0

    def _add(self, key: Key, *, urgent: bool) -> None:
        self._due.pop(key, None)
        if key in self._working:
            self._again[key] = urgent or self._again.get(key, False)
        elif urgent and key not in self._urgent:
            self._urgent[key] = self._others.pop(key, self._clock())
            self._changed.notify()
        elif key not in self._urgent and key not in self._others:
            self._others[key] = self._clock()
            self._changed.notify()

    def _later(self, key: Key, seconds: float) -> None:
        at = self._clock() + max(seconds, 0.0)
        if key in self._urgent or key in self._others or self._due.get(key, float("inf")) <= at:
            return
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))
        self._changed.notify()

    def _finish(self, key: Key) -> None:
        self._working.discard(key)
        urgent = self._again.pop(key, None)
        if urgent is not None:
            self._add(key, urgent=urgent)

    def _promote(self) -> float | None:
        """Move what is due to those that wait; returns the seconds until the next is due, None for none."""
        while self._heap:
            at, key = self._heap[0]
            left = at - self._clock()
            if self._due.get(key) == at and left > 0:
                return left
            heapq.heappop(self._heap)
            if self._due.get(key) == at:
                self._add(key, urgent=False)
        return None
