"""What Tuneyard relies on of an engine, told by the fake and by the real vLLM alike."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from models import bad
from models.breaking import MARKER
from monitoring import outside
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
from tuneyard.systems.engines.base import EngineError, EngineGoneError, EngineRefusedError
from tuneyard.systems.engines.vllm import Vllm

A, B = "adapter-a", "adapter-b"
HEADERS = {"Authorization": f"Bearer {KEY}"}

SWALLOWED = {
    *("nan", "nan-one-value", "nan-float32", "nan-float16", "inf-one-tensor", "negative-inf", "huge"),
    "huge-when-scaled",
    *("alpha-zero", "config-rank-higher", "config-rank-lower", "wrong-shapes", "layer-not-there", "missing-prefix"),
    *("wrong-prefix", "added-tokens"),
    *("int8", "unknown-modules-in-config", "escaping-symlink"),
}
"""Broken adapters that an engine loads with 200."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineProcess:
    return shared_engine(request.param)


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[Vllm]:
    async with Vllm(engine.url, KEY) as client:
        yield client
        for name in await client.models() - {BASE}:
            await client.unload(name)


async def call(
    engine: EngineProcess, method: str, path: str, body: Any = None, key: str | None = KEY
) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, engine.url + path, json=body, headers=headers) as response,
    ):
        return response.status, await response.text()


def stream_body(model: str, tokens: int, **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"story {time.time()}"}]
    return {"model": model, "messages": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True, **more}


async def stream(url: str, model: str, tokens: int, started: asyncio.Event | None = None, **more: Any) -> list[Any]:
    """The events of a streamed answer, [DONE] included; `started` is set with the first token."""
    events: list[Any] = []
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            url + "/v1/chat/completions", json=stream_body(model, tokens, **more), headers=HEADERS
        ) as response,
    ):
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: "):
                events.append(line[6:].strip().decode())
                if started is not None:
                    started.set()
    return [json.loads(e) if e != "[DONE]" else e for e in events]


async def eventually(holds: Callable[[], Any], what: str, within: float = 30.0) -> None:
    until = time.monotonic() + within
    while not (await result if asyncio.iscoroutine(result := holds()) else result):
        assert time.monotonic() < until, f"not within {within} s: {what}"
        await asyncio.sleep(0.05)


async def test_the_base_alone_is_listed_and_answers(client: Vllm) -> None:
    assert await client.healthy()
    assert await client.models() == {BASE}
    first, again = await client.ask(BASE), await client.ask(BASE)
    assert first.model == BASE
    assert first.logprobs
    assert first.equals(again)
    assert not first.is_broken(again)


async def test_adapters_come_answer_and_go(client: Vllm) -> None:
    base = await client.ask(BASE)
    for name in (A, B):
        await client.load(name, str(adapters() / name))
    assert await client.models() == {BASE, A, B}
    first, second = await client.ask(A), await client.ask(B)
    assert (first.model, second.model) == (A, B)
    assert not first.equals(base)
    assert not first.equals(second)
    await client.unload(A)
    assert await client.models() == {BASE, B}
    with pytest.raises(EngineRefusedError) as caught:
        await client.ask(A)
    assert caught.value.status == 404
    assert (await client.ask(BASE)).equals(base)


async def test_loading_and_unloading_twice_is_fine(client: Vllm) -> None:
    for _ in range(2):
        await client.load(A, str(adapters() / A))
    for _ in range(2):
        await client.unload(A)
    assert await client.models() == {BASE}


async def test_loading_nothing_and_over_the_base_is_refused(engine: EngineProcess, client: Vllm) -> None:
    with pytest.raises(EngineRefusedError) as caught:
        await client.load("x", "/nonexistent/folder")
    assert caught.value.status == 404
    body = {"lora_name": BASE, "lora_path": str(adapters() / A)}
    assert (await call(engine, "POST", "/v1/load_lora_adapter", body))[0] == 400
    assert await client.models() == {BASE}


