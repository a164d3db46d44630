"""What a gateway reads of engines: of which, how often, and what it makes of their pages."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.contract.envoy import eventually
from tests.contract.ports import free_port
from tests.unit.planning.test_poolload import PAGE
from tuneyard.gateway.engineloads import INTERVAL, LONGEST, EngineLoads
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.routes import ModelRoutes, RevisionRoute


def routes(model: str, *endpoints: Endpoint, asks: bool = True) -> ModelRoutes:
    revision = RevisionRoute("v1", "base", model, 100, endpoints, asks_engines=asks)
    return ModelRoutes(model, "team", model, f"uid-{model}", 1, 0, (revision,))


class Engines:
    """Pages by port, and how often each was asked for."""

    def __init__(self) -> None:
        self.pages: dict[int, str] = {}
        self.asked: dict[int, int] = {}
        self.now = 1000.0
        self.told = 0
        self._runners: list[web.AppRunner] = []

    async def add(self, pod: str, page: str) -> Endpoint:
        port = free_port()
        self.pages[port] = page

        async def metrics(_: web.Request) -> web.Response:
            self.asked[port] = self.asked.get(port, 0) + 1
            return web.Response(text=self.pages[port])

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self._runners.append(runner)
        return Endpoint(f"127.0.0.1:{port}", pod)

    async def peers(self) -> list[str] | None:
        return ["a:1", "b:1"]

    def tell(self) -> None:
        self.told += 1

    async def stop(self) -> None:
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))


@pytest.mark.lasting
async def test_engines_of_pools_that_need_it_are_read_and_no_others() -> None:
    engines = Engines()
    loads = EngineLoads(engines.peers, engines.tell, lambda: engines.now)
    busy, other = await engines.add("pod-0", PAGE), await engines.add("pod-1", PAGE)
    loads.routed("chat", routes("chat", busy))
    loads.routed("plain", routes("plain", other, asks=False))
    loads.start()
    try:
        await eventually(lambda: engines.told == 1, "it was read")
        (name, found), *rest = loads.loads().items()
        assert (name, rest) == ("team/pod-0", [])
        assert (found.running, found.waiting, found.kv_cache, found.tokens_per_second) == (12, 2, 0.5, None)
        engines.now += INTERVAL * 2
        engines.pages = dict.fromkeys(engines.pages, PAGE.replace("1000.0", "1400.0"))
        await eventually(lambda: engines.told == 2, "it was read again")
        assert loads.loads()["team/pod-0"].tokens_per_second == 100.0
        engines.now += INTERVAL * 2 - 0.1
        assert loads.loads()["team/pod-0"].age_seconds == 3.9, "two gateways ask half as often each"
        assert sum(engines.asked.values()) == 2
        loads.routed("chat", None)
        assert loads.loads() == {}
    finally:
        await loads.close()
        await engines.stop()


async def test_a_page_that_is_none_and_a_pod_that_is_gone_say_nothing() -> None:
    engines = Engines()
    loads = EngineLoads(engines.peers, engines.tell, lambda: engines.now)
    long = await engines.add("long", PAGE + "#" * LONGEST)
    odd, good = await engines.add("odd", "hello"), await engines.add("good", PAGE)
    gone = Endpoint(f"127.0.0.1:{free_port()}", "gone")
    loads.routed("chat", routes("chat", long, odd, gone, good))
    loads.start()
    try:
        await eventually(lambda: engines.told == 1, "it was read")
        assert list(loads.loads()) == ["team/good"]
        engines.now += 61
        assert loads.loads() == {}, "what is old is not told"
    finally:
        await loads.close()
        await engines.stop()
