"""How a real Envoy tells what became of requests, when it is heard and when it is not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from envoy.service.accesslog.v3 import als_pb2

from tests.contract.envoy import Rig, eventually, model, revision
from tests.fakes.upstream import Upstream
from tuneyard.systems.envoy.answers import Answer, AnswerReports, Outcome

pytestmark = pytest.mark.envoy

LONG = {"user-agent": "x" * 8000}
"""Is in every entry: fills what lies between Envoy and who listens."""


class Ears(AnswerReports):
    """Who listens; may cover its ears for a while."""

    def __init__(self) -> None:
        super().__init__(self.heard)
        self.answers: list[Answer] = []
        self.open = asyncio.Event()
        self.open.set()

    def heard(self, answers: Sequence[Answer]) -> None:
        self.answers.extend(answers)

    async def serve(self, messages: AsyncIterator[Any]) -> None:
        async def when_open() -> AsyncIterator[Any]:
            await self.open.wait()
            async for message in messages:
                yield message
                await self.open.wait()

        await super().serve(when_open())


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


async def test_requests_wait_for_nobody_who_does_not_listen(tmp_path: Path, pod: Upstream) -> None:
    ears = Ears()
    async with Rig(tmp_path, services=[ears.join], concurrency=2) as rig:
        await rig.serve(model("support", revision("v1", 50, [pod.address]), revision("v2", 50, [pod.address])))
        assert ears.streams == 0
        await rig.post({"model": "support"})
        await eventually(lambda: len(ears.answers) == 1, "it is told")
        assert ears.answers[0].deployment == "default/md-support"
        assert ears.answers[0].outcome is Outcome.OK

        ears.open.clear()
        dropped = r"access_logs\.grpc_access_log\.logs_dropped"
        slowest, sent, by = 0.0, 0, Counter[str]()
        memory = await rig.envoy.stat(r"server\.memory_allocated")
        while not await rig.envoy.stat(dropped):
            assert sent * len(LONG["user-agent"]) < 32 << 20, "nothing was dropped"
            begin = time.perf_counter()
            answers = await asyncio.gather(*(rig.post({"model": "support"}, headers=LONG) for _ in range(50)))
            slowest, sent = max(slowest, time.perf_counter() - begin), sent + 50
            assert all(status == 200 for status, _, _ in answers)
            by.update(headers["x-revision"] for _, headers, _ in answers)
        assert slowest < 2
        assert await rig.envoy.stat(r"server\.memory_allocated") - memory < 32 << 20

        ears.open.set()
        # some had to be dropped; what waited is told, and what comes as soon as there is room again
        async with asyncio.timeout(30):
            while not any(answer.streamed for answer in ears.answers):
                await rig.post({"model": "support", "stream": True})
        assert {answer.outcome for answer in ears.answers} == {Outcome.OK}
        # of both revisions about the same share
        told = Counter(answer.revision for answer in ears.answers if not answer.streamed)
        assert told.total() <= sent + 1
        shares = [told[name] / by[name] for name in ("v1", "v2")]
        assert abs(shares[0] - shares[1]) < 5 / sent**0.5, (told, by)


async def test_other_things_get_half_of_the_time_however_much_is_told() -> None:
    loop = asyncio.get_running_loop()
    busy, ended = 0.0, 0

    def slow(_: Sequence[Answer]) -> None:
        nonlocal busy
        began = loop.time()
        while loop.time() - began < 0.02:
            pass
        busy += loop.time() - began

    async def messages() -> AsyncIterator[als_pb2.StreamAccessLogsMessage]:
        nonlocal ended
        for _ in range(10):
            message = als_pb2.StreamAccessLogsMessage()
            message.http_logs.log_entry.add()
            yield message
        ended += 1

    reports = AnswerReports(slow)
    began = loop.time()
    await asyncio.gather(*(reports.serve(messages()) for _ in range(3)))
    assert (ended, reports.streams) == (3, 0)
    assert busy < 0.6 * (loop.time() - began)


EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("pieces", "ttft_piece", "chunks"),
    [
        ([b": hello\n\n", EVENT, EVENT, USAGE + DONE], 1, 2),
        ([b": hello\n\n" + EVENT, EVENT, DONE], 0, 2),
        ([b": a\n\n", b": b\n\n", b"event: x\n" + EVENT, EVENT + EVENT], 2, 3),
        # events and marks cut anywhere count once
        ([EVENT[:20], EVENT[20:] + EVENT[:3], EVENT[3:], DONE], 0, 2),
        ([b": x\n\nda", EVENT[2:-1], b"\n" + EVENT, DONE[:7], DONE[7:]], 1, 2),
        # generated text that looks like one
        ([b'data: {"choices":[{"delta":{"content":"\\ndata: x"}}]}\n\n', EVENT], 0, 2),
        ([b": nothing\n\n", DONE], None, None),
        ([b'data: {"error": {"message": "out of memory"}}\n\n', DONE], None, None),
    ],
)
async def test_tokens_are_events_however_they_are_cut(
    tmp_path: Path, pieces: list[bytes], ttft_piece: int | None, chunks: int | None
) -> None:
    pause = 0.05

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for piece in pieces:
            await asyncio.sleep(pause)
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ears = Ears()
    async with Rig(tmp_path, services=[ears.join]) as rig:
        await rig.serve(model("support", revision("v1", 100, [f"127.0.0.1:{port}"])))
        assert (await rig.post({"model": "support", "stream": True}))[2] == b"".join(pieces)
        await eventually(lambda: len(ears.answers) == 1, "it is told")
        (line,) = await rig.envoy.logged(1)
    server.close()
    (answer,) = ears.answers
    assert answer.streamed
    assert answer.outcome is (Outcome.ERROR if b'"error"' in pieces[0] else Outcome.OK)
    assert line["chunks"] == chunks
    if ttft_piece is None:
        assert answer.ttft is None
    else:
        earliest = pause * (ttft_piece + 1) * 1000
        assert answer.ttft is not None
        assert earliest - 5 < answer.ttft < earliest + pause * 900