@pytest.mark.parametrize("case", bad.expected_reasons())
async def test_what_an_engine_refuses_and_what_it_swallows(client: Vllm, case: str) -> None:
    folder = adapters() / "bad" / case
    if case in SWALLOWED:
        await client.load(case, str(folder))
        assert case in await client.models()
    else:
        with pytest.raises(EngineRefusedError):
            await client.load(case, str(folder))
        assert await client.models() == {BASE}
    assert not (folder / MARKER).exists(), "no pickle is run"
    assert await client.healthy()


@pytest.mark.parametrize("case", ["alpha-zero", "wrong-prefix"])
async def test_a_silent_fall_back_shows_as_the_base_s_answer(client: Vllm, case: str) -> None:
    await client.load(case, str(adapters() / "bad" / case))
    for tokens in (1, 8):
        assert (await client.ask(case, tokens)).equals(await client.ask(BASE, tokens))


async def test_names_without_peft_s_prefix_are_no_fall_back(client: Vllm) -> None:
    await client.load("missing-prefix", str(adapters() / "bad" / "missing-prefix"))
    assert not (await client.ask("missing-prefix", 8)).equals(await client.ask(BASE, 8))


async def test_the_key_guards_v1_alone(engine: EngineProcess, client: Vllm) -> None:
    for key in (None, "wrong"):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/completions")):
            assert (await call(engine, method, path, {}, key))[0] == 401
        assert (await call(engine, "GET", "/health", key=key))[0] == 200
        assert (await call(engine, "GET", "/metrics", key=key))[0] == 200
    # why the engine must not be reachable from outside its pod
    status, _ = await call(engine, "POST", "/adapters", {"name": "smuggled", "src": str(adapters() / A)}, None)
    assert status == 200
    assert "smuggled" in await client.models()
    assert (await call(engine, "DELETE", "/adapters/smuggled", key=None))[0] == 200
    assert await client.models() == {BASE}


async def test_errors_come_in_openai_s_shape(engine: EngineProcess) -> None:
    status, text = await call(engine, "POST", "/v1/chat/completions", {"model": "nope", "messages": []})
    assert status in (400, 404)
    assert json.loads(text)["error"]["message"]
    status, text = await call(engine, "POST", "/v1/completions", {"model": "nope", "prompt": "x"})
    assert (status, "nope" in json.loads(text)["error"]["message"]) == (404, True)
    status, text = await call(engine, "POST", "/v1/completions", {"model": BASE, "prompt": "x", "max_tokens": 99999})
    assert (status, bool(json.loads(text)["error"]["message"])) == (400, True)


