"""How full gateways see pools, over several models, pods and gateways, and what their pods say of priorities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from tests.contract.envoy import eventually
from tests.contract.ports import free_port
from tuneyard.api.external import ExternalSpec
from tuneyard.gateway.pressure import Pressure, PressureMetrics
from tuneyard.gateway.priorityoptions import priority_options
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.external import Access, external_route
from tuneyard.planning.priorities import PoolLimits, Priority
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.systems.envoy.loads import Load
from tuneyard.systems.envoy.translate import cluster_name


def routes(model: str, pool: str, *pods: str) -> ModelRoutes:
    endpoints = tuple(Endpoint(f"{pod}:80", pod) for pod in pods)
    revision = RevisionRoute("v1", pool, f"engine-{model}", 100, endpoints)
    return ModelRoutes(model, "team", model, f"uid-{model}", 1, 0, (revision,))


def load(of: ModelRoutes, under_way: int) -> dict[str, Load]:
    return {cluster_name(of, of.revisions[0]): Load(0, under_way)}


async def nobody() -> list[str] | None:
    return []


async def test_adapters_and_pods_of_a_pool_count_together() -> None:
    registry = CollectorRegistry()
    pressure = Pressure("g-0", PoolLimits(10), nobody, "token", PressureMetrics(registry))
    chat, more, other = routes("chat", "base", "a", "b"), routes("more", "base", "b"), routes("other", "own", "c")
    for one in (chat, more, other):
        pressure.routed(one.model, one)
    pressure.reported({**load(chat, 8), **load(more, 4), **load(other, 1), "nowhere": Load(1, 7)})
    assert pressure.filled() == {"team/base": 60.0, "team/own": 10.0}
    assert b'tuneyard_gateway_pool_filled_percent{namespace="team",pool="base"} 60.0' in generate_latest(registry)
    # a pod less, then one that only a model's pods were known by
    fewer = replace(chat, revisions=(replace(chat.revisions[0], endpoints=chat.revisions[0].endpoints[1:]),))
    pressure.routed("chat", fewer)
    assert pressure.filled()["team/base"] == 120.0
    pressure.routed("more", None)
    pressure.routed("chat", None)
    pressure.reported(load(chat, 8))
    assert pressure.filled() == {}
    assert b"team" not in generate_latest(registry)


async def test_what_somebody_else_serves_fills_no_pool() -> None:
    registry = CollectorRegistry()
    pressure = Pressure("g-0", PoolLimits(10), nobody, "token", PressureMetrics(registry))
    chat = routes("chat", "", "api.example")
    external = external_route(ExternalSpec(url="https://api.example/v1", model="m"), Access())
    chat = replace(chat, revisions=(replace(chat.revisions[0], external=external),))
    pressure.routed("chat", chat)
    pressure.reported(load(chat, 50))
    assert pressure.filled() == {}
    assert b"team" not in generate_latest(registry)
    pressure.routed("chat", None)


@asynccontextmanager
async def listening(pressure: Pressure, port: int, token: str) -> AsyncIterator[None]:
    async def answer(request: web.Request) -> web.Response:
        if request.headers["authorization"] != f"Bearer {token}":
            return web.Response(status=401)
        return web.Response(text=(await pressure.report_after(0, 0)).model_dump_json(by_alias=True))

    app = web.Application()
    app.router.add_get("/v1/pools", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def test_gateways_add_up() -> None:
    """Each counts itself once, and one that is gone or does not answer not at all."""
    ports, chat = [free_port() for _ in range(3)], routes("chat", "base", "a")

    async def peers() -> list[str] | None:
        return [f"127.0.0.1:{port}" for port in ports]

    gateways = [
        Pressure(f"g-{n}", PoolLimits(10), peers, "token", PressureMetrics(CollectorRegistry())) for n in range(2)
    ]
    for number, one in enumerate(gateways):
        one.routed("chat", chat)
        one.reported(load(chat, 2 + number))
    async with listening(gateways[0], ports[0], "token"), listening(gateways[1], ports[1], "token"):
        for one in gateways:
            one.start()
        await eventually(lambda: [one.filled() for one in gateways] == [{"team/base": 50.0}] * 2, "both know both")
        for one in gateways:
            await one.close()


def test_what_the_environment_says() -> None:
    assert priority_options({}) is None
    assert priority_options({"TUNEYARD_PRIORITIES": '{"requestsPerPod": 0}'}) is None
    text = '{"requestsPerPod": 64, "pools": {"team/base": 8}, "shares": {"Low": 50, "Normal": 80, "High": 120}}'
    shares = {Priority.HIGH: 120, Priority.NORMAL: 80, Priority.LOW: 50}
    assert priority_options({"TUNEYARD_PRIORITIES": text}) == PoolLimits(64, {"team/base": 8}, shares)


@pytest.mark.parametrize(
    "text",
    [
        "64",
        "{}",
        '{"requestsPerPod": "many"}',
        '{"requestsPerPod": -1}',
        '{"requestsPerPod": 64, "pools": {"team/base": 0}}',
        '{"requestsPerPod": 64, "pools": 8}',
        '{"requestsPerPod": 64, "shares": {"Low": 0}}',
        '{"requestsPerPod": 64, "shares": {"Low": 95, "Normal": 90}}',
        '{"requestsPerPod": 64, "shares": {"Normal": 110, "High": 100}}',
    ],
)
def test_what_makes_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="TUNEYARD_PRIORITIES"):
        priority_options({"TUNEYARD_PRIORITIES": text})
