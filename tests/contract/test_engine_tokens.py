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

from tests.contract.engines import BASE, OWN_ENGINES, EngineProcess, running_engine
from tests.contract.envoy import Front, Rig, model, revision
from tuneyard.systems.envoy.answers import Answer, answers_of

pytestmark = pytest.mark.envoy

SLOW_TO_BEGIN = {
    "fake": ["--first-token-delay", "0.3"],
    "vllm": ["--max-num-seqs", "4", "--max-num-batched-tokens", "16"],
}
STREAMS, MOST = 5, 60
TOKENS = {"fake": 60, "vllm": 140}
"""Of the real one as many as its context leaves: they come in more than one piece, however busy the machine is."""


@pytest.fixture(scope="module", params=OWN_ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    with running_engine(request.param, *SLOW_TO_BEGIN[request.param]) as engine:
        yield engine


@dataclass
class Seen:
    """One stream by the client's clock: milliseconds since it was asked for."""

    headers: float = 0.0
    events: list[float] = field(default_factory=list)
    """All that are counted: what carries choices."""
    tokens: list[float] = field(default_factory=list)
    """Of these, what carries text. The real engine begins a chat with an event that carries the role alone."""


async def stream(rig: Rig, path: str, number: int, tokens: int) -> Seen:
    # an engine that knows the begin of a prompt does not read it again
    prompt = f"{number} " + "all happy families are alike " * 30
    asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    body = {"model": "support", "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **asked}
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


def tells(seen: Seen) -> bool:
    """Whether headers, first and last event came apart: on a machine that is busy all of them may come together."""
    return seen.events[0] - seen.headers > 20 and seen.events[-1] - seen.events[0] > 20


async def streams(engine: EngineProcess, folder: Path, path: str) -> list[tuple[Seen, Answer, dict[str, Any]]]:
    """One after the other: what the client sees, what the gateway's process is told, what the access log says.

    The first one finds kernels that are not compiled and connections that are not made, and does not count. It ends
    when STREAMS of them tell something.
    """
    async with Front(folder, engine.port) as front, Rig(folder) as rig:
        await rig.serve(model("support", revision("v1", 100, [front.address], engine=BASE)))
        seen = [await stream(rig, path, 0, TOKENS[engine.kind])]
        while sum(map(tells, seen[1:])) < STREAMS and len(seen) < MOST:
            seen.append(await stream(rig, path, len(seen), TOKENS[engine.kind]))
        answers = answers_of(await rig.lines(len(seen)))
        lines = await rig.envoy.logged(len(seen))
    return [found for found in zip(seen[1:], answers[1:], lines[1:], strict=True) if tells(found[0])]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_tokens_are_counted_and_timed_as_the_client_sees_them(
    engine: EngineProcess, tmp_path: Path, path: str
) -> None:
    late, between = [], []
    found = await streams(engine, tmp_path, path)
    assert len(found) == STREAMS, f"only {len(found)} of {MOST} streams came by and by: the machine is too busy"
    for seen, told, line in found:
        first, last = seen.events[0], seen.events[-1]
        assert line["chunks"] == len(seen.events)
        assert len(seen.tokens) <= TOKENS[engine.kind], "a token an event, but for what has waited for a busy client"
        assert line["completion_tokens"] == TOKENS[engine.kind]
        assert told.streamed
        assert told.ttft is not None
        assert line["ttft_ms"] == pytest.approx(told.ttft)
        late.append(abs(told.ttft - first) / (first - seen.headers))
        assert told.itl is not None and line["itl_ms"] == pytest.approx(told.itl)
        between.append(told.itl * sum(at > first + 1 for at in seen.events) / (last - first) - 1)
    # medians, and by their own measure: a busy machine delays single events, and everything a little
    assert statistics.median(late) < 0.25, "the time is that of the first token, not of the headers, which come before"
    assert abs(statistics.median(between)) < 0.15, between