async def test_a_stream_is_token_by_token_with_usage_for_who_asks(engine: EngineProcess) -> None:
    plain = await stream(engine.url, BASE, 5)
    assert plain[-1] == "[DONE]"
    assert {e["model"] for e in plain[:-1]} == {BASE}
    assert plain[-2]["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in e or e["usage"] is None for e in plain[:-1])
    asked = await stream(engine.url, BASE, 5, stream_options={"include_usage": True})
    assert (asked[-2]["choices"], asked[-2]["usage"]["completion_tokens"]) == ([], 5)


async def test_a_running_stream_outlives_its_adapter_s_name(engine: EngineProcess, client: Vllm) -> None:
    await client.load(A, str(adapters() / A))
    started = asyncio.Event()
    task = asyncio.create_task(stream(engine.url, A, 200, started))
    await started.wait()
    await eventually(lambda: _is_busy(client, A), "the engine tells who generates")
    await client.unload(A)
    assert await client.models() == {BASE}
    assert await client.busy_adapters() == frozenset({A})
    with pytest.raises(EngineRefusedError):
        await client.ask(A)
    events = await task
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    await eventually(lambda: _is_idle(client), "nobody generates any more")


async def _is_busy(client: Vllm, name: str) -> bool:
    return name in (await client.busy_adapters() or ())


async def _is_unclear(client: Vllm) -> bool:
    return await client.busy_adapters() is None


async def _is_idle(client: Vllm) -> bool:
    return await client.busy_adapters() == frozenset()


async def test_an_adapter_without_a_slot_waits_and_nobody_behind_it(engine: EngineProcess, client: Vllm) -> None:
    names = [A, B, "third"]
    for name in names:
        await client.load(name, str(adapters() / (A if name == "third" else name)))
    started = [asyncio.Event(), asyncio.Event()]
    streams = [asyncio.create_task(stream(engine.url, n, 300, s)) for n, s in zip((A, B), started, strict=True)]
    for event in started:
        await event.wait()
    waits = asyncio.create_task(client.ask("third"))
    await eventually(lambda: _is_unclear(client), "the engine tells that somebody waits")
    assert (await client.ask(BASE)).model == BASE
    assert not waits.done(), "the base is answered while the third still waits"
    assert not all(s.done() for s in streams)
    assert (await waits).model == "third"
    await asyncio.gather(*streams)


async def test_an_engine_that_is_not_there_is_gone(client: Vllm) -> None:
    async with Vllm("http://127.0.0.1:9", KEY) as nobody:
        with pytest.raises(EngineGoneError):
            await nobody.healthy()


@contextlib.asynccontextmanager
async def started(engine: EngineProcess) -> AsyncIterator[Vllm]:
    await asyncio.to_thread(engine.start)
    try:
        async with Vllm(engine.url, KEY) as client:
            yield client
    finally:
        await asyncio.to_thread(engine.kill)


@pytest.mark.parametrize("kind", OWN_ENGINES)
async def test_nan_is_told_by_the_answer(kind: str) -> None:
    async with started(own_engine(kind)) as client:
        reference = await client.ask(BASE)
        await client.load("nan", str(adapters() / "bad" / "nan"))
        assert not (await client.ask(BASE)).is_broken(reference), "loading alone harms nobody"
        assert (await client.ask("nan")).is_broken(reference)
        assert await client.healthy(), "and the engine does not notice"


@pytest.mark.parametrize("kind", OWN_ENGINES)
async def test_an_adapter_s_missing_folder_kills_the_engine(kind: str, tmp_path: Path) -> None:
    engine = own_engine(kind, "--max-loras", "1", max_cpu_loras=1)
    async with started(engine) as client:
        for name in (A, B):
            shutil.copytree(adapters() / name, tmp_path / name)
            await client.load(name, str(tmp_path / name))
        await client.ask(B)
        shutil.rmtree(tmp_path / A)
        with pytest.raises(EngineError):
            await client.ask(A)
        await eventually(lambda: _not_healthy(client), "the engine has died")


async def _not_healthy(client: Vllm) -> bool:
    try:
        return not await client.healthy()
    except EngineGoneError:
        return True


@pytest.mark.parametrize("kind", OWN_ENGINES)
async def test_a_terminated_engine_ends_its_streams_and_takes_nothing_new(kind: str) -> None:
    engine = own_engine(kind, "--shutdown-timeout", "30")
    async with started(engine) as client:
        await client.ask(BASE)
        begun = asyncio.Event()
        running = asyncio.create_task(stream(engine.url, BASE, 300, begun))
        await begun.wait()
        engine.terminate()
        await eventually(lambda: _refuses(engine), "new requests are refused")
        assert not running.done()
        events = await running
        assert events[-1] == "[DONE]"
        assert engine.process is not None
        await asyncio.to_thread(engine.process.wait, 60)


async def _refuses(engine: EngineProcess) -> bool:
    status, text = await call(engine, "POST", "/v1/completions", {"model": BASE, "prompt": "x", "max_tokens": 1})
    assert status in (200, 500)
    return status == 500 and "cannot schedule new futures after shutdown" in text


async def test_what_dashboards_draw_of_an_engine_is_on_its_page(engine: EngineProcess) -> None:
    status, page = await call(engine, "GET", "/metrics")
    assert status == 200
    assert {line.partition("{")[0] for line in page.splitlines()} >= outside.VLLM
