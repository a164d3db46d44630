"""Work that goes on beside what a gateway's process answers."""

from __future__ import annotations

import asyncio
import logging

_log = logging.getLogger(__name__)


async def ended(task: asyncio.Task[None] | None) -> None:
    """Until a task that was cancelled here has ended; one that had failed before is logged. At once where none is."""
    if task is None:
        return
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(outcome, Exception):
        _log.error("%s had failed", task.get_name(), exc_info=outcome)
