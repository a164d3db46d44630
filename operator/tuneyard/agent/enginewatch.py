"""Watching the engine on the pod's loopback: is it there, is it well, which names does it list, does it still think.

Rules:
- a refused or cut connection says that the engine is gone, at once; silence says so only after `_STRIKES` looks in a
  row, because an engine under load may be late and taking it out of service then would make things worse;
- looks and lists never overlap (`look` is locked): an older list told after a newer one would take a loaded adapter
  out of service;
- a canary token on the base now and then finds an engine that NaN has silenced: it is healthy by its own word. What
  it is compared with survives the agent, and is never an answer of an engine that was silenced before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tuneyard.agent.knowledge import Knowledge
from tuneyard.planning.agent import leaving_names
from tuneyard.planning.agentstate import (
    EngineGone,
    EnginePoisoned,
    EngineSeen,
    EngineUnwell,
    Reference,
    ReferenceHeard,
)
from tuneyard.systems.engines.base import (
    Answer,
    Engine,
    EngineError,
    EngineGoneError,
    EngineSlowError,
)

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
WAIT_SECONDS = 0.2
"""Between two looks for an engine that is not healthy yet."""
CANARY_SECONDS = 15.0
_STRIKES = 3
_SOUND = Answer("", "", ({"": -1.0},))
"""Any answer with log-probabilities."""


class EngineWatch:
    """Tells what it sees of one engine."""

    def __init__(self, knowledge: Knowledge, engine: Engine, clock: Callable[[], float]) -> None:
        self._knowledge = knowledge
        self._engine = engine
        self._clock = clock
        self._strikes = 0
        self._silent = 0
        self._looking = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._last: Answer | None = None
        self._asked = 0.0

    @property
    def reference(self) -> Answer | None:
        """What the base answered first in this engine's life; the measure of its later answers."""
        known = self._knowledge.state.engine.reference
        return None if known is None else Answer(self._knowledge.state.base_model, known.text, known.logprobs)

    async def run(self) -> None:
        """Look for ever."""
        await asyncio.gather(self._look_again_and_again(), self._ask_again_and_again())

    async def look(self) -> None:
        """Look once and tell what is seen."""
        async with self._looking:
            try:
                if not await self._engine.healthy():
                    self._unwell("it says that it is not healthy")
                    return
                models = await self._engine.models()
                busy = await self._engine.busy_adapters() if leaving_names(self._knowledge.state) else None
            except EngineGoneError as error:
                self._gone(error)
            except EngineSlowError as error:
                self._strikes += 1
                if self._strikes >= _STRIKES:
                    self._unwell(str(error))
            except EngineError as error:
                self._unwell(f"it does not list its models: {error}")
            else:
                self._strikes = 0
                if not self._knowledge.state.engine.healthy:
                    _log.info("the engine is healthy")
                self._knowledge.tell(EngineSeen(models, busy))

    async def ask_base(self, fresh: float = 0.0) -> Answer:
        """Ask the base for a token and compare it with its first answer; tells of a poisoned engine.

        An answer that is at most `fresh` seconds old is given again, for many adapters that are probed at once.
        A first answer that holds nothing is no measure: EngineError, and after a few the engine counts as poisoned.
        """
        async with self._asking:
            if self._last is not None and self._clock() - self._asked <= fresh:
                return self._last
            answer = await self._engine.ask(self._knowledge.state.base_model)
            if self.reference is None:
                self._take_as_reference(answer)
            self._last, self._asked = answer, self._clock()
        if self.reference is not None and answer.is_broken(self.reference):
            self._poisoned()
        return answer

    def _take_as_reference(self, answer: Answer) -> None:
        """The measure of later answers; an answer that any engine would outdo is none: the engine may be silenced."""
        if answer.is_broken(_SOUND) and not answer.text:
            self._silent += 1
            if self._silent >= _STRIKES:
                self._poisoned()
            raise EngineError("neither text nor log-probabilities")
        self._silent = 0
        self._knowledge.tell(ReferenceHeard(Reference(answer.text, answer.logprobs)))

    def _poisoned(self) -> None:
        if not self._knowledge.state.engine.poisoned:
            _log.error("the engine is healthy by its own word, but the base model generates nothing")
            self._knowledge.tell(EnginePoisoned())

    async def _look_again_and_again(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS if self._knowledge.state.engine.healthy else WAIT_SECONDS)

    async def _ask_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(CANARY_SECONDS)
            engine = self._knowledge.state.engine
            if not engine.healthy or not engine.answers or engine.poisoned or self._knowledge.state.draining:
                continue
            try:
                await self.ask_base()
            except EngineError as error:
                _log.warning("the canary token: %s", error)

    def _unwell(self, why: str) -> None:
        if self._knowledge.state.engine.healthy:
            _log.warning("the engine is not well: %s", why)
        self._knowledge.tell(EngineUnwell())

    def _gone(self, error: EngineGoneError) -> None:
        if self._knowledge.state.engine.healthy:
            _log.warning("the engine is gone: %s", error)
        self._strikes = 0
        self._silent = 0
        self._last = None
        self._knowledge.tell(EngineGone())
