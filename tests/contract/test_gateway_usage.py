"""Tokens of requests through the real Envoy: streams are asked for usage, and clients see it only if they wanted it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from tests.contract.envoy import Rig, eventually, model, revision
from tests.fakes.upstream import Upstream
from tuneyard.api.drill import Fault
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.api.usage import Outcome, UsageRecord
from tuneyard.gateway import requestfiles, usage
from tuneyard.gateway.envoyadmin import EnvoyAdmin
from tuneyard.gateway.requestfiles import RequestFiles
from tuneyard.systems.envoy.usage import usage_record

pytestmark = pytest.mark.envoy

ASKING = b'"stream_options":{"include_usage":true}'


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def choice(text: str, **more: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "engine-v1"}
    return event(**head, choices=[{"index": 0, "delta": {"content": text}}], **more)


COUNTED = {
    "prompt_tokens": 7,
    "total_tokens": 12,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 3},
}
USAGE = event(id="chatcmpl-1", object="chat.completion.chunk", created=1, model="engine-v1", choices=[], usage=COUNTED)
DONE = b"data: [DONE]\n\n"
SPOOF = choice(' {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: {"choices":[],"usage":{')
LOGPROBS = event(
    choices=[
        {"index": 0, "logprobs": {"content": [{"token": "usage"}, {"token": "choices"}]}},
        {"index": 1, "logprobs": {"top_logprobs": [{"usage": -0.1, "choices": -2.5}]}},
    ]
)
TOOL = event(
    choices=[
        {"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"usage":{"choices":[]}}'}}]}}
    ]
)


@asynccontextmanager
async def counted(folder: Path, **more: Any) -> AsyncIterator[Rig]:
    """A gateway that writes usage down."""
    async with Rig(folder, count_usage=True, **more) as rig:
        yield rig


async def records(rig: Rig, count: int) -> list[UsageRecord]:
    found = (usage_record(line, "gw") for line in await rig.lines(count))
    return [record for record in found if record is not None]


@asynccontextmanager
async def saying(*answers: Sequence[bytes], head: bytes = b"transfer-encoding: chunked\r\n") -> AsyncIterator[str]:
    """An engine that gives these answers in turn, each piece as a chunk of its own."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while left:
                sent = await reader.readuntil(b"\r\n\r\n")
                length = int(sent.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + head + b"\r\n")
                for piece in left.pop(0):
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if head else piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                writer.write(b"0\r\n\r\n" if head else b"")
                if not head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def cut(text: bytes, at: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(set(at) - {0, len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends)]


STREAM = b": hello\n\n" + choice("a") + SPOOF + LOGPROBS + TOOL + choice("e") + USAGE + DONE
SHOWN = STREAM.replace(USAGE, b"")


async def test_usage_is_taken_out_wherever_a_stream_is_cut(tmp_path: Path) -> None:
    """Every place around the event of usage, each byte alone, and many places at once; nothing else is changed."""
    begin = STREAM.index(USAGE)
    chance = random.Random(1)
    cuts: list[list[int]] = [[at] for at in range(begin - 4, begin + len(USAGE) + 4)]
    cuts += [[at, at + 1, at + 2] for at in range(begin - 3, begin + len(USAGE) + 2, 3)]
    cuts += [sorted(chance.sample(range(len(STREAM)), 30)) for _ in range(40)]
    cuts += [list(range(len(STREAM))), []]
    async with saying(*(cut(STREAM, at) for at in cuts)) as engine, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [engine])))
        for at in cuts:
            _, _, body = await rig.post({"model": "support", "stream": True})
            assert body == SHOWN, at
        found = await records(rig, len(cuts))
        lines = await rig.lines(len(cuts))
    assert {(r.prompt_tokens, r.cached_tokens, r.completion_tokens, r.estimated) for r in found} == {(7, 3, 5, False)}
    assert {line.chunks for line in lines} == {"5"}


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
async def test_who_asks_for_usage_gets_every_byte(tmp_path: Path, options: dict[str, bool]) -> None:
    stream = choice("a", usage={**COUNTED, "completion_tokens": 1}) + choice("b", usage=COUNTED) + USAGE + DONE
    async with saying(cut(stream, [40, 150, len(stream) - 80])) as engine, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [engine])))
        _, _, body = await rig.post({"model": "support", "stream": True, "stream_options": options})
        (record,) = await records(rig, 1)
    assert body == stream
    assert (record.prompt_tokens, record.completion_tokens, record.estimated) == (7, 5, False)


