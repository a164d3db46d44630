"""What gateways and the operator rely on of every engine, told through a pod's front with an agent beside the engine.

The same suite for the fakes and for the real vLLM, llama.cpp and Ollama: names, refusals, adapters that can be heard,
usage in streams, and that a pod is drained before its engine begins anew for an adapter. Ollama has no adapters.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract import envoy
from tests.contract.agents import AgentRig
from tests.contract.engines import BASE, KEY, EngineProcess, adapters, own_engine
from tests.contract.llamaservers import llama_process, random_adapter
from tests.contract.ollamas import ollama_process
from tests.contract.test_engine_client import eventually
from tuneyard.agent.enginetold import VLLM, EngineTold, engine_from
from tuneyard.agent.verify import guarding_of
from tuneyard.api.documents import PlannedAdapter, PodReport, PoolPlan
from tuneyard.api.reasons import Reason
from tuneyard.planning.engines import Loading
from tuneyard.systems.engines import llamacpp

pytestmark = pytest.mark.envoy

REAL = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
LLAMA = EngineTold("llamaCpp", Loading.AT_START)
OLLAMA = engine_from({"TUNEYARD_ENGINE": "ollama"})
TOLD = {"fake-llama": LLAMA, "llama-server": LLAMA, "ollama": OLLAMA}
KINDS = [
    pytest.param("fake", id="fake-vllm"),
    pytest.param("fake-llama", id="fake-llama-server"),
    pytest.param("vllm", id="vllm", marks=REAL),
    pytest.param("llama-server", id="llama-server", marks=REAL),
]
AT_START = [KINDS[1], KINDS[3]]
ALL = [*KINDS, pytest.param("ollama", id="ollama", marks=REAL)]


@dataclass
class Pod:
    """An engine, its front and its agent; two adapters are served, where it serves any."""

    kind: str
    engine: EngineProcess
    rig: AgentRig
    url: str
    names: dict[str, str]
    """By adapter, what gateways ask for."""

    def has(self, name: str, seed: int = 1) -> PlannedAdapter:
        """A plan's entry for an adapter of its own."""
        like = None
        if self.kind == "llama-server":
            like = self.rig.settings.volumes / "made" / name
            if not like.exists():
                random_adapter(like, seed)
        elif seed % 2 == 0:
            like = adapters() / "adapter-b"
        return self.rig.has(name, like)

    def follow(self, *planned: PlannedAdapter, turn: bool = False) -> None:
        """This is the plan now, and whether it is this pod's turn."""
        turns = [self.rig.settings.pod] if turn else None
        self.rig.follow(PoolPlan(pool="pool", base_model=BASE, adapters=list(planned), turns=turns))

    async def served(self, *names: str) -> None:
        """Wait until exactly these are served."""
        found = await self.rig.until_loaded(*names, within=240)
        self.names = {name: str(report.engine_name) for name, report in found.items()}

    async def call(self, path: str, body: Any = None, key: str = KEY) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer."""
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request("POST" if body else "GET", self.url + path, json=body, headers=headers) as response,
        ):
            text = await response.text()
            found = json.loads(text) if text[:1] in ("{", "[") else text
            return response.status, {k.lower(): v for k, v in response.headers.items()}, found

    async def say(self, model: str, **more: Any) -> Any:
        """The answer to a completion."""
        body = {"model": model, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0, **more}
        status, _, found = await self.call("/v1/completions", body)
        assert status == 200, found
        return found

    async def stream(self, model: str, tokens: int, begun: asyncio.Event | None = None, **more: Any) -> list[Any]:
        """The events of a chat's stream; `begun` is set with its first one."""
        messages = [{"role": "user", "content": "Tell a story."}]
        body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, "ignore_eos": True, **more}
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                self.url + "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
            ) as response,
        ):
            assert response.status == 200, await response.text()
            lines = []
            async for line in response.content:
                lines.append(line)
                if begun is not None:
                    begun.set()
            events = [line[6:].strip().decode() for line in lines if line.startswith(b"data: ")]
        return [json.loads(e) if e != "[DONE]" else e for e in events]


