"""How a real Envoy tells what became of requests: what stands in a line, and when somebody reads it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.contract.envoy import Rig, eventually, model, revision
from tests.fakes.upstream import Upstream
from tuneyard.systems.envoy.accesslogs import AccessLog
from tuneyard.systems.envoy.answers import Outcome, answers_of
from tuneyard.systems.envoy.requestlog import Line, line_of

pytestmark = pytest.mark.envoy


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


async def test_it_is_told_soon_and_requests_wait_for_nobody_who_does_not_read(tmp_path: Path, pod: Upstream) -> None:
    heard: list[tuple[float, Line]] = []

    def hear(lines: Sequence[Line]) -> None:
        heard.extend((time.perf_counter(), line) for line in lines)

    async with Rig(tmp_path, heard=hear, concurrency=2) as rig:
        await rig.serve(model("support", revision("v1", 50, [pod.address]), revision("v2", 50, [pod.address])))
        late = []
        for number in range(1, 21):
            await rig.post({"model": "support"})
            ended = time.perf_counter()
            await eventually(lambda n=number: len(heard) == n, "it is told")  # type: ignore[misc]
            late.append(heard[-1][0] - ended)
        assert sorted(late)[10] < 0.2, late
        answers = answers_of(line for _, line in heard)
        assert {(a.deployment, a.outcome) for a in answers} == {("default/md-support", Outcome.OK)}
        assert all(0 < a.took < 2000 and abs(a.began - time.time()) < 60 for a in answers)
        memory, begin = await rig.envoy.stat(r"server\.memory_allocated"), time.perf_counter()
        long = {"user-agent": "x" * 8000, "tuneyard-gate-run": "x" * 8000, "x-request-id": "x" * 8000}
        for _ in range(20):
            some = await asyncio.gather(*(rig.post({"model": "support"}, headers=long) for _ in range(50)))
            assert all(status == 200 for status, _, _ in some)
        assert time.perf_counter() - begin < 20
        assert await rig.envoy.stat(r"server\.memory_allocated") - memory < 32 << 20
        await eventually(lambda: len(heard) == 1020, "all are told")
        assert rig.requests.stat().st_size < 1020 * 1500, "what clients make long is cut"


async def test_no_text_of_a_client_or_an_engine_breaks_a_line(tmp_path: Path, pod: Upstream) -> None:
    """Whatever passes Envoy stands in one field of one line; all other bytes it refuses."""
    texts = [bytes([byte]) for byte in range(1, 256)] + [b"\xff\xfe", "\u2028".encode(), b'","x":"', b"%REQ(x)%"]
    body = b'{"model":"support"}'

    async def ask(port: int, text: bytes) -> bool:
        """Whether it was refused. Envoy keeps a refused connection for a second."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\nx-request-id: a%bb\r\ntuneyard-gate-run: a%bb\r\n"
            b"grpc-timeout: 9%bS\r\n\r\n%b" % (len(body), text, text, text, body)
        )
        answer = await reader.read()
        writer.close()
        return answer.startswith(b"HTTP/1.1 400")

    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        refused = sum(await asyncio.gather(*(ask(rig.port, text) for text in texts)))
        asked: list[Line] = []

        def all_told() -> bool:
            lines = [line_of(text) for text in rig.requests.read_bytes().splitlines()]
            asked[:] = [line for line in lines if line.host]
            return len(asked) >= len(texts) - refused

        await rig.envoy.admin("/reopen_logs", "POST")
        await eventually(all_told, "they are told")
    assert refused >= 29, "control characters"
    assert len(asked) == len(texts) - refused
    assert {line.cluster.split("/")[2] for line in asked} == {"v1"}


@pytest.mark.parametrize("kind", [b"text/plain\x1f\x1f", b"text/plain\x1e", b"a\xff\tb"])
async def test_no_header_of_an_engine_breaks_a_line(tmp_path: Path, kind: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 2\r\n\r\n{}" % kind)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Rig(tmp_path) as rig:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await rig.serve(model("support", revision("v1", 100, [address])))
        status, _, _ = await rig.post({"model": "support"})
        (line,) = await rig.lines(1)
    server.close()
    control = kind[-1] < 32
    assert (line.status, line.host) == (str(status), address)
    assert (status != 200, not line.kind or line.kind == "application/json") == (control, control)


@pytest.mark.parametrize(("of", "lines"), [(AccessLog.ALL, 4), (AccessLog.ERRORS, 2), (AccessLog.NONE, 0)])
async def test_what_people_read_may_be_less(tmp_path: Path, pod: Upstream, of: AccessLog, lines: int) -> None:
    """An answer, a refusal, a stream, one that tells an error: judges hear of all."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(broken, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Rig(tmp_path, access_log=of) as rig:
        await rig.serve(
            model("support", revision("v1", 100, [pod.address])), model("ill", revision("v1", 100, [address]))
        )
        assert (await rig.post({"model": "support"}))[0] == 200
        assert (await rig.post({"model": "nobody"}))[0] == 404
        assert (await rig.post({"model": "support", "stream": True}))[0] == 200
        assert (await rig.post({"model": "ill", "stream": True}))[0] == 200
        assert len(await rig.lines(4)) == 4
        rig.envoy.stop(signal.SIGTERM)
        assert len(await rig.envoy.logged(lines)) == lines
    server.close()


async def test_an_envoy_that_ends_by_itself_writes_its_last_lines(tmp_path: Path, pod: Upstream) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        for _ in range(20):
            assert (await rig.post({"model": "support"}))[0] == 200
        rig.envoy.stop(signal.SIGTERM)
        assert len(await rig.lines(20)) == 20


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
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [f"127.0.0.1:{port}"])))
        assert (await rig.post({"model": "support", "stream": True}))[2] == b"".join(pieces)
        (answer,) = answers_of(await rig.lines(1))
        (line,) = await rig.envoy.logged(1)
    server.close()
    assert answer.streamed
    assert answer.outcome is (Outcome.ERROR if b'"error"' in pieces[0] else Outcome.OK)
    assert line["chunks"] == chunks
    if ttft_piece is None:
        assert answer.ttft is None
    else:
        earliest = pause * (ttft_piece + 1) * 1000
        assert answer.ttft is not None
        assert earliest - 5 < answer.ttft < earliest + pause * 900
