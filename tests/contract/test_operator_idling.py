"""The whole circle: nobody asks, the adapter is unloaded, somebody asks and is held, it is loaded, he is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.idling import IdlingWorld

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


async def test_from_idle_and_back_also_while_the_operator_is_away(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    async with IdlingWorld(operator_apiserver, tmp_path, ["quiet"]) as world:
        await world.until_ready()
        stop = asyncio.Event()
        busy = asyncio.create_task(world.keep_busy(stop))
        assert (await world.ask("quiet"))[0] == 200
        await world.until_idle("quiet")
        assert world.loaded == {"busy"}
        assert world.cluster.condition("LoRAAdapter", "quiet", "Ready") == ("True", "Idle")

        answers = await asyncio.gather(*(world.ask("quiet", stream=n % 2 == 0) for n in range(20)))
        assert {status for status, _ in answers} == {200}
        assert all('"quiet-' in text for _, text in answers)
        await world.until_awake("quiet")

        await world.until_idle("quiet")
        world.operator.kill()
        waiting = asyncio.create_task(world.ask("quiet"))
        quiet = f"{world.cluster.namespace}/quiet"
        await world.gateway.demands(
            lambda r: waiting.done() or r.deployments[quiet].waiting == 1, "the request is held"
        )
        assert not waiting.done(), (waiting.result(), world.said())
        assert (await world.ask("busy"))[0] == 200
        world.operator.start()
        assert (await waiting)[0] == 200
        await world.until_awake("quiet")
        await world.until(lambda: world.busy_requests > 50, "others were asked all the while")
        stop.set()
        await busy
        assert not world.failures


async def test_a_full_pool_serves_more_adapters_than_it_holds(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    """Three adapters in a pool of two places: one is loaded when it is asked for, and who was asked least goes."""
    async with IdlingWorld(operator_apiserver, tmp_path, ["one", "two"], places=2) as world:
        await world.until_ready("busy")
        stop = asyncio.Event()
        busy = asyncio.create_task(world.keep_busy(stop))
        for model in ("one", "two", "one"):
            await world.until(lambda m=model: world.condition(m) == ("True", "Idle"), f"{model} is idle")
            while (answer := await world.ask(model))[0] != 200:
                assert "full" in answer[1] or "first time" in answer[1], (answer, world.said())
                await asyncio.sleep(0.5)
            assert f'"{model}-' in answer[1]
        stop.set()
        await busy
        assert not world.failures
