"""The whole circle: nobody asks for a pool, its pods go, somebody asks and is held, pods come, he is answered."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.coldpool import BASE, ColdPool

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


async def test_from_nothing_and_back_also_while_the_operator_is_away(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    async with ColdPool(operator_apiserver, tmp_path) as world:
        for model in ("plain", "tuned"):
            assert (await world.ask(model))[0] == 200
        await world.asleep()
        told = world.cluster.status("BaseModel", BASE)
        assert (told["replicas"], told["progress"]) == ("0/0", "asleep; the next request starts its pods")
        assert world.cluster.condition("BaseModel", BASE, "Available") == ("True", "Asleep")
        assert world.cluster.condition("LoRAAdapter", "tuned", "Ready") == ("True", "Idle")

        world.starts.clear()
        before = (await world.gateway.demand()).version
        whole, streams = world.asking(50), world.asking(50, stream=True, chunks=5)
        await world.holds(100)
        assert (await world.gateway.demand()).version <= before + 3, "a hundred requests are one signal"
        await world.until(lambda: world.wanted == 1, "it wants its pod")
        assert world.ready("plain") == ("False", "Starting")
        assert world.ready("tuned") == ("True", "Idle"), "nobody asks for that"
        world.starts.set()
        answers = await asyncio.gather(*whole, *streams)
        assert {status for status, _, _ in answers} == {200}
        assert all(body.endswith(b"data: [DONE]\n\n") for _, _, body in answers[50:])
        assert len(world.upstream.received) == 102, "each was sent once"

        await world.asleep()
        world.operator.kill()
        waiting = world.asking(3, "tuned")
        await world.holds(3)
        world.operator.start()
        assert {status for status, _, _ in await asyncio.gather(*waiting)} == {200}


async def test_past_a_limit_clients_are_told_when_to_ask_again(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    """Also while nobody wakes anything: the operator is away, then the API server."""
    limits = {"holdTimeout": "2s", "maxHeld": 3}
    async with ColdPool(operator_apiserver, tmp_path, cold_start=limits) as world:
        await world.asleep()
        world.starts.clear()
        first = world.asking(3)
        await world.holds(3)
        status, after, body = await world.ask()
        assert (status, after) == (503, "5"), "no start has been seen yet"
        assert json.loads(body)["error"] == {
            "message": "Too many requests wait for this model to be loaded.",
            "type": "server_error",
            "param": "model",
            "code": "model_not_ready",
        }
        assert {status for status, _, _ in await asyncio.gather(*first)} == {503}, "pods take longer than 2 s"
        await asyncio.sleep(8)  # the start itself: what it took is what the next one is told
        world.starts.set()
        await world.until(lambda: world.ready("plain") == ("True", "Ready"), "it comes though nobody waits any more")

        await world.asleep()
        world.operator.kill()
        began = time.monotonic()
        status, after, _ = await world.ask()
        assert 2 <= time.monotonic() - began < 5
        assert (status, int(after or 0) >= 7) == (503, True), f"the last start took 10 s, 2 of them are over: {after}"

        operator_apiserver.stop()
        try:
            status, _, body = await world.ask()
            assert (status, json.loads(body)["error"]["message"]) == (503, "This model was not loaded in time.")
        finally:
            operator_apiserver.start()
        world.operator.start()
        deadline = time.monotonic() + 60
        while (answer := await world.ask())[0] != 200:
            assert time.monotonic() < deadline, (answer, world.wanted, world.ready("plain"))
