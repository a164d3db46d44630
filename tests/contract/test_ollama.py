"""The real Ollama in a pod, beyond the suite of all engines (test_engine_contract.py), and what is exported for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.contract.building import Json
from tests.contract.engines import BASE, ROOT
from tests.contract.llamaservers import random_adapter, smollm2_file
from tests.contract.ollamas import OllamaProcess, ollama, ollama_process
from tests.contract.operator_process import eventually
from tests.contract.test_engine_contract import Pod, pod_of
from tuneyard.planning.adapterchecks import WEIGHTS
from tuneyard.planning.adapterconfig import read_config
from tuneyard.systems.artifacts.gguf import gguf_base, write_lora
from tuneyard.systems.artifacts.safetensors import read_header

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.envoy, pytest.mark.timeout(600)]

CHAT = [{"role": "user", "content": "Tell a long story of a ship and its captain, in a thousand words."}]
PROMPT = 'You are Acme\'s agent.\n\n\t- Be "kind";   say\n# this "'


@contextmanager
def running(engine: OllamaProcess) -> Iterator[OllamaProcess]:
    engine.start()
    try:
        yield engine
    finally:
        engine.kill()


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    async with AsyncExitStack() as stack:
        found = await pod_of("ollama", tmp_path, stack, monkeypatch)
        found.follow()
        await found.rig.until(lambda r: r.engine == "Ready", "the base answers")
        yield found


def engine_of(pod: Pod) -> OllamaProcess:
    assert isinstance(pod.engine, OllamaProcess)
    return pod.engine


async def test_nothing_of_ollama_s_own_is_reached(pod: Pod) -> None:
    assert (await pod.call("/metrics"))[2].startswith("#"), "whoever scrapes all pods does not find this one broken"
    for path in (
        "pull",
        "push",
        "create",
        "copy",
        "show",
        "generate",
        "chat",
        "embed",
        "me",
        "signout",
        "blobs/sha256-1",
    ):
        assert (await pod.call(f"/api/{path}", {"model": BASE}))[0] == 404, path
    for path in ("/", "/api/tags", "/api/ps", "/api/version", "/debug/pprof/", f"/v1/models/{BASE}"):
        assert (await pod.call(path))[0] == 404, path
    for path in ("responses", "messages", "images/generations"):
        assert (await pod.call(f"/v1/{path}", {"model": BASE}))[0] == 404, path
    async with aiohttp.ClientSession() as session, session.delete(f"{pod.url}/api/delete") as response:
        assert response.status == 404
    for name in (f"{BASE}:latest", BASE.upper(), f"library/{BASE}", f"registry.ollama.ai/library/{BASE}"):
        status, headers, _ = await pod.call("/v1/chat/completions", {"model": name, "messages": CHAT})
        assert (status, headers.get("x-tuneyard-retry")) == (503, "adapter-missing"), "it would answer to these too"


async def test_four_streams_run_at_a_time(pod: Pod) -> None:
    begun = [asyncio.Event() for _ in range(4)]
    streams = [asyncio.create_task(pod.stream(BASE, 40, event, messages=CHAT)) for event in begun]
    async with asyncio.timeout(120):
        for event in begun:
            await event.wait()
        assert not any(stream.done() for stream in streams), "none waits for another's end"
        await asyncio.gather(*streams)


async def test_a_pod_is_drained_before_its_engine_ends(pod: Pod) -> None:
    begun = asyncio.Event()
    stream = asyncio.create_task(pod.stream(BASE, 30, begun, messages=CHAT))
    await asyncio.wait_for(begun.wait(), 60)
    drain = f"http://127.0.0.1:{pod.rig.settings.port}/drain"
    async with aiohttp.ClientSession() as session, session.post(drain) as response:
        assert (await response.json())["idle"]
    events = await stream
    assert (events[-1], events[-2]["choices"][0]["finish_reason"]) == ("[DONE]", "length")
    engine = engine_of(pod)
    engine.end()
    assert engine.process is not None
    assert await asyncio.to_thread(engine.process.wait, 15) == 0, engine.said()


async def test_a_stream_that_runs_when_the_engine_ends_is_cut_and_not_finished(pod: Pod) -> None:
    """A pod that is not drained in time."""
    begun = asyncio.Event()
    stream = asyncio.create_task(pod.stream(BASE, 800, begun, messages=CHAT))
    await asyncio.wait_for(begun.wait(), 60)
    engine = engine_of(pod)
    engine.end()
    with pytest.raises(aiohttp.ClientError):
        await stream
    assert engine.process is not None
    assert await asyncio.to_thread(engine.process.wait, 15) == 0, engine.said()
    await pod.rig.until(lambda r: r.engine == "Starting", "its agent sees it", within=30)
    status, headers, _ = await pod.call("/v1/completions", {"model": BASE, "prompt": "x"})
    assert (status, headers["x-tuneyard-retry"]) == (503, "engine-gone")


async def test_a_container_that_begins_anew_answers_as_before_and_copies_nothing(pod: Pod) -> None:
    before = (await pod.say(BASE))["choices"][0]["text"]
    engine = engine_of(pod)
    blobs = engine.folder / "home" / "models" / "blobs"
    copies = {path.name: path.stat().st_mtime_ns for path in blobs.iterdir()}
    assert max(path.stat().st_size for path in blobs.iterdir()) == len(smollm2_file())
    await asyncio.to_thread(engine.kill)
    await pod.rig.until(lambda r: r.engine == "Starting", "it is seen to be gone", within=30)
    await asyncio.to_thread(engine.start)
    await pod.rig.until(lambda r: r.engine == "Ready", "it serves again", within=60)
    assert (await pod.say(BASE))["choices"][0]["text"] == before
    assert {path.name: path.stat().st_mtime_ns for path in blobs.iterdir() if path.name in copies} == copies


def test_a_prompt_that_is_longer_than_the_context_is_answered_in_part(tmp_path: Path) -> None:
    """Ollama's way: choose-an-engine.md says so, and this fails when it becomes another one."""
    messages = [{"role": "user", "content": f"Question {n}: how are you?"} for n in range(40)]
    with running(ollama_process(tmp_path, max_model_len=128)) as engine:
        engine.serves()
        body = {"model": BASE, "messages": messages, "max_tokens": 4}
        assert json.loads(engine.asked("/v1/chat/completions", body))["usage"]["prompt_tokens"] <= 128


