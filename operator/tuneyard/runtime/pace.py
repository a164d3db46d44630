"""How often something is looked at, whoever asks for it; safe to use from many threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable


class Pace:
    """Lets one through in so many seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._last = -math.inf
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Whether it is time again; who is told so has taken the turn."""
        with self._lock:
            now = self._clock()
            if now - self._last < self._seconds:
                return False
            self._last = now
            return True
