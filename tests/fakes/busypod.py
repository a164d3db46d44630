"""A model pod whose answers take longer the more of them it is writing.

What it models: an engine that batches. Up to FREE requests at a time each go at full speed; beyond that they share what
that is, evenly, so that twice as many take twice as long. A request's length is `work` of its body: seconds alone. What
it does not model: prompts, memory, and that engines put requests beyond their largest batch into a queue.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.upstream import Upstream

FREE = 4
_TICK = 0.02


@dataclass
class BusyPod(Upstream):
    """One pod."""

    first_asked: dict[str, float] = field(default_factory=dict)
    """When each engine name was asked for first, time.monotonic."""

    async def _generate(self, asked: dict[str, Any]) -> None:
        self.first_asked.setdefault(str(asked.get("model")), time.monotonic())
        left, before = float(asked.get("work", 0)), time.monotonic()
        while left > 0:
            await asyncio.sleep(min(_TICK, left))
            now = time.monotonic()
            left -= (now - before) * min(1.0, FREE / max(1, self.active))
            before = now
