"""Who has a place in the pools of each base, worked out once per change of what decides it.

A thousand adapters of one base all ask the same question, and the answer takes a look at all of them and at everybody
who refers to them. Rules:
- `changed` is called after the informers' copy shows the change and before anybody is woken by it;
- an answer that was worked out while something changed is given to who asked (and is woken again), and is not kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from tuneyard.planning.observations import PoolPlaces
from tuneyard.runtime.keys import Key

Answer = tuple[PoolPlaces, ...]


class Places:
    """Answers by base; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: dict[Key, int] = {}
        self._kept: dict[Key, Answer] = {}

    def changed(self, bases: Iterable[Key]) -> None:
        """Forget the answers for these bases."""
        with self._lock:
            for base in bases:
                self._changes[base] = self._changes.get(base, 0) + 1
                self._kept.pop(base, None)

    def of(self, base: Key, work_out: Callable[[], Answer]) -> Answer:
        """The answer for a base, as it was kept or else as `work_out` finds it now."""
        with self._lock:
            kept, before = self._kept.get(base), self._changes.get(base)
        if kept is not None:
            return kept
        found = work_out()
        with self._lock:
            if self._changes.get(base) == before:
                self._kept[base] = found
        return found
