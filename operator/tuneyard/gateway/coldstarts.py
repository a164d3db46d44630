"""How long the last start of each pool took that requests waited for, and when the present one may be over.

Rules:
- only starts from no pod at all count: an adapter that comes into pods that run is another matter;
- a start begins with the first request that found no pod, whether it still waits or not, and ends when a pod serves;
- what took longer than LONGEST was no start that anybody waited for;
- a guess, for `retry-after`: kept in memory only, and each gateway knows what it has seen itself.
All methods belong to the event loop's thread; `now` is of any one clock that does not go backwards.
"""

from __future__ import annotations

import math

LONGEST = 3600.0
"""Seconds."""
SHORTEST_RETRY, LONGEST_RETRY = 5, 600
"""Bounds of what clients are told, in seconds. While a start takes longer than the last one, nobody knows more."""
_KEPT = 10_000
"""Pools."""

Pool = tuple[str, str]
"""(namespace, pool)."""


class ColdStarts:
    """What one gateway has seen of starts."""

    def __init__(self) -> None:
        self._began: dict[Pool, float] = {}
        self._took: dict[Pool, float] = {}

    def waits(self, pool: Pool, now: float) -> None:
        """A request has found no pod."""
        began = self._began.setdefault(pool, now)
        if now - began > LONGEST:
            self._began[pool] = now
        _bound(self._began)

    def serves(self, pool: Pool, now: float) -> None:
        """A pod serves what waited."""
        began = self._began.pop(pool, None)
        if began is not None and now - began <= LONGEST:
            self._took.pop(pool, None)
            self._took[pool] = now - began
            _bound(self._took)

    def retry_after(self, pool: Pool, now: float) -> int:
        """Seconds after which asking again is likely to be answered."""
        took, began = self._took.get(pool), self._began.get(pool)
        left = 0.0 if took is None or began is None else took - (now - began)
        return min(LONGEST_RETRY, max(SHORTEST_RETRY, math.ceil(left)))


def _bound(kept: dict[Pool, float]) -> None:
    """The oldest go first."""
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]
