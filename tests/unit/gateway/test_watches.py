"""When a gateway's watches ask for a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.client import Configuration

from tests.builders import deployment
from tests.contract.envoy import eventually
from tests.unit.gateway.test_world import raw
from tuneyard.gateway import watches
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.watches import Watches
from tuneyard.gateway.world import World
from tuneyard.systems.kube.client import Api, ApiError

STALE = 0.1


class Refusing(Api):
    """Answers everything but what lies under a path."""

    def __init__(self) -> None:
        super().__init__(Configuration(host="http://127.0.0.1:1"))
        self.refused: dict[str, int] = {}

    def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        for part, status in self.refused.items():
            if part in path:
                raise ApiError(status, "Refused", path)
        return {}


class Silent:
    """An informer that listed once; `ages` says how long ago its last sign of life is."""

    ages: dict[str, float]

    def __init__(self, _api: Api, path: str, *_: object, **__: object) -> None:
        self.path, self.synced = path, True

    def age(self) -> float:
        return next((age for part, age in self.ages.items() if part in self.path), 0.0)

    def items(self) -> list[object]:
        return []

    def start(self) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""


@pytest.fixture
async def api() -> Refusing:
    return Refusing()


@pytest.fixture
async def watching(api: Refusing, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watches]:
    monkeypatch.setattr(watches, "Informer", Silent)
    monkeypatch.setattr(watches, "STALE", STALE)
    monkeypatch.setattr(watches, "_EXAMINE", 0.01)
    monkeypatch.setattr(Silent, "ages", {}, raising=False)
    world = World()
    found = Watches(api, world, lambda _: None, namespaces=(), metrics=Metrics())
    found.start()
    await found.completed.wait()
    world.put("deployment", raw(deployment()), 0)
    await eventually(lambda: ("pod", "team") in found._watches and found._watches["pod", "team"].taken, "pods")
    await asyncio.sleep(STALE)
    yield found
    await found.stop()


async def test_a_stuck_watch_asks_for_a_restart(watching: Watches) -> None:
    assert watching.alive()
    Silent.ages = {"/pods": 1000}
    assert not watching.alive()
    await asyncio.sleep(STALE)
    assert not watching.alive()
    Silent.ages = {"/": 1000}
    assert watching.alive(), "the API server is away: a restart would only lose time"


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refused_watch_asks_for_none(watching: Watches, api: Refusing, status: int) -> None:
    api.refused = {"/pods": status}
    Silent.ages = {"/pods": STALE / 2}
    await eventually(lambda: watching._watches["pod", "team"].refused, "it is known to be refused")
    Silent.ages = {"/pods": 1000}
    assert watching.alive()
    Silent.ages = {"/pods": 1000, "/modeldeployments": 1000}
    assert not watching.alive(), "others can still be stuck"
    api.refused = {}
    Silent.ages = {"/pods": 1000}
    await eventually(lambda: not watching.alive(), "allowed again and still silent: stuck")


async def test_what_is_refused_with_another_status_is_stuck(watching: Watches, api: Refusing) -> None:
    api.refused = {"/pods": 500}
    Silent.ages = {"/pods": 1000}
    await asyncio.sleep(STALE)
    assert not watching.alive()