async def pod_of(kind: str, folder: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> Pod:
    """A pod that serves nothing yet."""
    told = TOLD.get(kind, VLLM)
    engine: EngineProcess
    if kind == "ollama":
        engine = ollama_process(folder)
    else:
        engine = llama_process(kind, folder) if told is LLAMA else own_engine(kind)
    stack.callback(engine.kill)
    await asyncio.to_thread(engine.start)
    # the front's environment says the key, as in its container
    monkeypatch.setenv("TUNEYARD_ENGINE_KEY", KEY)
    guarding = guarding_of(told, folder / "run" / "front-models")
    front = await stack.enter_async_context(envoy.Front(folder, engine.port, guarding=guarding))
    rig = await stack.enter_async_context(AgentRig(engine, folder, told=told, drain_timeout=180.0))
    return Pod(kind, engine, rig, f"http://{front.address}", {})


@pytest.fixture
async def pod(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    async with AsyncExitStack() as stack:
        found = await pod_of(request.param, tmp_path, stack, monkeypatch)
        if request.param == "ollama":
            found.follow()
            await found.rig.until(lambda r: r.engine == "Ready", "the base answers")
        else:
            found.follow(found.has("a", 1), found.has("b", 2))
            await found.served("a", "b")
        yield found


@pytest.mark.parametrize("pod", ALL, indirect=True)
async def test_every_engine_keeps_the_contract(pod: Pod) -> None:
    names = [BASE, *pod.names.values()]
    a = names[-1]
    status, _, listed = await pod.call("/v1/models")
    assert (status, {m["id"] for m in listed["data"]}) == (200, set(names))
    assert (await pod.call("/health"))[0] == 200
    assert (await pod.call("/metrics"))[0] == 200

    said = [await pod.say(name, logprobs=2) for name in names]
    assert [found["model"] for found in said] == names
    heard = [json.dumps(found["choices"][0], sort_keys=True) for found in said]
    assert len(set(heard)) == len(names), "each is heard, and the base is none of them"

    for unknown in ("nobody", f"{a}x", "gpt-4o"):
        status, headers, _ = await pod.call("/v1/completions", {"model": unknown, "prompt": "x", "max_tokens": 1})
        assert (status, headers.get("x-tuneyard-retry")) in ((503, "adapter-missing"), (400, None)), unknown
    assert (await pod.call("/v1/completions", {"model": BASE, "prompt": "x"}, key="wrong"))[0] == 401
    assert (await pod.call("/v1/models", key="wrong"))[0] == 401
    assert (await pod.call("/lora-adapters"))[0] == 404

    plain = await pod.stream(a, 5)
    assert plain[-1] == "[DONE]"
    assert {event["model"] for event in plain[:-1]} == {a}
    asked = await pod.stream(a, 5, stream_options={"include_usage": True})
    assert (asked[-2]["choices"], asked[-2]["usage"]["completion_tokens"]) == ([], 5)


@pytest.mark.parametrize("pod", KINDS, indirect=True)
async def test_an_adapter_that_leaves_the_plan_is_answered_by_nobody(pod: Pod) -> None:
    gone = pod.names["a"]
    pod.follow(pod.has("b", 2))
    await pod.served("b")
    body = {"model": gone, "prompt": "x", "max_tokens": 1}

    async def refused() -> bool:
        status, headers, _ = await pod.call("/v1/completions", body)
        assert status == 200 or (status, headers["x-tuneyard-retry"]) == (503, "adapter-missing")
        return status == 503

    await eventually(refused, "nobody answers under the name")
    assert (await pod.say(pod.names["b"]))["model"] == pod.names["b"]
    pod.follow(pod.has("a", 1), pod.has("b", 2))
    await pod.served("a", "b")
    assert (await pod.say(gone))["model"] == gone, "and by the same name, once it is wanted again"


@pytest.mark.parametrize("pod", ALL, indirect=True)
async def test_streams_one_after_the_other_are_all_answered(pod: Pod) -> None:
    """Also by a server that ends each stream's connection without a word."""
    for _ in range(40):
        assert (await pod.stream(pod.names.get("a", BASE), 1))[-1] == "[DONE]"


@pytest.mark.parametrize("pod", AT_START, indirect=True)
async def test_nobody_else_chooses_an_adapter_by_number(pod: Pod) -> None:
    """llama.cpp takes `lora` from whoever writes it."""
    loud = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 1.0}]
    plain, smuggled = await pod.say(BASE), await pod.say(BASE, lora=loud)
    assert smuggled["choices"][0]["text"] == plain["choices"][0]["text"]
    status, _, _ = await pod.call("/v1/completions", {"model": BASE, "prompt": "x", "l\\u006fra": loud})
    assert status in (200, 400)


