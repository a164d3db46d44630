"""The agent beside an engine, fake and real: what is right serves, what is wrong never gets there, all comes back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from models import bad
from models.breaking import MARKER
from tests.contract.agents import AgentRig, loaded, pinned
from tests.contract.engines import (
    BASE,
    ENGINES,
    KEY,
    OWN_ENGINES,
    EngineProcess,
    adapters,
    own_engine,
    shared_engine,
)
from tests.contract.envoy import Front
from tests.contract.test_engine_client import eventually, stream
from tuneyard.api.documents import PodReport
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.reasons import Reason
from tuneyard.planning.agentstate import FIRST_RETRY, State
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.engines.base import EngineRefusedError
from tuneyard.systems.engines.vllm import Vllm

RELOAD_SECONDS = 5.0
"""Adapters are back this long after an engine is healthy again, at the latest."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineProcess:
    return shared_engine(request.param)


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[Vllm]:
    async with Vllm(engine.url, KEY) as client:
        yield client
        for name in await client.models() - {BASE}:
            await client.unload(name)


async def test_an_adapter_is_proven_and_published(engine: EngineProcess, client: Vllm, tmp_path: Path) -> None:
    async with AgentRig(engine, tmp_path) as rig:
        rig.plan()
        assert (await rig.until(lambda r: r.engine == "Ready", "the base answers")).adapters == {}
        began = time.monotonic()
        rig.plan(rig.has("a"))
        told = (await rig.until_loaded("a"))["a"]
        assert time.monotonic() - began < 10
        digest = digest_of(adapters() / "adapter-a").digest
        assert (told.digest, told.engine_name) == (digest, engine_adapter_name("a", digest))
        assert (told.rank, told.warning, told.reason) == (8, None, None)
        assert (await client.ask(str(told.engine_name))).model == told.engine_name
        assert rig.report.address == rig.settings.address
        assert rig.settings.engine_key not in (rig.settings.run / "agent.json").read_text()


async def test_what_is_broken_never_reaches_the_engine(engine: EngineProcess, client: Vllm, tmp_path: Path) -> None:
    async with AgentRig(engine, tmp_path, max_cpu_loras=100) as rig:
        good = rig.has("good")
        rig.plan(good)
        name = str((await rig.until_loaded("good"))["good"].engine_name)
        before = [await client.ask(model, 8) for model in (BASE, name)]

        expected = bad.expected_reasons()
        broken = {case: rig.has(case, adapters() / "bad" / case) for case in expected}
        rig.plan(good, *broken.values())
        offered = await rig.until(
            lambda r: all(c in r.adapters and r.adapters[c].state == "Failed" for c in expected), "each was refused"
        )
        assert {case: offered.adapters[case].reason for case in expected} == expected
        assert all(offered.adapters[case].message for case in expected)
        assert loaded(offered) == {"good"}
        assert await client.models() == {BASE, name}
        assert [p.name for p in rig.settings.adapters.iterdir() if not p.name.startswith(".")] == [name]
        assert not list(rig.settings.volumes.rglob(MARKER)), "no pickle was run"

        after = [await client.ask(model, 8) for model in (BASE, name)]
        assert all(a.equals(b) for a, b in zip(after, before, strict=True)), "the neighbours answer as before"
        assert await client.healthy()


async def test_a_leaving_adapter_is_unpublished_first_and_deleted_last(
    engine: EngineProcess, client: Vllm, tmp_path: Path
) -> None:
    async with AgentRig(engine, tmp_path) as rig:
        stays, goes = rig.has("stays"), rig.has("goes", adapters() / "adapter-b")
        rig.plan(stays, goes)
        name = str((await rig.until_loaded("stays", "goes"))["goes"].engine_name)
        folder = rig.settings.adapters / name
        begun = asyncio.Event()
        running = asyncio.create_task(stream(engine.url, name, 400, begun))
        await begun.wait()
        rig.plan(stays)
        await rig.until_loaded("stays")
        unpublished = time.monotonic()
        assert name in await client.models(), "gateways may still send requests"
        await eventually(lambda: _without(client, name), "it is unloaded")
        assert time.monotonic() - unpublished > 2.5
        while not running.done():
            assert folder.is_dir(), "a stream still runs with it"
            await asyncio.sleep(0.05)
        assert (await running)[-1] == "[DONE]"
        await eventually(lambda: not folder.exists(), "its folder is deleted")
        assert loaded(rig.report) == {"stays"}


async def _without(client: Vllm, name: str) -> bool:
    return name not in await client.models()


async def test_an_adapter_that_changes_nothing_is_served_with_a_warning(
    engine: EngineProcess, client: Vllm, tmp_path: Path
) -> None:
    folder = tmp_path / "zeros"
    _with_zeros(adapters() / "adapter-a", folder)
    async with AgentRig(engine, tmp_path) as rig:
        rig.plan(rig.has("zeros", folder))
        assert (await rig.until_loaded("zeros"))["zeros"].warning == Reason.ANSWERS_LIKE_BASE


