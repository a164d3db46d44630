"""The one place where an agent's state changes: events in, everybody who waits is woken.

Only the event loop's thread tells events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tuneyard.planning.agentlearning import learned
from tuneyard.planning.agentstate import Event, Failed, Proven, State

_log = logging.getLogger(__name__)


class Knowledge:
    """The current state, and a signal for every change of it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.changed = asyncio.Event()
        self._waiting: set[asyncio.Event] = set()

    def tell(self, event: Event) -> None:
        """Take an event in."""
        before, self.state = self.state, learned(self.state, event)
        _note(before, self.state, event)
        if self.state != before:
            self.changed.set()
            for waiting in self._waiting:
                waiting.set()

    async def until(self, holds: Callable[[State], bool]) -> None:
        """Wait until something holds of the state."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while not holds(self.state):
                changed.clear()
                await changed.wait()
        finally:
            self._waiting.discard(changed)


def _note(before: State, after: State, event: Event) -> None:
    """One line for what people look for in a log."""
    match event:
        case Failed(planned, reason):
            _log.warning("adapter %s: %s: %s", planned.name, reason.value, after.failures[planned.name].message)
        case Proven(name, engine_name, warning) if engine_name not in before.proven:
            _log.info("adapter %s serves as %s%s", name, engine_name, f" ({warning.value})" if warning else "")
