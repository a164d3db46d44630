"""The real vLLM divided, or twice, in one pod: all of it has an adapter, and all of it answers.

Marked slow: each is two engines on a machine without a GPU.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.engines import BASE, KEY, EngineProcess, adapters, own_engine
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.settingchecks import unsupported_setting
from tuneyard.planning.vllmflags import setting_flags
from tuneyard.systems.engines.base import EngineRefusedError
from tuneyard.systems.engines.loads import counts_in
from tuneyard.systems.engines.vllm import Vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

KNOWN = {"engineVersion": "0.32", "engineBuild": "CPU"}


@contextmanager
def running(**block: Any) -> Iterator[EngineProcess]:
    serving = resolved_serving(ServingSpec.from_dict({**KNOWN, **block}))
    assert unsupported_setting(serving, "") is None
    tensor = ("--tensor-parallel-size", str(serving.tensor_parallel_size))
    engine = own_engine("vllm", *tensor, *setting_flags(serving, "/artifacts"))
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


def of_each_core(engine: EngineProcess, series: str) -> dict[str, float]:
    """A counter's value by engine core."""
    found = re.findall(rf'^{series}\{{[^}}]*\bengine="(\d+)"[^}}]*\}} ([0-9.e+]+)$', engine.asked("/metrics"), re.M)
    counts: dict[str, float] = {}
    for core, value in found:
        counts[core] = counts.get(core, 0.0) + float(value)
    return counts


async def test_copies_of_the_model_behind_one_address_all_have_the_adapter() -> None:
    with running(dataParallelSize=2) as engine:
        async with Vllm(engine.url, KEY) as client:
            assert await client.models() == {BASE}
            await client.load("adapter-a", str(adapters() / "adapter-a"))
            alone = {await asyncio.to_thread(engine.completed, "a") for _ in range(4)}
            tuned = {await asyncio.to_thread(engine.completed, "a", "adapter-a") for _ in range(4)}
            answered = of_each_core(engine, "vllm:request_success_total")
            assert (len(alone), tuned) == (1, {"a" * 32})
            assert sum(answered.values()) == 8
            assert sorted(answered) == ["0", "1"]
            assert all(answered.values()), f"every copy was asked: {answered}"

            long = asyncio.create_task(asyncio.to_thread(engine.completed, "a", "adapter-a", 1000))
            async with asyncio.timeout(60):
                await _busy(client, frozenset({"adapter-a"}))
            others = await asyncio.gather(*(asyncio.to_thread(engine.completed, "b") for _ in range(3)))
            busy, counts = await client.busy_adapters(), counts_in(engine.asked("/metrics"))
            assert not long.done(), "it is still being answered while the others were"
            assert busy == frozenset({"adapter-a"}), "whichever copy has said something last"
            assert counts is not None
            assert (counts.running, len(set(others))) == (1, 1)
            await client.unload("adapter-a")
            assert await client.models() == {BASE}
            assert await long == "a" * 1000
            with pytest.raises(EngineRefusedError):
                await client.ask("adapter-a")


async def test_adapters_are_divided_like_the_layers_when_fully_sharded() -> None:
    with running(tensorParallelSize=2, lora={"fullySharded": True, "maxRank": 16}) as engine:
        async with Vllm(engine.url, KEY) as client:
            alone = await asyncio.to_thread(engine.completed, "a", BASE, 8)
            for letter in ("a", "b"):
                await client.load(f"adapter-{letter}", str(adapters() / f"adapter-{letter}"))
            for letter in ("a", "b"):
                assert await asyncio.to_thread(engine.completed, "a", f"adapter-{letter}", 8) == letter * 8
            assert await asyncio.to_thread(engine.completed, "a", BASE, 8) == alone


async def _busy(client: Vllm, names: frozenset[str]) -> None:
    while await client.busy_adapters() != names:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
