"""Having the engine's container restarted: the front fails the health checks exactly while the engine is silenced.

An agent cannot reach another container; the kubelet can, and asks the front whether the engine is well. The switch is
level-triggered: set at the start, because an earlier agent may have left it on, set again while it should be on,
because a front that restarted has forgotten it, and tried again as long as the front does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from tuneyard.agent.front import Front, FrontError
from tuneyard.agent.knowledge import Knowledge
from tuneyard.planning.agentstate import State

_log = logging.getLogger(__name__)

_PAUSE = 1.0
_AGAIN = 5.0


def _differs_from(poisoned: bool) -> Callable[[State], bool]:
    return lambda state: state.engine.poisoned != poisoned


async def keep_health_switch(knowledge: Knowledge, front: Front) -> None:
    """For ever: the front's switch equals what is known of the engine."""
    while True:
        poisoned = knowledge.state.engine.poisoned
        try:
            await front.set_unhealthy(poisoned)
        except FrontError as error:
            if poisoned:
                _log.error("the engine must be restarted, but %s", error)
            await asyncio.sleep(_PAUSE)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN if poisoned else None):
                await knowledge.until(_differs_from(poisoned))
