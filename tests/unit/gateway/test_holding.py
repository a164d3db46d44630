"""Who waits at a gateway for an adapter: until what, for how long, and how many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.contract.envoy import model, revision
from tuneyard.gateway import holding
from tuneyard.gateway.holding import Holding, Limits, Outcome
from tuneyard.gateway.metrics import Metrics
from tuneyard.planning.routes import ModelRoutes

SOON = 0.02
ASLEEP = replace(revision("v1", 100), held=True)
AWAKE = revision("v1", 100, ["10.0.0.1:8080"])
UNSERVED = revision("v1", 0)


class Gateway:
    """A gateway's routes as a test sets them."""

    def __init__(self, limits: Limits) -> None:
        self.models: dict[str, ModelRoutes] = {}
        self.in_force = True
        self.told: list[tuple[str, str, int]] = []
        self.holding = Holding(
            self.models.get,
            lambda _: self.in_force,
            lambda *told: self.told.append(told),
            limits,
            Metrics(),
        )

    def route(self, routes: ModelRoutes) -> None:
        self.models[routes.model] = routes
        self.holding.changed(routes.model)

    async def asked(self, name: str = "chat", revision: str = "v1") -> asyncio.Task[Outcome]:
        """A request that has come."""
        task = asyncio.create_task(self.holding.hold(name, revision))
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def gateway() -> Gateway:
    made = Gateway(Limits(seconds=5))
    made.route(model("chat", ASLEEP))
    return made


async def test_it_goes_on_when_envoy_works_with_the_new_routes(gateway: Gateway) -> None:
    waiting = await gateway.asked()
    gateway.in_force = False
    gateway.route(model("chat", AWAKE))
    await asyncio.sleep(0)
    assert not waiting.done()
    gateway.in_force = True
    gateway.holding.changed("chat")
    assert await waiting is Outcome.READY
    assert gateway.told == [("default/md-chat", "v1", 1), ("default/md-chat", "v1", 0)]
    assert await (await gateway.asked()) is Outcome.READY, "one that comes late does not wait"


async def test_an_envoy_that_connects_again_is_looked_at(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells that it has what it should have: it had it before."""
    monkeypatch.setattr(holding, "_LOOK", SOON)
    gateway.route(model("chat", AWAKE))
    gateway.in_force = False
    waiting = await gateway.asked()
    gateway.in_force = True
    assert await waiting is Outcome.READY


@pytest.mark.parametrize("routes", [model("chat", UNSERVED, unserved=100), model("chat", revision("v2", 100))])
async def test_what_will_not_come_is_not_waited_for(gateway: Gateway, routes: ModelRoutes) -> None:
    waiting = await gateway.asked()
    gateway.route(routes)
    assert await waiting is Outcome.NOT_LOADABLE
    assert await (await gateway.asked()) is Outcome.NOT_LOADABLE
    assert await (await gateway.asked("unknown")) is Outcome.NOT_LOADABLE


async def test_a_full_pool_is_given_a_moment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "ROOM_GRACE", SOON)
    full = replace(model("chat", ASLEEP), no_room=True)
    waiting = await gateway.asked()
    gateway.route(full)
    gateway.route(model("chat", ASLEEP))
    await asyncio.sleep(2 * SOON)
    assert not waiting.done(), "room was made in time"
    gateway.route(full)
    assert await waiting is Outcome.NO_ROOM
    assert await (await gateway.asked()) is Outcome.NO_ROOM
    gateway.route(model("chat", ASLEEP))
    again = await gateway.asked()
    assert not again.done()
    again.cancel()


async def test_limits_and_who_leaves() -> None:
    gateway = Gateway(Limits(seconds=SOON, requests=3, of_one_deployment=2))
    for name in ("chat", "other"):
        gateway.route(model(name, ASLEEP))
    first, second = await gateway.asked(), await gateway.asked()
    assert await (await gateway.asked()) is Outcome.TOO_MANY
    third = await gateway.asked("other")
    assert await (await gateway.asked("other")) is Outcome.TOO_MANY
    first.cancel()
    await asyncio.sleep(0)
    assert gateway.holding.held == 2
    assert {await second, await third} == {Outcome.TIMEOUT}
    assert gateway.holding.held == 0
    assert gateway.told[-1][2] == 0


async def test_a_deployment_may_have_limits_of_its_own() -> None:
    gateway = Gateway(Limits(seconds=5, requests=4, of_one_deployment=1))
    gateway.route(replace(model("chat", ASLEEP), most_held=3, hold_seconds=0))
    assert await (await gateway.asked()) is Outcome.TIMEOUT
    assert gateway.told == [("default/md-chat", "v1", 1), ("default/md-chat", "v1", 0)], (
        "it wakes what it does not wait for"
    )
    gateway.route(replace(model("chat", ASLEEP), most_held=6))
    waiting = [await gateway.asked() for _ in range(4)]
    assert await (await gateway.asked()) is Outcome.TOO_MANY, "all deployments together have one bound"
    gateway.route(model("chat", AWAKE))
    assert set(await asyncio.gather(*waiting)) == {Outcome.READY}


async def test_who_is_refused_is_told_what_is_left_of_the_start(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a start from nothing, not of an adapter that comes into pods that run."""
    now = [100.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    starting = replace(model("chat", replace(ASLEEP, starting=True)), hold_seconds=0)
    told = []
    for routes, took in ((starting, 90.0), (model("chat", ASLEEP), 1.0), (starting, 20.0)):
        gateway.route(routes)
        waiting = await gateway.asked()
        now[0] += took
        told.append(gateway.holding.retry_after("chat", "v1"))
        gateway.route(model("chat", AWAKE))
        await asyncio.wait([waiting])
    assert told == [5, 5, 70]


async def test_it_is_told_which_revision_is_waited_for(gateway: Gateway) -> None:
    gateway.route(model("chat", ASLEEP, replace(revision("v2", 0), held=True)))
    waiting = [await gateway.asked(), await gateway.asked(), await gateway.asked(revision="v2")]
    chat = "default/md-chat"
    assert gateway.told == [(chat, "v1", 1), (chat, "v1", 2), (chat, "v2", 1)]
    gateway.route(model("chat", AWAKE, revision("v2", 0, ["10.0.0.2:8080"])))
    assert await asyncio.gather(*waiting) == [Outcome.READY] * 3
    assert set(gateway.told[-3:]) == {(chat, "v1", 1), (chat, "v1", 0), (chat, "v2", 0)}