@pytest.mark.parametrize("last", [choice("e")[:-1], choice("e")[:60], USAGE[:-1], b"data: [DO", b": he", b""])
@pytest.mark.parametrize("head", [b"transfer-encoding: chunked\r\n", b"connection: close\r\n"])
async def test_a_stream_that_ends_within_an_event_is_passed_on(tmp_path: Path, last: bytes, head: bytes) -> None:
    pieces = [choice("a"), choice("b") + last[:20], last[20:]] if last else [choice("a"), choice("b")]
    if b"close" in head:
        head, pieces = b"", [b"connection: close\r\n\r\n", *pieces]
    async with saying([p for p in pieces if p], head=head) as engine, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [engine])))
        _, _, body = await rig.post({"model": "support", "stream": True})
    expected = choice("a") + choice("b") + (b"" if last == USAGE[:-1] else last)
    assert body.removeprefix(b"connection: close\r\n\r\n") == expected


async def test_a_token_is_not_kept_back_while_its_event_is_cut(tmp_path: Path) -> None:
    """An event that shows a choice passes at once, though its end has not come."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(choice("a") + choice("half")[:-6])
        await begun.wait()
        writer.write(choice("half")[-6:] + USAGE + DONE)
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with counted(tmp_path) as rig, asyncio.timeout(20):
        await rig.serve(model("support", revision("v1", 100, [f"127.0.0.1:{server.sockets[0].getsockname()[1]}"])))
        body = {"model": "support", "stream": True}
        async with rig.session.post("/v1/chat/completions", json=body) as response:
            seen = await response.content.readexactly(len(choice("a") + choice("half")) - 6)
            begun.set()
            assert seen + await response.content.read() == choice("a") + choice("half") + DONE
    server.close()


BODIES = {
    b'{"model":"%s","stream":true,"n":1}': b'{"model":"%s","stream":true,' + ASKING + b',"n":1}',
    b'{"stream" : true , "model":"%s"}': b'{"stream" : true,' + ASKING + b' , "model":"%s"}',
    b'{"stream":true,"stream_options":null,"model":"%s"}': b'{"stream":true,' + ASKING + b',"model":"%s"}',
    b'{"stream_options":{},"stream":true,"model":"%s"}': b"{" + ASKING + b',"stream":true,"model":"%s"}',
    b'{"model":"%s","stream_options":{"include_usage":false,"continuous_usage_stats":true},"stream":true}': (
        b'{"model":"%s",' + ASKING + b',"stream":true}'
    ),
    b'{"model":"%s","stream_options":{ "x" : "y}" , "include_usage" : null } ,"stream":true}': (
        b'{"model":"%s",' + ASKING + b' ,"stream":true}'
    ),
    **{
        same: same
        for same in (
            b'{"model":"%s","stream":true,"stream_options":{"include_usage":true}}',
            b'{"model":"%s","stream":true,"stream_options":{"x":1, "include_usage" : true }}',
            b'{"model":"%s","stream":false,"stream_options":{"include_usage":false}}',
            b'{"model":"%s","stream":null}',
            b'{"model":"%s","messages":[{"stream":true,"content":"\\"stream\\":true"}]}',
        )
    },
}


async def test_bodies_change_in_that_place_alone(tmp_path: Path) -> None:
    async with Upstream("a") as pod, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        for body, arrives in BODIES.items():
            assert (await rig.post(body % b"support"))[0] == 200, body
            assert pod.received[-1].body == arrives % b"engine-v1"
            assert not [h for h in pod.received[-1].headers if h.startswith("x-tuneyard")]
    async with Upstream("a") as pod, Rig(tmp_path / "..") as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        for body in BODIES:
            assert (await rig.post(body % b"support"))[0] == 200, body
            assert pod.received[-1].body == body % b"engine-v1", "nobody counts"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model":"support","stream":1}', "stream must be true or false"),
        (b'{"model":"support","stream":"true"}', "stream must be true or false"),
        (b'{"model":"support","stream":true,"stream":false}', "the key stream twice"),
        (b'{"model":"support","stream":true,"stream_options":{},"stream_options":{}}', "stream_options twice"),
        (b'{"model":"support","stream":true,"stream_options":[]}', "must be an object"),
        (b'{"model":"support","stream":true,"stream_options":{"include_usage":"true"}}', "must be an object"),
        (b'{"model":"support","stream":true,"stream_options":{"include_usage":false,"include_usage":true}}', "object"),
        (b'{"model":"support","stream":true,"stream_options":{"include\\u005fusage":true}}', "must be an object"),
        (b'{"model":"support","stream":true,"stream_options":{"a":{"include_usage":true}}}', "must be an object"),
    ],
)
async def test_what_an_engine_could_take_for_a_stream_is_refused(tmp_path: Path, body: bytes, said: str) -> None:
    async with Upstream("a") as pod, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        status, _, answer = await rig.post(body)
        assert status == 400
        assert said in json.loads(answer)["error"]["message"]
        assert not pod.received


async def test_requests_of_every_kind_are_counted(tmp_path: Path) -> None:
    """Whole answers, streams, refusals, an engine's errors, a client that leaves; OpenAI's own client asks."""
    async with Upstream("a") as pod, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        client = openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0)
        messages: Any = [{"role": "user", "content": "hi"}]
        await client.chat.completions.create(model="support", messages=messages)
        plain = [c async for c in await client.chat.completions.create(model="support", messages=messages, stream=True)]
        assert all(c.choices and c.usage is None for c in plain)
        asked = await client.chat.completions.create(
            model="support", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        seen = [c async for c in asked]
        assert seen[-1].usage is not None and seen[-1].usage.completion_tokens == 4
        await client.embeddings.create(model="support", input="hi", encoding_format="float")
        pod.models = set()
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="support", messages=messages)
        pod.models = None
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=messages)
        body = {"model": "support", "stream": True, "chunks": 1000, "delay": 0.01}
        async with rig.session.post("/v1/chat/completions", json=body, headers={"x-tenant": "spoofed"}) as response:
            await response.content.readuntil(b"\n\n")
            await response.content.readuntil(b"\n\n")
        body = {"model": "support", "stream": True, "fails": True}
        await rig.post(body)
        whole, streamed, wanted, embedded, unknown, left, failed = await records(rig, 8)
        await client.close()
    told = [(r.prompt_tokens, r.completion_tokens, r.estimated) for r in (whole, streamed, wanted, embedded)]
    assert told == [(11, 3, False), (7, 4, False), (7, 4, False), (5, 0, False)]
    assert {r.deployment for r in (whole, left)} == {"default/md-support"}
    assert (unknown.status, unknown.outcome, unknown.prompt_tokens) == (404, Outcome.REFUSED, 0)
    assert (left.outcome, left.estimated, left.tenant) == (Outcome.LEFT, True, None)
    assert left.completion_tokens in (2, 3, 4)
    assert left.prompt_tokens > 0
    assert (failed.outcome, failed.estimated, failed.completion_tokens) == (Outcome.FAILED, False, 4)
    assert embedded.endpoint == "embeddings"


async def test_what_no_engine_got_is_no_usage(tmp_path: Path) -> None:
    """A rehearsal's errors, what a system prompt refuses, and clients that leave while they are held."""
    held = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        held.set()
        await reader.read()
        writer.close()

    holding = await asyncio.start_unix_server(hold, tmp_path / "holding.sock")
    async with Upstream("a") as pod, counted(tmp_path) as rig:
        served = revision("v1", 100, [pod.address])
        await rig.serve(
            model("drill", replace(served, fault=Fault(revision="v1", errors=100))),
            model("prompted", replace(served, prompt=SystemPrompt(text="Be kind.", apply="Always"))),
            model("asleep", replace(served, endpoints=(), held=True)),
            model("support", served),
        )
        assert (await rig.post({"model": "drill"}))[0] == 502
        assert (await rig.post({"model": "prompted", "prompt": "hi"}, path="/v1/completions"))[0] == 400
        leaving = asyncio.create_task(rig.post({"model": "asleep"}))
        await held.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert len(await records(rig, 3)) == 0
        assert (await rig.post({"model": "support"}))[0] == 200
        (record,) = await records(rig, 4)
        lines = await rig.lines(4)
    assert record.attempt == 1
    assert [bool(line.cluster) for line in lines] == [True] * 4, "the route of each was known"
    assert not pod.active
    holding.close()


