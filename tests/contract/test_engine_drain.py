"""A pod leaves in order: agent, the real front and an engine; streams end, nothing new gets in, a restart undoes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.contract import envoy
from tests.contract.agents import AgentRig
from tests.contract.engines import BASE, KEY, EngineProcess, own_engine
from tests.contract.test_engine_client import eventually, stream
from tuneyard.agent.draining import QUIET_SECONDS
from tuneyard.agent.front import Front, FrontError, Traffic
from tuneyard.systems.envoy.front import DRAINING_KEY

pytestmark = pytest.mark.envoy


class Pod:
    """An engine, its front and its agent."""

    def __init__(self, engine: EngineProcess, front: envoy.Front, rig: AgentRig) -> None:
        self.engine = engine
        self.url = f"http://{front.address}"
        self.rig = rig

    async def drain(self) -> bool:
        """What the engine's preStop hook does."""
        url = f"http://127.0.0.1:{self.rig.settings.port}/drain"
        async with aiohttp.ClientSession() as session, session.post(url) as response:
            assert response.status == 200
            return bool((await response.json())["idle"])

    async def ask(self) -> tuple[int, str | None]:
        """Status of a request through the front, and why it was refused."""
        body = {"model": BASE, "prompt": "x", "max_tokens": 1}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/completions", json=body, headers=headers) as response,
        ):
            return response.status, response.headers.get("x-tuneyard-draining")


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    engine = own_engine("fake")
    engine.start()
    try:
        async with envoy.Front(tmp_path, engine.port) as front, AgentRig(engine, tmp_path) as rig:
            rig.plan(rig.has("a"))
            await rig.until_loaded("a")
            yield Pod(engine, front, rig)
    finally:
        engine.kill()


async def test_a_running_stream_ends_before_the_pod_is_drained(pod: Pod) -> None:
    begun = asyncio.Event()
    running = asyncio.create_task(stream(pod.url, BASE, 1000, begun))
    await begun.wait()
    draining = asyncio.create_task(pod.drain())
    await pod.rig.until(lambda r: r.engine == "Draining", "gateways are told at once", within=1)
    assert (await pod.ask())[0] == 200, "what comes before gateways know is served"
    await eventually(lambda: _closed(pod), "the front is closed once it is quiet")
    assert await pod.ask() == (503, "1"), "new requests go to other pods"
    assert not running.done()
    assert not draining.done()
    again = asyncio.create_task(pod.drain())
    events = await running
    assert events[-1] == "[DONE]"
    assert await draining
    assert await again, "a second call joins the first"


async def _closed(pod: Pod) -> bool:
    connector = aiohttp.UnixConnector(str(pod.rig.settings.front_admin))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://front/runtime") as response:
        values = (await response.json(content_type=None))["entries"]
    return bool(values.get(DRAINING_KEY, {}).get("final_value") == "100")


async def test_an_idle_pod_is_drained_when_it_has_been_quiet(pod: Pod) -> None:
    began = time.monotonic()
    assert await pod.drain()
    assert QUIET_SECONDS <= time.monotonic() - began < QUIET_SECONDS + 2
    assert await pod.ask() == (503, "1")


async def test_an_engine_that_dies_while_draining_holds_nobody(pod: Pod) -> None:
    begun = asyncio.Event()
    running = asyncio.create_task(stream(pod.url, BASE, 1000, begun))
    await begun.wait()
    draining = asyncio.create_task(pod.drain())
    await pod.rig.until(lambda r: r.engine == "Draining", "it drains")
    pod.engine.kill()
    assert not await asyncio.wait_for(draining, 10)
    with pytest.raises((aiohttp.ClientError, AssertionError)):
        await running


async def test_an_engine_that_was_restarted_alone_serves_again(pod: Pod) -> None:
    """The kubelet runs the same hook when it restarts an engine that fails its liveness probe."""
    assert await pod.drain()
    assert await pod.ask() == (503, "1")
    await asyncio.to_thread(pod.engine.kill)
    await pod.rig.until(lambda r: r.engine == "Starting", "the engine is gone")
    await asyncio.to_thread(pod.engine.start)
    await pod.rig.until_loaded("a")
    await eventually(lambda: _served(pod), "the front takes requests again")


async def _served(pod: Pod) -> bool:
    return (await pod.ask())[0] == 200


async def test_an_agent_that_restarts_while_draining_goes_on(pod: Pod) -> None:
    assert await pod.drain()
    await pod.rig.restart()
    before = len(pod.rig.published)
    await pod.rig.until(lambda _: len(pod.rig.published) > before, "it publishes again")
    assert pod.rig.report.engine == "Draining"
    assert await pod.ask() == (503, "1")
    assert await pod.drain()


async def test_the_front_s_figures(tmp_path: Path) -> None:
    engine = own_engine("fake")
    engine.start()
    try:
        async with envoy.Front(tmp_path, engine.port) as front:
            admin = Front(tmp_path / "front-admin.sock")
            assert await admin.traffic() == Traffic(0, 0)
            begun = asyncio.Event()
            running = asyncio.create_task(stream(f"http://{front.address}", BASE, 100, begun))
            await begun.wait()
            assert await admin.traffic() == Traffic(1, 1)
            await running
            assert await admin.traffic() == Traffic(0, 1)
        with pytest.raises(FrontError):
            await Front(tmp_path / "nobody.sock").traffic()
    finally:
        engine.kill()