@pytest.mark.parametrize("pod", AT_START, indirect=True)
async def test_a_new_adapter_waits_for_its_turn_and_loses_no_stream(pod: Pod) -> None:
    pod.follow(pod.has("a", 1), pod.has("b", 2), pod.has("c", 3))
    await pod.rig.until(lambda r: bool(r.asks_for_turn), "the pod asks for its turn", within=60)
    assert pod.rig.report.engine == "Ready"
    assert (await pod.say(pod.names["a"]))["model"] == pod.names["a"], "until then it serves as before"

    begun = asyncio.Event()
    running = asyncio.create_task(pod.stream(pod.names["a"], 150, begun))
    await asyncio.wait_for(begun.wait(), 30)
    began = len(pod.rig.published)
    pod.follow(pod.has("a", 1), pod.has("b", 2), pod.has("c", 3), turn=True)
    await pod.rig.until(lambda r: r.engine == "Draining", "gateways are told first", within=30)
    events = await running
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length", "the stream ended by itself"
    await pod.served("a", "b", "c")
    told = [report for _, report in pod.rig.published[began:]]
    assert _ready_again_only_at_the_end(told)
    heard = {(await pod.say(name))["choices"][0]["text"] for name in (BASE, *pod.names.values())}
    assert len(heard) >= 2


@pytest.mark.parametrize("pod", [KINDS[1]], indirect=True)
async def test_with_what_the_server_does_not_come_up_the_others_serve_again(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "ABSENT", 5.0)
    kept = [pod.has("a", 1), pod.has("b", 2)]
    pod.follow(*kept, pod.has("broken", 3), turn=True)
    found = await pod.rig.until(
        lambda r: "broken" in r.adapters and r.adapters["broken"].state == "Failed", "it is to blame", within=60
    )
    assert found.adapters["broken"].reason == Reason.LOAD_REFUSED
    assert "does not come up with" in str(found.adapters["broken"].message)
    pod.follow(*kept)
    await pod.served("a", "b")
    heard = {(await pod.say(name))["choices"][0]["text"] for name in (BASE, *pod.names.values())}
    assert len(heard) == 3


@pytest.mark.parametrize("pod", [KINDS[1]], indirect=True)
async def test_a_server_that_ends_by_itself_has_the_same_names_again(pod: Pod) -> None:
    before = {name: (await pod.say(name))["choices"][0]["text"] for name in (BASE, *pod.names.values())}
    look = ["pgrep", "-f", f"tests.fakes.llamaserver.*--port {pod.engine.port} "]
    number = (await asyncio.to_thread(subprocess.check_output, look, text=True)).split()[0]
    os.kill(int(number), signal.SIGKILL)
    await pod.rig.until(lambda r: r.engine == "Starting", "it is seen to be gone", within=30)
    await pod.served("a", "b")
    assert {name: (await pod.say(name))["choices"][0]["text"] for name in before} == before


def _ready_again_only_at_the_end(told: list[PodReport]) -> bool:
    states = [report.engine for report in told]
    return "Draining" in states and states[-1] == "Ready"
