"""A canary between engines: one model, a revision on vLLM and one with an adapter on llama.cpp, through the gateway."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contract import envoy
from tests.contract.agents import AgentRig
from tests.contract.engines import BASE, EngineProcess, own_engine
from tests.contract.envoy import Rig, engine_key, model, revision
from tests.contract.llamaservers import llama_process, random_adapter
from tests.contract.test_engine_contract import LLAMA, REAL
from tuneyard.agent.enginetold import VLLM, EngineTold
from tuneyard.systems.envoy.front import Guarding

pytestmark = pytest.mark.envoy
KINDS = [
    pytest.param("fake", "fake-llama", id="fakes"),
    pytest.param("vllm", "llama-server", id="real", marks=REAL),
]


async def _pod(stack: AsyncExitStack, engine: EngineProcess, folder: Path, told: EngineTold) -> tuple[str, AgentRig]:
    """Address of a front, and the agent beside its engine."""
    stack.callback(engine.kill)
    await asyncio.to_thread(engine.start)
    guarding = None if told.guards else Guarding(str(folder / "run" / "front-models"))
    front = await stack.enter_async_context(envoy.Front(folder, engine.port, guarding=guarding))
    rig = await stack.enter_async_context(AgentRig(engine, folder, told=told))
    return front.address, rig


@pytest.mark.parametrize(("stable", "candidate"), KINDS)
async def test_both_engines_answer_under_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stable: str, candidate: str
) -> None:
    async with AsyncExitStack() as stack:
        for name in ("gateway", "a", "b"):
            (tmp_path / name).mkdir()
        vllm, llama = own_engine(stable), llama_process(candidate, tmp_path / "b")
        vllm.key, llama.key = engine_key("default", "on-vllm"), engine_key("default", "on-llama-cpp")
        monkeypatch.setenv("TUNEYARD_ENGINE_KEY", llama.key)
        first, plain = await _pod(stack, vllm, tmp_path / "a", VLLM)
        second, tuned = await _pod(stack, llama, tmp_path / "b", LLAMA)
        plain.plan()
        like = random_adapter(tmp_path / "made", 1) if candidate == "llama-server" else None
        tuned.plan(tuned.has("support", like))
        await plain.until(lambda r: r.engine == "Ready", "vLLM serves its base")
        adapter = str((await tuned.until_loaded("support"))["support"].engine_name)

        rig = await stack.enter_async_context(Rig(tmp_path / "gateway"))
        await rig.serve(
            model(
                "support",
                revision("on-vllm", 50, [first], engine=BASE, pool="on-vllm"),
                revision("on-llama-cpp", 50, [second], engine=adapter, pool="on-llama-cpp"),
            )
        )
        answered: Counter[str] = Counter()
        for _ in range(60):
            body = {"model": "support", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
            status, headers, text = await rig.post(body)
            assert status == 200, text
            answered[json.loads(text)["model"]] += 1
            assert headers["x-revision"] == {BASE: "on-vllm", adapter: "on-llama-cpp"}[json.loads(text)["model"]]
        assert set(answered) == {BASE, adapter}
        assert min(answered.values()) >= 15, answered
