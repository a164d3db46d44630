"""Whether something long gives others their turn in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_Made = TypeVar("_Made")


async def turns_beside(long: Awaitable[_Made]) -> tuple[_Made, int]:
    """What it gives, and how many turns others had meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    made = await long
    beside.cancel()
    return made, turns
