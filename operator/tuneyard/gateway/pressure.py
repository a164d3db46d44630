"""How full pools are, over all gateways, and whose requests they refuse therefore. Only where priorities are used.

Rules:
- Envoy tells once a second what is under way for each cluster (loads.py); clusters of all revisions and adapters add up
  to their pool, and what other gateways say of theirs is added: each is asked as often, and what one said last counts
  while it does not answer, for FORGET seconds;
- pods are those that routes lead to. More of them are there as soon as they serve;
- so a pool is seen to be full a second or two after it is. Requests to engines take longer than that, and who comes
  earlier waits in the engine's queue as without priorities.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge

from tuneyard.api.base import ApiModel
from tuneyard.gateway.background import ended
from tuneyard.planning.priorities import PoolLimits
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.loads import INTERVAL, Load
from tuneyard.systems.envoy.priorities import FULL_PATH, full_text
from tuneyard.systems.envoy.translate import served_by

POOLS_PATH = "/v1/pools"
FORGET = 5.0
"""Seconds after which a gateway that does not answer has nothing under way."""
_PATIENCE = 0.8
"""Seconds for one gateway's answer."""

_log = logging.getLogger(__name__)


class PoolsReport(ApiModel):
    """What is under way to pools through one gateway, by `namespace/pool`."""

    gateway: str
    under_way: dict[str, int] = {}


class PressureMetrics:
    """What Prometheus reads of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.filled = Gauge(
            "tuneyard_gateway_pool_filled_percent",
            "How many requests are under way through all gateways, of those that a pool holds.",
            ["namespace", "pool"],
            registry=registry,
        )


class Pressure:
    """Knows it for one gateway."""

    def __init__(
        self,
        name: str,
        limits: PoolLimits,
        peers: Callable[[], Awaitable[list[str] | None]],
        token: str,
        metrics: PressureMetrics,
    ) -> None:
        """`name`: the gateway's; `peers`: addresses of all gateways' processes, `token`: what they are asked with."""
        self._name, self._limits, self._peers = name, limits, peers
        self._headers = {"Authorization": f"Bearer {token}"}
        self._of_model: dict[str, tuple[dict[tuple[str, str], str], list[tuple[str, str]]]] = {}
        """By model: the pool of each of its revisions, and pool and pod of each endpoint."""
        self._pools: dict[tuple[str, str], str] = {}
        """By ModelDeployment (`namespace/name`) and revision."""
        self._pods: dict[str, Counter[str]] = {}
        """By pool: how many routes lead to each pod."""
        self._own: dict[str, int] = {}
        self._others: dict[str, tuple[float, dict[str, int]]] = {}
        """By gateway: when it said so, and what."""
        self._metrics = metrics
        self._shown: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._asking: asyncio.Task[None] | None = None

    # -- what happens ----------------------------------------------------------------------------------------------

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model's routes are others."""
        revisions, endpoints = self._of_model.pop(model, ({}, []))
        for revision in revisions:
            self._pools.pop(revision, None)
        for pool, pod in endpoints:
            self._pods[pool][pod] -= 1
            if self._pods[pool][pod] <= 0:
                del self._pods[pool][pod]
        if routes is None:
            return
        name = f"{routes.namespace}/{routes.deployment}"
        here = [r for r in routes.revisions if r.external is None]  # who else serves has no pool that could be full
        found = {(name, r.name): f"{routes.namespace}/{r.pool}" for r in here}
        pods = [(found[name, r.name], e.pod) for r in here for e in r.endpoints]
        self._of_model[model] = found, pods
        self._pools |= found
        for pool, pod in pods:
            self._pods.setdefault(pool, Counter())[pod] += 1

    def reported(self, loads: Mapping[str, Load]) -> None:
        """Envoy has told the loads of its clusters; one that is missing has none."""
        own = Counter[str]()
        for cluster, load in loads.items():
            served = served_by(cluster)
            pool = self._pools.get((served.deployment, served.revision)) if served is not None else None
            if pool is not None and load.under_way:
                own[pool] += load.under_way
        self._own = dict(own)
        self._show()

    # -- what is told ----------------------------------------------------------------------------------------------

    def filled(self) -> dict[str, float]:
        """How full each pool is that something is under way to, in percent."""
        since = asyncio.get_running_loop().time() - FORGET
        total = Counter(self._own)
        for said_at, under_way in self._others.values():
            if said_at >= since:
                total.update(under_way)
        return {pool: self._limits.filled(pool, len(self._pods.get(pool, ())), n) for pool, n in total.items()}

    async def report_after(self, _version: int, _within: float) -> PoolsReport:
        """What is under way through this gateway, at once."""
        return PoolsReport(gateway=self._name, under_way=self._own)

    def join(self, app: web.Application) -> None:
        """Answer Envoy's script there."""

        async def full(_: web.Request) -> web.Response:
            filled = sorted(self.filled().items())
            return web.Response(text=full_text((pool, p) for pool, f in filled for p in self._limits.refused(f)))

        app.router.add_get(FULL_PATH, full)

    def _show(self) -> None:
        filled = self.filled()
        for pool in self._shown - filled.keys():
            self._metrics.filled.remove(*pool.split("/"))
        for pool, percent in filled.items():
            self._metrics.filled.labels(*pool.split("/")).set(round(percent, 1))
        self._shown = set(filled)

    # -- other gateways --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to ask them."""
        self._asking = asyncio.get_running_loop().create_task(self._ask_always())

    async def close(self) -> None:
        """Ask nobody any more."""
        await ended(self._asking)
        if self._session is not None:
            await self._session.close()

    async def _ask_always(self) -> None:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=_PATIENCE))
        while True:
            addresses = await self._peers() or []
            said = await asyncio.gather(*(self._ask(self._session, address) for address in addresses))
            now = asyncio.get_running_loop().time()
            self._others |= {r.gateway: (now, r.under_way) for r in said if r is not None and r.gateway != self._name}
            self._others = {name: one for name, one in self._others.items() if one[0] >= now - FORGET}
            self._show()
            await asyncio.sleep(INTERVAL)

    async def _ask(self, session: aiohttp.ClientSession, address: str) -> PoolsReport | None:
        try:
            async with session.get(f"http://{address}{POOLS_PATH}") as answer:
                answer.raise_for_status()
                return PoolsReport.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            # an older one does not know the path, one that leaves is gone; what it said last is forgotten by itself
            _log.debug("the gateway at %s does not say what is under way: %s", address, error)
            return None
