"""OpenAI's own clients, in Python and in JavaScript, unchanged through a real Envoy that asks for keys."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster import javascript
from tests.contract.engines import BASE, EngineProcess, running_engine
from tests.contract.envoy import Front, Rig, model, revision
from tests.contract.test_gateway_keys import put_keys
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy.documents import BODY_LIMIT

pytestmark = pytest.mark.envoy

Json = dict[str, Any]
KEY = "sk-clients-0123456789abcdef"
CITIES: Json = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITIES, "strict": True}}
CALLED = {"type": "function", "function": {"name": "weather"}}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
)
TOLD: Json = {
    "key": KEY,
    "chat": {
        "model": "support",
        "messages": [{"role": "user", "content": "what is it?"}],
        "max_tokens": 24,
        "temperature": 0,
    },
    "text": {"model": "support", "prompt": "it is", "max_tokens": 12, "temperature": 0},
    # a tiny model spells: a token each letter of the call
    "tools": {"tools": [TOOL], "tool_choice": CALLED, "max_tokens": 96},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": CITIES}}},
    "image": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
        }
    ],
    "tooLarge": BODY_LIMIT,
}
FLAGS = {
    "fake": ["--embedding-width", "8"],
    # the tiny model knows no JSON, and what it has the choice of is nothing but the braces and the words
    "vllm": [
        *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ],
}


def refusal(asked: Callable[[], object]) -> object:
    try:
        asked()
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "message": error.message}
    return "answered"


def streamed(events: Iterable[Any], piece: Callable[[Any], str | None]) -> Json:
    seen: Json = {"text": "", "usage": None, "ended": None}
    for event in events:
        if event.usage:
            seen["usage"] = event.usage.completion_tokens
        for choice in event.choices:
            seen["text"] += piece(choice) or ""
            seen["ended"] = choice.finish_reason or seen["ended"]
    return seen


def _called(choice: Any) -> str | None:
    calls = choice.delta.tool_calls
    return calls[0].function.arguments if calls else None


def by_python(told: Json) -> Json:
    """What openai_client.mjs does, by the client for Python."""
    client = openai.OpenAI(base_url=told["url"], api_key=told["key"], max_retries=0)
    stranger = client.with_options(api_key="sk-of-nobody-0123456789")
    chat, text = told["chat"], told["text"]
    seen: Json = {}
    create: Callable[..., Any] = client.chat.completions.create

    def content(choice: Any) -> str | None:
        found: str | None = choice.delta.content
        return found

    seen["models"] = [found.id for found in client.models.list().data]
    whole = create(**chat)
    choice = whole.choices[0]
    seen["chat"] = {
        "text": choice.message.content,
        "usage": whole.usage.completion_tokens,
        "ended": choice.finish_reason,
    }
    seen["chatStream"] = streamed(create(**chat, stream=True, stream_options={"include_usage": True}), content)
    seen["uncounted"] = streamed(create(**chat, stream=True), content)["usage"]
    completed: Any = client.completions.create(**text, logprobs=1).choices[0]
    seen["completion"] = {"text": completed.text, "logprobs": len(completed.logprobs.token_logprobs)}
    seen["completionStream"] = streamed(client.completions.create(**text, stream=True), lambda c: c.text)["text"]
    sure = create(**chat, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    seen["logprobs"] = [[len(one.top_logprobs), one.logprob <= 0] for one in sure]
    function = create(**{**chat, **told["tools"]}).choices[0].message.tool_calls[0].function
    seen["tool"] = {"name": function.name, "arguments": function.arguments}
    seen["toolStream"] = streamed(create(**{**chat, **told["tools"]}, stream=True), _called)["text"]
    seen["schema"] = create(**chat, **told["schema"]).choices[0].message.content
    if told["embeds"]:
        embedded = client.embeddings.create(model=chat["model"], input=["one", "another"])
        seen["embeddings"] = [one.embedding for one in embedded.data]
    seen["image"] = refusal(lambda: create(**{**chat, "messages": told["image"]}))
    large = copy.deepcopy(told["image"])
    large[0]["content"][1]["image_url"]["url"] += "A" * told["tooLarge"]
    seen["tooLarge"] = refusal(lambda: create(**{**chat, "messages": large}))
    seen["wrongKey"] = refusal(lambda: stranger.chat.completions.create(**chat))
    seen["notAllowed"] = refusal(lambda: create(**{**chat, "model": "secret"}))
    return seen


async def by_javascript(told: Json, folder: Path) -> Json:
    program = folder / "openai_client.mjs"
    shutil.copy(Path(__file__).with_name(program.name), program)
    (folder / "node_modules").symlink_to(javascript.modules("node") / "node_modules")
    process = await asyncio.create_subprocess_exec(
        *(str(javascript.node("node")), str(program), json.dumps(told)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    written, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    found: Json = json.loads(written)
    return found


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.slow])])
def engine(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    with running_engine(request.param, *FLAGS[request.param]) as engine:
        yield engine


@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_a_client_of_openai_s_works_unchanged(engine: EngineProcess, tmp_path: Path, language: str) -> None:
    async with Front(tmp_path, engine.port) as front, Rig(tmp_path, keys=True) as rig:
        put_keys(rig, {KEY: Caller("acme", Policy(("support",)))})
        await rig.serve(
            *(model(name, revision("v1", 100, [front.address], engine=BASE)) for name in ("support", "secret"))
        )
        told = {**TOLD, "url": f"{rig.url}/v1", "embeds": engine.kind == "fake"}
        seen = await (asyncio.to_thread(by_python, told) if language == "python" else by_javascript(told, tmp_path))

    assert seen["models"] == ["support"], "what the key may call, and no more"
    assert seen["chat"] == seen["chatStream"]
    assert seen["chat"]["text"] and seen["chat"]["usage"] == 24 and seen["chat"]["ended"] == "length"
    assert seen["uncounted"] is None, "usage comes to those who asked for it"
    assert seen["completion"]["text"] == seen["completionStream"] != ""
    assert seen["completion"]["logprobs"] == 12
    assert seen["logprobs"] == [[1, True]] * 24
    assert seen["tool"]["name"] == "weather"
    # as JSON: vLLM sets its own spaces in a call that comes as a whole
    for said in (seen["tool"]["arguments"], seen["toolStream"], seen["schema"]):
        assert json.loads(said) == {"city": "Oslo"}
    if engine.kind == "fake":
        one, another = seen["embeddings"]
        assert len(one) == len(another) == 8 and one != another
        assert seen["image"] == "answered"
    else:
        assert seen["image"]["status"] == 400, "a model of text alone says so itself"
    assert (seen["tooLarge"]["status"], seen["tooLarge"]["code"]) == (413, "request_too_large")
    assert "8 MiB" in seen["tooLarge"]["message"]
    assert (seen["wrongKey"]["status"], seen["wrongKey"]["code"]) == (401, "invalid_api_key")
    assert (seen["notAllowed"]["status"], seen["notAllowed"]["code"]) == (404, "model_not_found")