def _with_zeros(good: Path, folder: Path) -> None:
    """A new adapter as training begins with it: every B is 0."""
    from models.tensors import Tensor, read_safetensors, write_safetensors

    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    tensors = read_safetensors(good / "adapter_model.safetensors")
    zeros = {n: Tensor(t.dtype, t.shape, bytes(len(t.data))) if "lora_B" in n else t for n, t in tensors.items()}
    write_safetensors(folder / "adapter_model.safetensors", zeros)


async def test_a_failed_adapter_is_tried_again_and_at_once_when_the_plan_changes(
    engine: EngineProcess, client: Vllm, tmp_path: Path
) -> None:
    async with AgentRig(engine, tmp_path) as rig:
        absent = rig.has("late")
        folder = rig.settings.volumes / "models" / "late"
        folder.rename(folder.with_name("elsewhere"))
        rig.plan(absent)
        found = await rig.until(lambda r: r.adapters["late"].state == "Failed", "it is missing")
        assert found.adapters["late"].reason == Reason.ARTIFACT_NOT_FOUND
        folder.with_name("elsewhere").rename(folder)
        await rig.until_loaded("late", within=15)
        wrong = absent.model_copy(update={"digest": "sha256:" + "0" * 64})
        rig.plan(wrong)
        found = await rig.until(lambda r: r.adapters["late"].state == "Failed", "other bytes are pinned")
        assert found.adapters["late"].reason == Reason.DIGEST_MISMATCH
        rig.plan(pinned(absent, found.adapters["late"]))
        await rig.until_loaded("late", within=5)


async def test_a_restarted_agent_takes_nothing_back(engine: EngineProcess, client: Vllm, tmp_path: Path) -> None:
    async with AgentRig(engine, tmp_path) as rig:
        rig.plan(rig.has("a"), rig.has("b", adapters() / "adapter-b"))
        await rig.until_loaded("a", "b")
        before = len(rig.published)
        await rig.restart()  # and nobody tells it a plan: the API server is away
        await rig.until(lambda _: len(rig.published) > before, "it publishes again")
        rig.plan(rig.has("a"))
        await rig.until_loaded("a")
        for _, report in rig.published[before:]:
            assert "a" in loaded(report)
            assert "b" in loaded(report) or "b" not in report.adapters


async def test_the_agent_works_while_nobody_can_read_its_reports(
    engine: EngineProcess, client: Vllm, tmp_path: Path
) -> None:
    async with AgentRig(engine, tmp_path) as rig:
        rig.plan(rig.has("a"))
        name = str((await rig.until_loaded("a"))["a"].engine_name)
        rig.api_there.clear()
        await client.unload(name)
        await eventually(lambda: _with(client, name), "it loads again what the engine has lost")
        rig.plan()
        await asyncio.sleep(4)
        assert name in await client.models(), "nothing is unloaded that gateways may still use"
        rig.api_there.set()
        await eventually(lambda: _without(client, name), "it is unloaded once its report can be read")


async def _with(client: Vllm, name: str) -> bool:
    return name in await client.models()


async def test_loopback_tells_how_it_is(engine: EngineProcess, client: Vllm, tmp_path: Path) -> None:
    async with AgentRig(engine, tmp_path) as rig, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{rig.settings.port}"
        async with session.get(f"{base}/healthz") as response:
            assert response.status == 200
        rig.plan(rig.has("a"))
        await rig.until_loaded("a")
        async with session.get(f"{base}/report") as response:
            assert json.loads(await response.text()) == rig.report.to_dict()


async def test_an_adapter_that_loads_but_cannot_generate_is_never_offered(tmp_path: Path) -> None:
    engine = own_engine("fake", "--mute", "mute-")
    await asyncio.to_thread(engine.start)
    try:
        async with AgentRig(engine, tmp_path) as rig, Vllm(engine.url, KEY) as client:
            good = rig.has("good")
            rig.plan(good)
            name = str((await rig.until_loaded("good"))["good"].engine_name)
            rig.plan(good, rig.has("mute", adapters() / "adapter-b"))
            first = asyncio.create_task(attempted(rig, "mute", 1))
            second = asyncio.create_task(attempted(rig, "mute", 2))
            while not second.done():
                assert (await client.ask(name)).model == name, "its neighbour answers"
            assert await second - await first > FIRST_RETRY / 2, "not at once"
            told = rig.report.adapters["mute"]
            assert (told.state, told.reason) == ("Failed", Reason.CANNOT_GENERATE)
            assert "illegal instruction" in str(told.message)
            assert told.engine_name == engine_adapter_name("mute", digest_of(adapters() / "adapter-b").digest)
            assert not any("mute" in loaded(report) for _, report in rig.published)
            await eventually(lambda: _without(client, str(told.engine_name)), "it is taken out of the engine")
            assert loaded(rig.report) == {"good"}
    finally:
        await asyncio.to_thread(engine.kill)


