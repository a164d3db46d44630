"""Requests that wait until an adapter is loaded: Envoy's script asks here, and goes on when it is answered.

Rules:
- an answer means that Envoy itself has acknowledged routes with a pod for that revision, which a request that goes on
  then finds;
- nobody waits for what will not come: a revision that is not loaded on demand (any more), a pool without room, more
  requests than the limits allow. A pool counts as full only after ROOM_GRACE, in which room may be made in it;
- who waits for what is told (`waiting`) with every request that comes or goes: the first one is the signal that wakes.
  A client that leaves frees its place;
- each ModelDeployment may have limits of its own (`routing.coldStart`), but for how many wait at this gateway in all;
- who is told to ask again is told when, by how long the pool's last start took (coldstarts.py);
- nothing is kept: when this process ends, Envoy answers those who waited with 503, and they may ask again.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aiohttp import web

from tuneyard.gateway.coldstarts import ColdStarts
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.unixserver import serve_unix
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.systems.envoy.bootstrap import (
    HOLD_MODEL_HEADER,
    HOLD_PATH,
    HOLD_REFUSAL_HEADER,
    HOLD_RETRY_HEADER,
    HOLD_REVISION_HEADER,
    HOLD_SECONDS,
)

ROOM_GRACE = 3.0
"""Seconds for which a pool has to be full before nobody waits for it any more."""
_LOOK = 1.0
"""Seconds between two looks at all who wait: an Envoy that connects again says nothing of what it has already."""


class Outcome(StrEnum):
    """Why a request waits no longer; all but READY are refusals, whose words are in rewrite.lua."""

    READY = "ready"
    TIMEOUT = "timeout"
    TOO_MANY = "too-many"
    NO_ROOM = "no-room"
    NOT_LOADABLE = "not-loadable"


@dataclass(frozen=True)
class Limits:
    """How long and how many may wait at this gateway."""

    seconds: float = HOLD_SECONDS
    requests: int = 1000
    of_one_deployment: int = 100


@dataclass(eq=False)
class _Waiter:
    """One request."""

    model: str
    revision: str
    answer: asyncio.Future[Outcome]


class Holding:
    """Who waits at one gateway."""

    def __init__(
        self,
        routes: Callable[[str], ModelRoutes | None],
        in_force: Callable[[str], bool],
        waiting: Callable[[str, str, int], None],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """`routes`: those of a model as they should be, `in_force`: whether Envoy works with just these.

        `waiting` is told of a ModelDeployment (`namespace/name`) and a revision how many requests wait for it now.
        """
        self._routes = routes
        self._in_force = in_force
        self._waiting = waiting
        self._limits = limits
        self._metrics = metrics
        self._waiters: dict[str, set[_Waiter]] = {}
        """By model."""
        self._held: dict[str, Counter[str]] = {}
        """By ModelDeployment and revision."""
        self._full_since: dict[str, float] = {}
        """Models that wait for room in a pool."""
        self._looking = False
        self._starts = ColdStarts()

    @property
    def held(self) -> int:
        """How many wait."""
        return sum(held.total() for held in self._held.values())

    async def hold(self, model: str, revision: str) -> Outcome:
        """Wait until the model's revision can answer, or cannot any more; a cancelled one frees its place."""
        self._look_for_room(model)
        outcome = self._outcome(model, revision)
        routes = self._routes(model)
        if outcome is None and routes is not None:
            self._note_start(routes, revision)
            outcome = await self._wait(routes, revision)
        outcome = outcome or Outcome.NOT_LOADABLE
        self._metrics.holds.labels(outcome.value).inc()
        return outcome

    def changed(self, model: str) -> None:
        """The model's routes are others, or have come into force."""
        self._look_for_room(model)
        self._note_ends(model)
        for waiter in list(self._waiters.get(model, ())):
            outcome = self._outcome(model, waiter.revision)
            if outcome is not None and not waiter.answer.done():
                waiter.answer.set_result(outcome)

    def retry_after(self, model: str, revision: str) -> int:
        """Seconds after which who was refused may ask again."""
        routes = self._routes(model)
        found = _named(routes, revision)
        pool = (routes.namespace if routes else "", found.pool if found else "")
        return self._starts.retry_after(pool, asyncio.get_running_loop().time())

    async def _wait(self, routes: ModelRoutes, revision: str) -> Outcome:
        limits, model, deployment = self._limits, routes.model, f"{routes.namespace}/{routes.deployment}"
        most = limits.of_one_deployment if routes.most_held is None else routes.most_held
        if self.held >= limits.requests or self._held.get(deployment, Counter()).total() >= most:
            return Outcome.TOO_MANY
        waiter = _Waiter(model, revision, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(model, set()).add(waiter)
        self._count(deployment, revision, 1)
        if not self._looking:
            self._look()
        try:
            async with asyncio.timeout(limits.seconds if routes.hold_seconds is None else routes.hold_seconds):
                return await waiter.answer
        except TimeoutError:
            return Outcome.TIMEOUT
        finally:
            self._waiters[model].discard(waiter)
            if not self._waiters[model]:
                del self._waiters[model]
            self._count(deployment, revision, -1)

    def _look(self) -> None:
        for model in list(self._waiters):
            self.changed(model)
        self._looking = bool(self._waiters)
        if self._looking:
            asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _count(self, deployment: str, revision: str, more: int) -> None:
        held = self._held.setdefault(deployment, Counter())
        held[revision] += more
        self._waiting(deployment, revision, held[revision])
        if not held.total():
            del self._held[deployment]

    def _outcome(self, model: str, revision: str) -> Outcome | None:
        """What is to be answered now; None: to be waited for."""
        found = _named(self._routes(model), revision)
        if found is None:
            return Outcome.NOT_LOADABLE
        if found.endpoints:
            return Outcome.READY if self._in_force(model) else None
        if not found.held:
            return Outcome.NOT_LOADABLE
        since = self._full_since.get(model)
        full = since is not None and asyncio.get_running_loop().time() - since >= ROOM_GRACE
        return Outcome.NO_ROOM if full else None

    def _note_start(self, routes: ModelRoutes, revision: str) -> None:
        found = _named(routes, revision)
        if found is not None and found.starting:
            self._starts.waits((routes.namespace, found.pool), asyncio.get_running_loop().time())

    def _note_ends(self, model: str) -> None:
        routes = self._routes(model)
        if routes is None:
            return
        now = asyncio.get_running_loop().time()
        for pool in {r.pool for r in routes.revisions if r.endpoints}:
            self._starts.serves((routes.namespace, pool), now)

    def _look_for_room(self, model: str) -> None:
        routes, loop = self._routes(model), asyncio.get_running_loop()
        if routes is None or not routes.no_room:
            self._full_since.pop(model, None)
        elif model not in self._full_since:
            self._full_since[model] = loop.time()
            loop.call_later(ROOM_GRACE, self.changed, model)


def _named(routes: ModelRoutes | None, revision: str) -> RevisionRoute | None:
    return next((r for r in routes.revisions if r.name == revision), None) if routes else None


def application(holding: Holding) -> web.Application:
    """What Envoy's script asks: 200 when the request may go on, else 503 with the reason in a header."""

    async def hold(request: web.Request) -> web.Response:
        model, revision = (request.headers.get(h, "") for h in (HOLD_MODEL_HEADER, HOLD_REVISION_HEADER))
        outcome = await holding.hold(model, revision)
        if outcome is Outcome.READY:
            return web.Response()
        told = {HOLD_REFUSAL_HEADER: outcome.value, HOLD_RETRY_HEADER: str(holding.retry_after(model, revision))}
        return web.Response(status=503, headers=told)

    app = web.Application()
    app.router.add_get(HOLD_PATH, hold)
    return app


async def serve(holding: Holding, socket: Path, *others: Callable[[web.Application], None]) -> web.AppRunner:
    """Listen on a Unix socket; `others` add what else Envoy's scripts ask."""
    app = application(holding)
    for add in others:
        add(app)
    # a client that leaves ends Envoy's call, and only a handler that is cancelled by that frees the place
    return await serve_unix(app, socket, handler_cancellation=True)
