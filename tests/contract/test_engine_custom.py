"""Engines that demand no key and answer for any model, behind the front that does both: `custom`, and the presets.

The engine is the fake vLLM without a key; what it is asked for shows what the front has made of a request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.contract import envoy
from tests.contract.agents import AgentRig
from tests.contract.engines import BASE, KEY, EngineProcess, own_engine
from tests.contract.ports import free_port
from tuneyard.agent.enginetold import EngineTold
from tuneyard.planning.engines import Loading
from tuneyard.systems.envoy.front import Guarding

pytestmark = pytest.mark.envoy

OWN_NAME = "default"


class Careless:
    """A server that answers everybody, for whatever model, and remembers what it was sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.asked: list[dict[str, Any]] = []

    async def __aenter__(self) -> Careless:
        app = web.Application()
        app.router.add_get("/ready", self._ready)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _chat(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        message = {"role": "assistant", "content": "hello"}
        return web.json_response({"model": "whatever", "choices": [{"index": 0, "message": message}]})


async def call(
    url: str, path: str, body: Any = None, key: str | None = KEY, text: str | None = None
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = text if text is not None else (json.dumps(body) if body is not None else None)
    async with (
        aiohttp.ClientSession() as session,
        session.request("POST" if data else "GET", url + path, data=data, headers=headers) as response,
    ):
        said = await response.text()
        return response.status, json.loads(said) if said.startswith("{") else said


@asynccontextmanager
async def pod(engine: EngineProcess, folder: Path, told: EngineTold) -> AsyncIterator[tuple[str, AgentRig]]:
    guarding = Guarding(str(folder / "run" / "front-models"), told.health_path)
    async with (
        envoy.Front(folder, engine.port, guarding=guarding) as front,
        AgentRig(engine, folder, told=told) as rig,
    ):
        yield f"http://{front.address}", rig


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEYARD_ENGINE_KEY", KEY)


async def test_a_server_that_checks_nothing_is_asked_only_for_what_is_served(tmp_path: Path) -> None:
    told = EngineTold("custom", Loading.NEVER, "/ready", OWN_NAME)
    async with Careless() as server:
        engine = EngineProcess("fake", server.port)
        async with pod(engine, tmp_path, told) as (url, rig):
            rig.plan()
            await rig.until(lambda r: r.engine == "Ready", "the base answers, in a chat")
            server.asked.clear()
            chat = {"messages": [{"role": "user", "content": 'say "model": "x"'}]}
            status, found = await call(url, "/v1/chat/completions", {"model": BASE, **chat})
            assert (status, found["model"]) == (200, BASE), "clients read the name that they asked for"
            assert server.asked == [{"model": OWN_NAME, **chat}], "the server reads its own, and the rest as it was"
            assert await call(url, "/health") == (200, "ok")
            assert [m["id"] for m in (await call(url, "/v1/models"))[1]["data"]] == [BASE]

            server.asked.clear()
            refusals = {
                "unknown": (503, {"model": "gpt-4o", **chat}, KEY, None),
                "its own name": (503, {"model": OWN_NAME, **chat}, KEY, None),
                "no key": (401, {"model": BASE, **chat}, None, None),
                "wrong key": (401, {"model": BASE, **chat}, KEY[:-1] + "x", None),
                "no model": (400, chat, KEY, None),
                "two models": (400, None, KEY, f'{{"model": "{BASE}", "model": "{OWN_NAME}"}}'),
                "escaped": (400, None, KEY, f'{{"mod\\u0065l": "x", "model": "{BASE}"}}'),
                "no object": (400, None, KEY, f'["model", "{BASE}"]'),
                "more behind": (400, None, KEY, f'{{"model": "{BASE}"}} {{"model": "{OWN_NAME}"}}'),
                "no name": (400, {"model": [BASE]}, KEY, None),
            }
            found_statuses = {
                name: (await call(url, "/v1/chat/completions", body, key, text))[0]
                for name, (_, body, key, text) in refusals.items()
            }
            assert found_statuses == {name: status for name, (status, *_) in refusals.items()}
            assert server.asked == [], "none of them reached it"


async def test_before_the_agent_has_spoken_nothing_is_served(tmp_path: Path) -> None:
    async with Careless() as server, AsyncExitStack() as stack:
        guarding = Guarding(str(tmp_path / "front-models"), "/ready")
        front = await stack.enter_async_context(envoy.Front(tmp_path, server.port, guarding=guarding))
        status, _ = await call(f"http://{front.address}", "/v1/chat/completions", {"model": BASE, "messages": []})
        assert (status, server.asked) == (503, [])


async def test_an_engine_without_metrics_is_no_broken_target(tmp_path: Path) -> None:
    """Whoever scrapes all pods would find it down for ever."""
    async with Careless() as server:
        found = []
        for name, metrics in (("with", True), ("without", False)):
            guarding = Guarding(str(tmp_path / "front-models"), "/ready", metrics)
            async with envoy.Front(tmp_path, server.port, name, guarding=guarding) as front:
                found.append(await call(f"http://{front.address}", "/metrics", key=None))
    assert [status for status, _ in found] == [404, 200]
    assert not list(text_string_to_metric_families(found[1][1])), "a page that is read, and empty"


async def test_a_custom_engine_with_vllm_s_loading_serves_adapters(tmp_path: Path) -> None:
    engine = own_engine("fake")
    engine.key = ""
    await asyncio.to_thread(engine.start)
    engine.key = KEY
    try:
        async with pod(engine, tmp_path, EngineTold("custom", Loading.AT_RUN_TIME, "/health", BASE)) as (url, rig):
            rig.plan(rig.has("a"))
            name = str((await rig.until_loaded("a"))["a"].engine_name)
            for model in (BASE, name):
                status, found = await call(url, "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
                assert (status, found["model"]) == (200, model)
            assert {m["id"] for m in (await call(url, "/v1/models"))[1]["data"]} == {BASE, name}
            assert (await call(url, "/v1/completions", {"model": name, "prompt": "x"}, key=None))[0] == 401
            rig.plan()
            await rig.until(lambda r: not r.adapters, "it leaves the plan")
            async with asyncio.timeout(30):
                await _refused(url, name)
    finally:
        engine.kill()


async def _refused(url: str, name: str) -> None:
    while (await call(url, "/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1}))[0] != 503:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
