"""How the gateway times tokens, held against a client's own clock on the same stream: the fake and the real vLLM alike.

An engine sends its headers at once and the first token when it has read the prompt. So that this takes a while on a
tiny model, the real one reads a long prompt sixteen tokens at a time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.engines import BASE, OWN_ENGINES, EngineProcess, own_engine
from tests.contract.envoy import Front, Rig, engine_key, eventually, model, revision
from tuneyard.systems.envoy.answers import Answer, AnswerReports

pytestmark = pytest.mark.envoy

SLOW_TO_BEGIN = {
    "fake": ["--first-token-delay", "0.3"],
    "vllm": ["--max-num-seqs", "4", "--max-num-batched-tokens", "16"],
}
STREAMS, TOKENS = 5, 60


@pytest.fixture(scope="module", params=OWN_ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    engine = own_engine(request.param, *SLOW_TO_BEGIN[request.param])
    engine.key = engine_key("default", "base")
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@dataclass
class Seen:
    """One stream by the client's clock: milliseconds since it was asked for."""

    headers: float = 0.0
    events: list[float] = field(default_factory=list)
    """All that are counted: what carries choices."""
    tokens: list[float] = field(default_factory=list)
    """Of these, what carries text. The real engine begins a chat with an event that carries the role alone."""


async def stream(rig: Rig, path: str, number: int) -> Seen:
    # an engine that knows the begin of a prompt does not read it again
    prompt = f"{number} " + "all happy families are alike " * 30
    asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    body = {"model": "support", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, **asked}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    seen, began = Seen(), time.perf_counter()

    def now() -> float:
        return (time.perf_counter() - began) * 1000

    async with rig.session.post(path, json=body) as response:
        seen.headers = now()
        assert response.status == 200, await response.text()
        async for line in response.content:
            at = now()
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                seen.events.append(at)
                if choice.get("text") or choice.get("delta", {}).get("content"):
                    seen.tokens.append(at)
    return seen


async def streams(engine: EngineProcess, folder: Path, path: str) -> list[tuple[Seen, Answer, dict[str, Any]]]:
    """One after the other: what the client sees, what the gateway's process is told, what the access log says.

    The first one finds kernels that are not compiled and connections that are not made, and does not count.
    """
    answers: list[Answer] = []
    reports = AnswerReports(answers.extend)
    async with Front(folder, engine.port) as front, Rig(folder, services=[reports.join]) as rig:
        await rig.serve(model("support", revision("v1", 100, [front.address], engine=BASE)))
        seen = [await stream(rig, path, number) for number in range(1 + STREAMS)]
        await eventually(lambda: len(answers) == len(seen), "all are told")
        lines = await rig.envoy.logged(len(seen))
    return list(zip(seen, answers, lines, strict=True))[1:]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_tokens_are_counted_and_timed_as_the_client_sees_them(
    engine: EngineProcess, tmp_path: Path, path: str
) -> None:
    late, between = [], []
    for seen, told, line in await streams(engine, tmp_path, path):
        first, last = seen.events[0], seen.events[-1]
        assert seen.headers < first / 4, "headers come at once, and are no token"
        assert seen.tokens[0] - first < first / 10, "what comes before the first token comes with it"
        assert line["chunks"] == len(seen.events)
        assert TOKENS - 5 <= len(seen.tokens) <= TOKENS, "a token an event, but for what has waited for a busy client"
        assert line["completion_tokens"] == TOKENS
        assert told.streamed
        assert told.ttft is not None and told.itl is not None
        assert (line["ttft_ms"], line["itl_ms"]) == (pytest.approx(told.ttft), pytest.approx(told.itl))
        late.append(told.ttft - first)
        between.append(told.itl / ((last - first) / (len(seen.tokens) - 1)) - 1)
    # single ones are off by what the machine does meanwhile
    assert abs(statistics.median(late)) < 10, late
    assert abs(statistics.median(between)) < 0.03, between
    assert max(map(abs, late)) < 100, late
