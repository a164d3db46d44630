"""Who looks again because gateways tell other answers: at most once a second, whose rollout is under way.

Gateways tell every second, each by itself. Rules:
- a ModelDeployment without objectives is not woken, whatever is told of it;
- between rollouts nothing is decided: a look now and then is enough to know how stable's bad answers come;
- who is held back is woken later and not forgotten: the last answers of a rollout are looked at, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from tuneyard.planning.rolloutanalysis import FIRST_SECONDS, QUIET_SECONDS
from tuneyard.runtime.keys import Key
from tuneyard.runtime.world import World


class Looking:
    """Wakes for what gateways tell of answers; safe to use from many threads."""

    def __init__(
        self, world: World, wake_after: Callable[[Key, float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`wake_after` wakes a key in so many seconds, unless it is woken earlier."""
        self._world = world
        self._wake_after = wake_after
        self._clock = clock
        self._lock = threading.Lock()
        self._next: dict[Key, float] = {}

    def concerns(self, keys: Iterable[Key]) -> None:
        """Gateways tell other answers of these ModelDeployments."""
        for key in keys:
            pause = self._pause(key)
            if pause is None:
                with self._lock:
                    self._next.pop(key, None)
                continue
            with self._lock:
                now = self._clock()
                at = max(now, min(self._next.get(key, now), now + pause))
                if at <= now:
                    self._next[key] = now + pause
            self._wake_after(key, at - now)

    def _pause(self, key: Key) -> float | None:
        """Seconds between two looks; None: there is nothing to look at."""
        found = self._world.deployments.get(key.namespace, key.name)
        if found is None or found.spec.analysis is None or not self._world.in_scope(key.namespace):
            return None
        status = found.status.rollout
        return FIRST_SECONDS if status is not None and status.candidate is not None else QUIET_SECONDS