async def test_an_adapter_for_which_the_base_answers_is_never_offered(tmp_path: Path) -> None:
    engine = own_engine("fake", "--forgetful", "lost-")
    await asyncio.to_thread(engine.start)
    try:
        async with AgentRig(engine, tmp_path) as rig, Vllm(engine.url, KEY) as client:
            rig.plan(rig.has("good"), rig.has("lost", adapters() / "adapter-b"))
            told = (await rig.until(lambda r: "lost" in failed(r) and "good" in loaded(r), "it is told")).adapters[
                "lost"
            ]
            assert (told.reason, told.message) == (Reason.CANNOT_GENERATE, f"the engine answered as {BASE}")
            assert not any("lost" in loaded(report) for _, report in rig.published)
            await eventually(lambda: _without(client, str(told.engine_name)), "it is taken out of the engine")
    finally:
        await asyncio.to_thread(engine.kill)


def failed(report: PodReport) -> set[str]:
    """Names of the adapters that a report tells a failure of."""
    return {name for name, told in report.adapters.items() if told.state == "Failed"}


async def attempted(rig: AgentRig, name: str, attempts: int) -> float:
    """When an adapter had failed that many times."""

    def failed(state: State) -> bool:
        return name in state.failures and state.failures[name].attempts >= attempts

    async with asyncio.timeout(30):
        await rig.agent.knowledge.until(failed)
    return time.monotonic()


@pytest.mark.parametrize("kind", OWN_ENGINES)
async def test_a_killed_engine_gets_its_adapters_back(kind: str, tmp_path: Path) -> None:
    engine = own_engine(kind)
    await asyncio.to_thread(engine.start)
    try:
        async with AgentRig(engine, tmp_path) as rig:
            names = [f"a{i}" for i in range(10)]
            rig.plan(*map(rig.has, names))
            await rig.until_loaded(*names)
            killed = time.monotonic()
            await asyncio.to_thread(engine.kill)
            await rig.until(lambda r: r.engine == "Starting" and not loaded(r), "it is unpublished", within=2)
            assert rig.published[-1][0] - killed < 1.5
            await asyncio.to_thread(engine.start)
            healthy = time.monotonic()
            await rig.until_loaded(*names)
            print(f"{kind}: {len(names)} adapters back {time.monotonic() - healthy:.2f} s after healthy")
            assert kind == "vllm" or time.monotonic() - healthy < RELOAD_SECONDS
    finally:
        await asyncio.to_thread(engine.kill)


async def test_an_engine_that_computes_nan_is_found_out(tmp_path: Path) -> None:
    """The file check cannot be passed with NaN; this is what happens if something ever gets by it."""
    engine = own_engine("fake")
    await asyncio.to_thread(engine.start)
    try:
        async with (
            Front(tmp_path, int(engine.url.rpartition(":")[2])) as front,
            AgentRig(engine, tmp_path) as rig,
            Vllm(engine.url, KEY) as client,
        ):
            rig.plan(rig.has("good"))
            await rig.until_loaded("good")
            await client.load("smuggled", str(adapters() / "bad" / "nan"))
            await client.ask("smuggled")
            rig.plan(rig.has("good"), rig.has("next", adapters() / "adapter-b"))
            found = await rig.until(lambda r: r.engine == "Starting", "the next probe finds it")
            assert loaded(found) == set()
            assert found.adapters["next"].state == "Loading", "it is not to blame"
            assert await client.healthy(), "which its health does not say"
            await until_health(front, 503)  # so the kubelet restarts it
            rig.published.clear()
            await rig.restart()
            await rig.until(lambda _: True, "another agent publishes")
            assert rig.published[0][1].engine == "Starting", "and knows it at once"
            await until_health(front, 503)
            await asyncio.to_thread(engine.kill)
            await asyncio.to_thread(engine.start)
            await rig.until(lambda r: loaded(r) == {"good", "next"}, "another engine is well")
            await until_health(front, 200)
            with pytest.raises(EngineRefusedError):
                await client.ask("smuggled")
    finally:
        await asyncio.to_thread(engine.kill)


async def until_health(front: Front, status: int) -> None:
    """Wait until the pod's health check says this."""
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://{front.address}/health") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.05)


async def test_an_agent_with_a_bug_ends_instead_of_limping(tmp_path: Path) -> None:
    def broken(_: PodReport) -> None:
        raise ZeroDivisionError

    rig = AgentRig(own_engine("fake"), tmp_path)
    rig.on_report = broken
    with pytest.raises(ExceptionGroup) as caught:
        async with rig:
            rig.plan()
            async with asyncio.timeout(20):
                await asyncio.Event().wait()
    assert caught.group_contains(ZeroDivisionError)
