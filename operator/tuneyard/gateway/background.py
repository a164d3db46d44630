"""Work that goes on beside what a gateway's process answers."""

from __future__ import annotations

import asyncio


async def ended(task: asyncio.Task[None] | None) -> None:
    """Until a task that was cancelled here has ended, however; at once where there is none."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
