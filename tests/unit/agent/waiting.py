"""Waiting for what a task of the agent does in its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within 10 s")


def wait_until(holds: Callable[[], bool]) -> None:
    """The same for what a thread does."""
    deadline = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.005)