@pytest.mark.parametrize("streams", [True, False])
async def test_an_answer_without_usage_is_an_estimate(tmp_path: Path, streams: bool) -> None:
    """Nobody gets an engine's work for nothing because that tells no numbers."""
    whole = b'{"choices":[{"message":{"content":"' + b"x" * 364 + b'"}}]}'
    assert len(whole) == 404
    answer = [choice("a"), choice("b") + choice("c"), DONE] if streams else [whole[:100], whole[100:]]
    head = b"transfer-encoding: chunked\r\n"
    async with saying(answer, head=head) as engine, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [engine])))
        status, _, _ = await rig.post(
            b'{"model":"support","messages":"%s"%b}' % (b"x" * 400, b',"stream":true' * streams)
        )
        (record,) = await records(rig, 1)
    assert status == 200
    assert (record.outcome, record.estimated) == (Outcome.OK, True)
    assert record.prompt_tokens in range(100, 125)
    assert record.completion_tokens == (3 if streams else 101)


async def test_a_killed_envoy_costs_the_next_ones_requests_nothing(tmp_path: Path) -> None:
    """Killed within a write: the next one goes on behind half a line."""
    log = tmp_path / "requests.log"
    async with Upstream("a") as pod, counted(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        await rig.post({"model": "support"}, headers={"x-request-id": "r0"})
        await records(rig, 1)
        rig.envoy.stop()
        log.write_bytes(log.read_bytes() * 2)
        os.truncate(log, log.stat().st_size - 30)
        rig.envoy.start()
        await rig.envoy.ready()
        await rig.serve()
        await rig.post({"model": "support"}, headers={"x-request-id": "r1"})
        await eventually(lambda: log.read_bytes().count(b"\n") == 2, "two ends of lines")
    found, broken = usage.records_of(log.read_bytes().split(b"\n")[:-1], "gw", run="run")
    assert [r.request_id for r in found] == ["r0", "r1"]
    assert broken == 1


async def test_files_are_rotated_while_envoy_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy's file is renamed many times under load; each line counts once, and what was counted is removed."""
    monkeypatch.setattr(requestfiles, "ROTATE_BYTES", 20_000)
    monkeypatch.setattr(usage, "EVERY", 0.02)
    metrics = usage.UsageMetrics(CollectorRegistry())
    async with Upstream("a") as pod, counted(tmp_path, concurrency=2) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        reopen = EnvoyAdmin(str(tmp_path / "envoy-admin.sock")).reopen_logs
        counting = usage.Usage("gw", RequestFiles(tmp_path), tmp_path / "usage.json", reopen, metrics)
        counting.start()
        left = iter(range(3000))

        async def asking() -> None:
            for _ in left:
                assert (await rig.post({"model": "support"}))[0] == 200

        await asyncio.gather(*(asking() for _ in range(4)))
        await counting.close()
        page, files = counting.page(), counting.files.rotated()
    totals = Counter[str]()
    for line in page.splitlines():
        if "{" in line:
            totals[line.split("{")[0]] += int(line.rsplit(" ", 1)[1])
    assert totals == {usage.REQUESTS: 3000, usage.TOKENS: 3000 * (11 + 3)}
    assert counting.place.number >= 5
    assert len(files) <= 4, "those of the end, and one that was just renamed"
    again = usage.Usage("gw", RequestFiles(tmp_path), tmp_path / "usage.json", reopen, metrics)
    assert again.page() == page, "the next process shows the same"
