"""From changes to what Envoy is sent, and to the report of what is in force."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.builders import deployment
from tests.unit.gateway.test_delta import Client
from tests.unit.gateway.test_world import canary, raw, world_of
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.publisher import Publisher
from tuneyard.gateway.world import World
from tuneyard.systems.envoy.ads import AdsServer
from tuneyard.systems.envoy.delta import ROUTES


class Driven(AdsServer):
    """An ADS server whose one Envoy is driven by hand."""

    def attach(self) -> Client:
        client = Client(self._store)
        self._streams_seen += 1
        self._streams[self._streams_seen] = (client.session, asyncio.Event())
        client.connect()
        return client

    def settle(self, client: Client) -> list[str]:
        """Let Envoy take everything; returns the route tables that it was sent."""
        told = client.settle()
        self._on_change()
        return [name for kind, names, _ in told if kind == "RouteConfiguration" for name in names]


class Setup:
    def __init__(self, world: World) -> None:
        self.world, self.metrics = world, Metrics()
        self.publisher = Publisher("gateway-0", world, lambda namespace, pool: f"{namespace}/{pool}", self.metrics)
        self.ads = Driven(self.publisher._acknowledged)
        self.publisher.ads = self.ads
        self.publisher.open()
        self.client = self.ads.attach()

    async def take(self) -> list[str]:
        await asyncio.sleep(0)
        return self.ads.settle(self.client)

    def change(self, *resources: object) -> None:
        for resource in resources:
            self.publisher.mark(self.world.put("deployment", raw(resource), 0))  # type: ignore[arg-type]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    yield Setup(world_of(canary(), deployment("other")))


async def test_it_reports_what_envoy_has_taken(setup: Setup) -> None:
    assert setup.publisher.report().deployments == {}
    assert sorted(await setup.take()) == ["-", "chat", "other"]
    report = setup.publisher.report()
    assert {k: d.weights for k, d in report.deployments.items()} == {
        "team/chat": {"v1": 90, "v2": 10},
        "team/other": {"v1": 100},
    }
    setup.change(canary(v1=50, generation=2))
    await asyncio.sleep(0)
    assert setup.publisher.report() == report
    assert await setup.take() == ["chat"]
    applied = setup.publisher.report().deployments["team/chat"]
    assert (applied.weights, applied.generation, applied.uid) == ({"v1": 50, "v2": 50}, 2, "uid-chat")


async def test_it_reports_for_which_revisions_requests_are_held(setup: Setup) -> None:
    """And tells whoever holds them of each change, when it is known and when it is in force."""
    await setup.take()
    changed: list[str] = []
    setup.publisher.on_change = changed.append
    waking = ModelDeploymentStatus(waking_since="2026-01-01T00:00:00Z")
    setup.publisher.mark(setup.world.remove("pod", ("team", "a"), 0))
    setup.change(canary(status=waking))
    await asyncio.sleep(0)
    assert changed == ["chat", "other"]
    await setup.take()
    assert changed == ["chat", "other", "chat", "other"]
    applied = setup.publisher.report().deployments["team/chat"]
    assert (applied.weights, applied.held) == ({"v1": 90, "v2": 10}, ["v1", "v2"])
    setup.change(canary())
    await setup.take()
    applied = setup.publisher.report().deployments["team/chat"]
    assert (applied.weights, applied.held) == ({"v1": 0, "v2": 0}, [])


async def test_a_burst_is_one_push(setup: Setup) -> None:
    await setup.take()
    pushed = setup.metrics.pushes._value.get()
    for weight in range(10):
        setup.change(canary(v1=weight, generation=weight))
    assert await setup.take() == ["chat"]
    assert setup.metrics.pushes._value.get() == pushed + 1


async def test_a_generation_without_other_routes_is_applied_at_once(setup: Setup) -> None:
    await setup.take()
    version = setup.publisher.report().version
    setup.change(canary(generation=7))
    assert await setup.take() == []
    assert setup.publisher.report().deployments["team/chat"].generation == 7
    assert setup.publisher.report().version == version + 1
    setup.change(canary(generation=7))
    assert await setup.take() == []
    assert setup.publisher.report().version == version + 1


async def test_what_envoy_refuses_is_not_reported(setup: Setup) -> None:
    await setup.take()
    setup.client.refuses.add((ROUTES, "chat"))
    setup.change(canary(v1=10, generation=2))
    await setup.take()
    assert setup.publisher.report().deployments["team/chat"].generation == 1
    setup.client.refuses.clear()
    setup.change(canary(v1=20, generation=3))
    await setup.take()
    assert setup.publisher.report().deployments["team/chat"].weights == {"v1": 20, "v2": 80}


async def test_renamed_and_removed_models(setup: Setup) -> None:
    await setup.take()
    setup.change(canary(model_name="new-name", generation=2))
    assert sorted(await setup.take()) == ["-", "new-name"]
    assert setup.publisher.report().deployments["team/chat"].generation == 2
    setup.world.remove("deployment", ("team", "other"), 0)
    setup.publisher.mark(setup.world.expire(1000))
    assert await setup.take() == ["-"]
    assert setup.publisher.report().deployments.keys() == {"team/chat"}


async def test_a_report_is_waited_for(setup: Setup) -> None:
    await setup.take()
    now = setup.publisher.report()
    assert await setup.publisher.report_after(now.version, 0.01) == now
    assert await setup.publisher.report_after(now.version + 5, 60) == now
    waiting = asyncio.create_task(setup.publisher.report_after(now.version, 60))
    setup.change(canary(v1=1, generation=2))
    await setup.take()
    assert (await waiting).version == now.version + 1


async def test_an_envoy_that_comes_back_gets_everything(setup: Setup) -> None:
    await setup.take()
    setup.client = setup.ads.attach()
    assert not setup.ads.complete
    assert sorted(await setup.take()) == ["-", "chat", "other"]
    assert setup.ads.complete