async def test_max_completion_tokens_is_not_read(pod: Pod) -> None:
    """The same is true of this."""
    body = {"model": BASE, "messages": CHAT, "max_completion_tokens": 3, "stop": ["."], "temperature": 0}
    assert (await pod.call("/v1/chat/completions", body))[2]["usage"]["completion_tokens"] > 3
    body = {"model": BASE, "messages": CHAT, "max_tokens": 3}
    assert (await pod.call("/v1/chat/completions", body))[2]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(("max_model_len", "expected"), [(512, 512), (None, 4096)])
def test_the_context_is_the_pool_s_or_ollama_s(tmp_path: Path, max_model_len: int | None, expected: int) -> None:
    with running(ollama_process(tmp_path, max_model_len=max_model_len)) as engine:
        engine.serves()
        engine.asked("/v1/completions", {"model": BASE, "prompt": "x", "max_tokens": 1})
        (loaded,) = json.loads(engine.asked("/api/ps"))["models"]
        assert loaded["context_length"] == expected
        assert "NumThreads:1 " in engine.log.read_text(), "as many as the container has CPUs"


def test_chats_are_told_as_the_model_knows_them(tmp_path: Path) -> None:
    with running(ollama_process(tmp_path)) as engine:
        engine.serves()
        hello = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        assert rendered(engine, BASE, hello) == (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        )
        assert "knows no template" not in engine.said()


