"""What engines have to do, of pools that are scaled by that: read from the pods that routes lead to.

Agents could say it on their pods' annotations; then a thousand pods would write to the API server every few seconds.
Gateways reach the pods anyway, and the operator hears it with what is asked (demand.py). Rules:
- only engines of pools with a target about engines are asked: the page is long, and costs the engine milliseconds;
- all gateways ask all of them, each the less often the more gateways there are: together once in INTERVAL seconds. Who
  is gone takes nobody's engines with it, and whom one gateway cannot reach another one asks;
- what is told carries its age; what was never read, or not for FORGET seconds, is not told;
- a page is the word of a tenant's pod: one of more than LONGEST bytes is none, and only finite numbers count.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from tuneyard.api import names
from tuneyard.api.documents import EngineLoad
from tuneyard.gateway.background import ended
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.engines.loads import EngineCounts, counts_in

INTERVAL = 2.0
"""Seconds between two looks at one engine, by all gateways together."""
FORGET = 60.0
LONGEST = 4 << 20
_PATIENCE = 2.0
_AT_A_TIME = 32
_TICK = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """One engine that is asked."""

    namespace: str
    pool: str
    pod: str
    address: str
    tls: bool

    @property
    def name(self) -> str:
        """`namespace/pod`."""
        return f"{self.namespace}/{self.pod}"


@dataclass(frozen=True)
class _Read:
    counts: EngineCounts
    at: float
    tokens_per_second: float | None


class EngineLoads:
    """Reads them for one gateway."""

    def __init__(
        self,
        peers: Callable[[], Awaitable[list[str] | None]],
        told: Callable[[], None],
        clock: Callable[[], float],
        authority: str = "",
    ) -> None:
        """`peers`: addresses of all gateways' processes; `told` is called when something was read; `authority`: who has
        signed the certificates of pods, in PEM.
        """
        self._peers, self._told, self._clock = peers, told, clock
        self._tls = ssl.create_default_context(cadata=authority or None)
        self._of_model: dict[str, frozenset[Engine]] = {}
        self._engines: dict[Engine, float] = {}
        """When each is asked next."""
        self._read: dict[str, _Read] = {}
        self._turn = asyncio.Semaphore(_AT_A_TIME)
        self._asking: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model's routes are others."""
        before = self._of_model.pop(model, frozenset())
        found = (
            frozenset(
                Engine(routes.namespace, r.pool, e.pod, e.address, e.tls)
                for r in routes.revisions
                if r.asks_engines
                for e in r.endpoints
            )
            if routes is not None
            else frozenset[Engine]()
        )
        if found:
            self._of_model[model] = found
        if found == before:
            return
        wanted = frozenset().union(*self._of_model.values()) if self._of_model else frozenset[Engine]()
        self._engines = {engine: self._engines.get(engine, 0.0) for engine in wanted}

    def loads(self) -> dict[str, EngineLoad]:
        """What was read, by `namespace/pod`."""
        now, known = self._clock(), {e.name for e in self._engines}
        return {
            name: EngineLoad.model_construct(
                running=read.counts.running,
                waiting=read.counts.waiting,
                kv_cache=round(read.counts.kv_cache, 3),
                tokens_per_second=read.tokens_per_second,
                age_seconds=round(max(0.0, now - read.at), 1),
            )
            for name, read in self._read.items()
            if name in known and now - read.at <= FORGET
        }

    def start(self) -> None:
        """Begin to ask."""
        self._asking = asyncio.get_running_loop().create_task(self._ask_always(), name="engine loads")

    async def close(self) -> None:
        """Ask nobody any more."""
        await ended(self._asking)
        if self._session is not None:
            await self._session.close()

    async def _ask_always(self) -> None:
        while True:
            try:
                await self._round()
            except Exception:  # noqa: BLE001
                # a bug here must not end it: pools would never again get fewer replicas, and nobody know why
                _log.exception("reading engines")
            await asyncio.sleep(_TICK)

    async def _round(self) -> None:
        """Ask those whose turn it is."""
        now = self._clock()
        due = [engine for engine, at in self._engines.items() if at <= now]
        if not due:
            return
        gateways = max(1, len(await self._peers() or ()))
        for engine in due:
            self._engines[engine] = now + INTERVAL * gateways
        if any(await asyncio.gather(*map(self._ask, due))):
            known = {e.name for e in self._engines}
            self._read = {name: read for name, read in self._read.items() if name in known}
            self._told()

    async def _ask(self, engine: Engine) -> bool:
        """Whether it said what it has to do."""
        async with self._turn:
            page = await self._page(engine)
        counts = counts_in(page) if page else None
        if counts is None:
            return False
        now, before = self._clock(), self._read.get(engine.name)
        speed = None
        # an engine that has begun anew counts from nothing
        if before is not None and now > before.at and counts.tokens >= before.counts.tokens:
            speed = round((counts.tokens - before.counts.tokens) / (now - before.at), 1)
        self._read[engine.name] = _Read(counts, now, speed)
        return True

    async def _page(self, engine: Engine) -> str | None:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_PATIENCE)
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        url = f"{'https' if engine.tls else 'http'}://{engine.address}/metrics"
        server_name = names.pod_server_name(engine.namespace, engine.pool) if engine.tls else None
        try:
            async with self._session.get(
                url, allow_redirects=False, ssl=self._tls, server_hostname=server_name
            ) as answer:
                if answer.status != 200:
                    return None
                page = bytearray()
                async for chunk in answer.content.iter_any():
                    page += chunk
                    if len(page) > LONGEST:
                        return None
                return page.decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.debug("engine of %s does not say what it has to do: %s", engine.name, type(error).__name__)
            return None
