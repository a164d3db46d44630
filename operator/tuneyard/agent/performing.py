"""Carrying out steps: one at a time for each adapter and each engine name; what comes of it is told as events.

Rules:
- an adapter is blamed only for what it did: an engine that goes meanwhile is the engine's failure;
- after loading, what counts is `/v1/models`; after asking, the answer must come under the adapter's own name;
- an adapter with which the engine computes NaN is never tried again in this pod with these bytes;
- nothing here decides what to do next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import assert_never

from tuneyard.agent.enginewatch import EngineWatch
from tuneyard.agent.fetching import FetchError, Shelf
from tuneyard.agent.knowledge import Knowledge
from tuneyard.api.documents import PlannedAdapter, Transfer
from tuneyard.api.reasons import Reason
from tuneyard.planning.agent import Begin, Fetch, Load, Probe, ProbeBase, Remove, Step, Unload
from tuneyard.planning.agentstate import (
    BaseProven,
    Began,
    Begun,
    Ended,
    Failed,
    Fetched,
    Fetching,
    Proven,
    Removed,
    Slow,
    Unloaded,
)
from tuneyard.planning.slowfetches import SLOW_AFTER, gives_way, is_wanted
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.engines.base import Answer, Engine, EngineError, EngineGoneError, EngineRefusedError

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds before a step that failed for no adapter's fault may begin again."""
_PROBE_TOKENS = 8
_CANARIES = 3
_FRESH = 1.0
"""Seconds for which an answer of the base serves several adapters that are probed at once."""


