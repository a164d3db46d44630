"""How often a pod says how far its files are: each time the API server stores and sends around its whole report.

Rules: when the whole percent of one has changed, TICK_SECONDS after the last time at the earliest; else every
SIGN_OF_LIFE_SECONDS, so that a rate that has fallen shows. So a fetch of an hour costs 340 writes in place of 1,800.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tuneyard.api.documents import Transfer

TICK_SECONDS = 2.0
SIGN_OF_LIFE_SECONDS = 15.0


class Pace:
    """What was said last, and when."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, int] = {}
        self._at = -math.inf

    def due(self, transfers: Mapping[str, Transfer]) -> bool:
        """Whether to say now how far these are; if so, that counts as said."""
        now = self._clock()
        percents = {name: 100 * t.done_bytes // max(1, t.total_bytes) for name, t in transfers.items()}
        waited = now - self._at
        if waited < TICK_SECONDS or (percents == self._said and waited < SIGN_OF_LIFE_SECONDS):
            return False
        self._said, self._at = percents, now
        return True