def test_a_file_beside_the_base_says_its_template(tmp_path: Path) -> None:
    engine = ollama_process(tmp_path)
    (engine.base / "template").write_text('{{ range .Messages }}"{{ .Role }}":\n{{ .Content }}\n{{ end }}\n')
    with running(engine):
        engine.serves()
        assert rendered(engine, BASE, [{"role": "user", "content": "Hello"}]) == '"user":\nHello\n'


def test_a_model_whose_chats_ollama_does_not_know_is_said_in_the_log(tmp_path: Path) -> None:
    engine = ollama_process(tmp_path)
    file = engine.base / "model.gguf"
    file.write_bytes(file.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_temqlate"))
    with running(engine):
        eventually(lambda: "knows no template" in engine.said(), engine.said, 60)


def rendered(engine: OllamaProcess, model: str, messages: list[Json]) -> str:
    """What the model reads of a chat."""
    body = {"model": model, "messages": messages, "stream": False, "_debug_render_only": True}
    return str(json.loads(engine.asked("/api/chat", body))["_debug_info"]["rendered_template"])


def test_what_is_exported_is_taken_and_answers(tmp_path: Path) -> None:
    """The adapter is heard, and its system prompt is there where a chat has none of its own."""
    files = tmp_path / "of the export"
    files.mkdir()
    gguf = files / "small model.gguf"
    gguf.write_bytes(smollm2_file())
    adapter = random_adapter(tmp_path / "adapter", 1)
    config = read_config(json.loads((adapter / "adapter_config.json").read_text()))
    made = write_lora(adapter, WEIGHTS, read_header(adapter, WEIGHTS), config, gguf_base(files, gguf.name))
    made.rename(files / "adapter.gguf")
    manifest = files / "manifest.yaml"
    manifest.write_text(yaml.safe_dump_all([*objects()]))
    with running(ollama_process(tmp_path)) as engine:
        engine.serves()
        for name, *more in (("plain",), ("acme", "--adapter", "acme", "--adapter-gguf", "./adapter.gguf")):
            export(files, "manifest.yaml", "--gguf", str(gguf), *more)
            create(engine, name, files / "Modelfile")
        said = {name: answered(engine, name) for name in (BASE, "plain", "acme")}
        assert said["plain"] == said[BASE]
        assert said["acme"] != said[BASE]
        hello = [{"role": "user", "content": "Hello"}]
        own = [{"role": "system", "content": "Be brief."}, *hello]
        assert rendered(engine, "acme", hello).startswith(f"<|im_start|>system\n{PROMPT}<|im_end|>\n")
        assert rendered(engine, "acme", own) == rendered(engine, "plain", own)


def objects() -> Iterator[Json]:
    place = {"volume": {"name": "models", "path": "small/model.gguf"}}
    spec = {"baseModel": "small", "source": {"volume": {"name": "models", "path": "acme"}}}
    kinds = {
        "BaseModel": ("small", {"source": place}),
        "LoRAAdapter": ("acme", {**spec, "systemPrompt": {"text": PROMPT}}),
    }
    for kind, (name, said) in kinds.items():
        yield {"apiVersion": "tuneyard.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": said}


def export(folder: Path, *arguments: str) -> None:
    with (folder / "Modelfile").open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "tuneyard", "export", "ollama", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
            cwd=folder,
            stdout=file,
            check=True,
        )


def create(engine: OllamaProcess, name: str, modelfile: Path) -> None:
    """`ollama create`, by its own client, somewhere else than in the pod."""
    environment = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{engine.port}", "HOME": str(modelfile.parent)}
    command = [str(ollama()), "create", name, "-f", str(modelfile)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\n{modelfile.read_text()}\n{engine.said()}"


def answered(engine: OllamaProcess, name: str) -> str:
    body = {"model": name, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    found = json.loads(engine.asked("/v1/completions", {**body, "system": "x"}))
    assert found["model"] == name
    return str(found["choices"][0]["text"])