class Performer:
    """Carries out the steps of one agent."""

    def __init__(
        self,
        knowledge: Knowledge,
        shelf: Shelf,
        engine: Engine,
        watch: EngineWatch,
        *,
        drain: Callable[[], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        """`drain` takes the pod out of service; it is back when its engine has begun anew."""
        self._knowledge = knowledge
        self._shelf = shelf
        self._engine = engine
        self._watch = watch
        self._drain = drain
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._probing: dict[str, bool] = {}
        """Engine names that are being probed, and whether nothing else was since."""

    def begin(self, step: Step) -> None:
        """Start a step; the knowledge hears when it is over."""
        self._knowledge.tell(Began(step.key))
        task = asyncio.create_task(self._perform(step), name=type(step).__name__)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """Cancel what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _perform(self, step: Step) -> None:
        try:
            await self._do(step)
        except EngineGoneError:
            await self._watch.look()
        except Exception:  # noqa: BLE001
            # a bug in one step must not end the others; it shows in the log and the step is tried again
            _log.exception("%s failed", type(step).__name__)
            await asyncio.sleep(_PAUSE)
        finally:
            self._knowledge.tell(Ended(step.key))

    async def _do(self, step: Step) -> None:
        match step:
            case Fetch():
                await self._fetch(step)
            case ProbeBase():
                await self._probe_base()
            case Begin():
                await self._begin(step)
            case Load():
                await self._load(step)
            case Probe():
                await self._probe(step)
            case Unload():
                await self._unload(step)
            case Remove():
                await asyncio.to_thread(self._shelf.remove, step.engine_name)
                self._knowledge.tell(Removed(step.engine_name))
            case _:
                assert_never(step)

    async def _fetch(self, step: Fetch) -> None:
        loop, name = asyncio.get_running_loop(), step.planned.name

        def told(transfer: Transfer) -> None:
            loop.call_soon_threadsafe(self._knowledge.tell, Fetching(name, transfer))

        def ends() -> bool:
            return gives_way(self._knowledge.state, step.planned, self._clock())

        def late() -> None:
            if is_wanted(self._knowledge.state, step.planned):
                self._knowledge.tell(Slow(name))

        slow = loop.call_later(SLOW_AFTER, late)
        try:
            prepared = await asyncio.to_thread(self._shelf.fetch, step.planned, told, ends)
        except FetchStopped:
            _log.info("fetching %s was stopped, gave way or is wanted no more; what has come stays in the cache", name)
        except FetchError as error:
            self._fail(step.planned, error.reason, str(error), error.digest)
        except Exception as error:  # noqa: BLE001
            # files are input of strangers: what nobody foresaw must reach the adapter's status, and come ever later
            _log.exception("fetching %s", name)
            self._fail(step.planned, Reason.ARTIFACT_UNREADABLE, f"{type(error).__name__}: {error}", None)
        else:
            self._knowledge.tell(Fetched(name, prepared))
        finally:
            slow.cancel()

    async def _probe_base(self) -> None:
        try:
            await self._watch.ask_base()
        except EngineGoneError:
            raise
        except EngineError as error:
            _log.warning("the base model does not answer yet: %s", error)
            await asyncio.sleep(_PAUSE)
        else:
            self._knowledge.tell(BaseProven())

    async def _begin(self, step: Begin) -> None:
        """Have the engine begin anew, while nobody is served by it.

        Where it does not come up, one new adapter is to blame; of several, the first is tried alone, others later.
        """
        before = self._engine.begun()
        named = {p.engine_name: self._shelf.path(p.engine_name) for _, p in step.adapters}
        if before is not None and self._knowledge.state.engine.healthy:
            await self._drain()
        new = [(a, p) for a, p in step.adapters if p.engine_name not in (before or ())]
        try:
            await self._engine.begin(named)
        except EngineError as error:
            for planned, prepared in new if len(new) == 1 else new[1:]:
                self._fail(planned, Reason.LOAD_REFUSED, str(error), prepared.digest)
            _log.warning("the engine goes on as before: %s", error)
        self._knowledge.tell(Begun(self._engine.begun() or frozenset()))
        await self._watch.look()

    async def _load(self, step: Load) -> None:
        name = step.prepared.engine_name
        try:
            await self._engine.load(name, self._shelf.path(name))
        except EngineGoneError:
            raise
        except EngineError as error:
            self._fail(step.planned, Reason.LOAD_REFUSED, str(error), step.prepared.digest)
        else:
            await self._watch.look()
            if name not in self._knowledge.state.engine.models:
                self._fail(step.planned, Reason.LOAD_REFUSED, "the engine does not list it", step.prepared.digest)

    async def _probe(self, step: Probe) -> None:
        name = step.prepared.engine_name
        self._probing = {**dict.fromkeys(self._probing, False), name: not self._probing}
        try:
            await self._asked(step, name)
        finally:
            del self._probing[name]

    async def _asked(self, step: Probe, name: str) -> None:
        """The base first, so that nobody is blamed for what was wrong before; then the adapter.

        In an engine that has just begun nothing was before, and its first token takes seconds: then both at once.
        """
        if self._watch.reference is None:
            base, answer = await asyncio.gather(self._ask_base(name), self._ask(step, name))
        else:
            base = await self._ask_base(name)
            sound = base is not None and not self._knowledge.state.engine.poisoned
            answer = await self._ask(step, name) if sound else None
        if base is not None and answer is not None:
            await self._judge(step, answer, base)

    async def _ask_base(self, name: str) -> Answer | None:
        """A token of the base before `name` is judged; None where there is none."""
        try:
            return await self._watch.ask_base(_FRESH if len(self._probing) > 1 else 0.0)
        except EngineGoneError:
            raise
        except EngineError as error:
            _log.warning("probing %s: the base model does not answer: %s", name, error)
            await asyncio.sleep(_PAUSE)
            return None

    async def _ask(self, step: Probe, name: str) -> Answer | None:
        """A token of the adapter; None where there is none, which is told."""
        try:
            return await self._engine.ask(name)
        except EngineGoneError:
            raise
        except EngineError as error:
            self._cannot_generate(step, str(error))
            return None

    async def _judge(self, step: Probe, answer: Answer, base: Answer) -> None:
        """What the answers say of the adapter."""
        name = step.prepared.engine_name
        reference = self._watch.reference or base
        if answer.model != name:
            self._cannot_generate(step, f"the engine answered as {answer.model}")
        elif answer.is_broken(reference):
            # with another probe at the same time, that one may have done it: then both are tried again
            self._cannot_generate(step, "the engine computes NaN with it: train again", for_ever=self._probing[name])
            for _ in range(_CANARIES):
                await self._watch.ask_base()
        else:
            same = await self._same(name, answer, base)
            warning = Reason.ANSWERS_LIKE_BASE if same else step.prepared.warning
            self._knowledge.tell(Proven(step.planned.name, name, warning))

    async def _same(self, name: str, answer: Answer, base: Answer) -> bool:
        """Whether the adapter changes nothing: by one token, and where that is equal by some more."""
        if not answer.equals(base):
            return False
        try:
            # one after the other: in one batch the engine rounds differently
            mine = await self._engine.ask(name, _PROBE_TOKENS)
            theirs = await self._engine.ask(self._knowledge.state.base_model, _PROBE_TOKENS)
        except EngineRefusedError as error:
            _log.warning("comparing %s with its base: %s", name, error)
            return False
        return mine.equals(theirs)

    async def _unload(self, step: Unload) -> None:
        try:
            await self._engine.unload(step.engine_name)
        except EngineGoneError:
            raise
        except EngineError as error:
            _log.warning("unloading %s: %s", step.engine_name, error)
            await asyncio.sleep(_PAUSE)
        else:
            self._knowledge.tell(Unloaded(step.engine_name, self._clock()))
            await self._watch.look()

    def _cannot_generate(self, step: Probe, why: str, *, for_ever: bool = False) -> None:
        self._fail(step.planned, Reason.CANNOT_GENERATE, why, step.prepared.digest, for_ever=for_ever)

    def _fail(
        self, planned: PlannedAdapter, reason: Reason, message: str, digest: str | None, *, for_ever: bool = False
    ) -> None:
        self._knowledge.tell(Failed(planned, reason, message, self._clock(), digest, for_ever))
