"""Leaving in order: hand over, unpublish, wait until gateways have noticed, refuse what still comes, wait for what
runs.

Handing over: where adapters are spread over pods, the plan names this pod for those that no other one has loaded yet
(planning/handover.py). Until it names it for none, everything stays as it is, for HAND_OVER_SECONDS at most.

The engine's container is stopped only after `drain()` has returned (its preStop hook waits for it), so that no request
meets a dying engine. A second call joins the first one.

The kubelet runs the same hook when it restarts an engine that hangs. Then there is no sense in waiting for what runs,
and the pod stays: draining ends with the engine (planning.agentlearning), and the front takes requests again. That may
happen at any moment of a drain, so that a drain looks again before and after it closes the front.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from tuneyard.agent.front import Front, FrontError
from tuneyard.agent.knowledge import Knowledge
from tuneyard.planning.agentstate import DrainAsked, State
from tuneyard.planning.handover import HAND_OVER_SECONDS

_log = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
"""No new request for this long: gateways have dropped the endpoint."""
MOST_WAIT_SECONDS = 15.0
"""New requests are refused after this long at the latest; gateways send those to another pod."""
_SAMPLE = 0.1


class _End(StrEnum):
    """How waiting for what runs has ended."""

    IDLE = "nothing runs any more"
    UNWELL = "the engine is not well, nothing that runs will end well"
    LATE = "requests still running"


class Drain:
    """The draining of one pod."""

    def __init__(self, knowledge: Knowledge, front: Front, timeout: float, clock: Callable[[], float]) -> None:
        self._knowledge = knowledge
        self._front = front
        self._timeout = timeout
        self._clock = clock
        self._task: asyncio.Task[bool] | None = None

    async def drain(self) -> bool:
        """Drain the pod; returns whether nothing was running any more when the time was up."""
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name="drain")
        return await asyncio.shield(self._task)

    async def follow(self) -> None:
        """For ever: whenever draining is over and the pod still there, let the front take requests again."""
        while True:
            await self._knowledge.until(lambda state: not state.draining)
            self._task = None
            await self._reopen()
            await self._knowledge.until(lambda state: state.draining)

    async def _reopen(self) -> None:
        """Let the front take requests, as soon as it listens, unless draining begins again."""
        while not self._leaving():
            try:
                await self._front.set_draining(False)
                return
            except FrontError:
                await asyncio.sleep(QUIET_SECONDS)

    async def _drain(self) -> bool:
        began = self._clock()
        await self._until_handed_over()
        self._knowledge.tell(DrainAsked())
        _log.info("draining: no longer offered to gateways")
        await self._until_quiet(self._clock())
        if not self._leaving():
            return False
        try:
            await self._front.set_draining(True)
        except FrontError as error:
            _log.warning("draining without refusing new requests: %s", error)
        if not self._leaving():
            # `follow` has opened the front meanwhile, perhaps before it was closed here: nobody would open it again
            await self._reopen()
            return False
        end = await self._until_idle(began)
        _log.info("drained after %.1f s: %s", self._clock() - began, end)
        return end is _End.IDLE

    def _leaving(self) -> bool:
        return self._knowledge.state.draining

    async def _until_handed_over(self) -> None:
        most = min(HAND_OVER_SECONDS, self._timeout / 2)
        try:
            async with asyncio.timeout(most):
                await self._knowledge.until(lambda state: not _hands_over(state))
        except TimeoutError:
            _log.warning("no other pod has all of its adapters after %.0f s: these are away for a while", most)

    async def _until_quiet(self, began: float) -> None:
        last, since = -1, began
        while (now := self._clock()) - since < QUIET_SECONDS and now - began < MOST_WAIT_SECONDS:
            try:
                total = (await self._front.traffic()).total
            except FrontError:
                total = last  # a front that is gone takes nothing new
            if total != last:
                last, since = total, now
            await asyncio.sleep(_SAMPLE)

    async def _until_idle(self, began: float) -> _End:
        while self._clock() - began < self._timeout:
            engine = self._knowledge.state.engine
            if not engine.healthy or engine.poisoned:
                return _End.UNWELL
            try:
                if (await self._front.traffic()).active == 0:
                    return _End.IDLE
            except FrontError as error:
                _log.warning("nobody knows what is running: %s", error)
                return _End.IDLE
            await asyncio.sleep(_SAMPLE)
        return _End.LATE


def _hands_over(state: State) -> bool:
    """Whether the pod serves what no other one has. An engine that is not well serves nobody."""
    plan, engine = state.plan, state.engine
    spread = plan is not None and plan.pods is not None and bool(plan.adapters)
    return spread and engine.healthy and engine.answers and not engine.poisoned and not state.draining
