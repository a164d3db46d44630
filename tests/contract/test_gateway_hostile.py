"""Clients that mean harm, on the real Envoy: HTTP that can be read in two ways, spoofed headers, what never ends.

What they send is written byte by byte; no client library would. Every request stands before another one that asks for a
model of somebody else: whatever is misread, that one must not reach its pod.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

import tuneyard
from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.fuzzing import POST, frame, literal
from tests.contract.test_gateway_keys import bearer, put_keys
from tests.contract.test_gateway_overload import _highest
from tests.contract.test_gateway_routing import assert_openai_error
from tests.fakes.upstream import Upstream
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy import overload
from tuneyard.systems.envoy.clientlimits import ClientLimits

pytestmark = pytest.mark.envoy

BODY = b'{"model":"support"}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 18\r\n\r\n{"model":"secret"}'


def request(headers: bytes, body: bytes = BODY, *, line: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return line + b"\r\nhost: x\r\n" + headers + b"\r\n" + body


REFUSED = {
    "both lengths": request(LENGTH + CHUNKED, b"0\r\n\r\n"),
    "both lengths, the other way": request(CHUNKED + LENGTH, CHUNKS),
    "two codings": request(CHUNKED + b"transfer-encoding: identity\r\n", CHUNKS),
    "a list of codings": request(b"transfer-encoding: identity, chunked\r\n", CHUNKS),
    "an unknown coding": request(b"transfer-encoding: xchunked\r\n", CHUNKS),
    "a coding after a vertical tab": request(b"transfer-encoding: \x0bchunked\r\n", CHUNKS),
    "space before the coding's colon": request(b"transfer-encoding : chunked\r\n", CHUNKS),
    "space before the length's colon": request(b"content-length : 19\r\n"),
    "two lengths": request(LENGTH + b"content-length: 3\r\n"),
    "one length twice": request(LENGTH + LENGTH),
    "a list of lengths": request(b"content-length: 19, 19\r\n"),
    "a signed length": request(b"content-length: +19\r\n"),
    "a negative length": request(b"content-length: -1\r\n"),
    "a hexadecimal length": request(b"content-length: 0x13\r\n"),
    "a length with a gap": request(b"content-length: 1 9\r\n"),
    "a length beyond numbers": request(b"content-length: 99999999999999999999999\r\n"),
    "a first header that is folded": b"POST /v1/completions HTTP/1.1\r\n host: x\r\n" + LENGTH + b"\r\n" + BODY,
    "a header with NUL": request(LENGTH + b"x-a: b\0c\r\n"),
    "a header without a colon": request(LENGTH + b"x-model secret\r\n"),
    "a header without a name": request(LENGTH + b": secret\r\n"),
    "a header's name beyond ASCII": request(LENGTH + b"x-\xc3\xa9: y\r\n"),
    "headers that are too long": request(LENGTH + b"x-a: " + b"y" * 62_000 + b"\r\n"),
    "too many headers": request(LENGTH + b"".join(b"x-%d: y\r\n" % n for n in range(101))),
    "no host": b"POST /v1/completions HTTP/1.1\r\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/1.0": request(LENGTH, line=b"POST /v1/completions HTTP/1.0"),
    "HTTP/0.9": b"GET /v1/models\r\n",
    "HTTP/1.2": request(LENGTH, line=b"POST /v1/completions HTTP/1.2"),
    "a fragment in the path": request(LENGTH, line=b"POST /v1/completions#x HTTP/1.1"),
    "NUL in the path": request(LENGTH, line=b"POST /v1/completions\0 HTTP/1.1"),
    "a method in small letters": request(LENGTH, line=b"post /v1/completions HTTP/1.1"),
    "chunks ended by a line feed alone": request(CHUNKED, b"13\n" + BODY + b"\n0\n\n"),
    "a line feed in a chunk's extension": request(CHUNKED, b"13;\nx\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a negative chunk": request(CHUNKED, b"-13\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk in C's hexadecimal": request(CHUNKED, b"0x13\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk beyond 64 bits": request(CHUNKED, b"10000000000000013\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": request(CHUNKED, b"12\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a length that is too small": request(b"content-length: 18\r\n"),
    "TLS where none is spoken": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
}
"""Ends with one error, and the connection with it."""

MADE_PLAIN = {
    "a tab before the coding": request(b"transfer-encoding:\tchunked\r\n", CHUNKS),
    "a coding in mixed letters": request(b"Transfer-Encoding: ChunKed\r\n", CHUNKS),
    "a coding on a folded line": request(b"transfer-encoding:\r\n chunked\r\n", CHUNKS),
    "a folded header": request(LENGTH + b"x-a: b\r\n x-model: secret\r\n"),
    "lines that end in line feeds": request(LENGTH).replace(b"\r\n", b"\n"),
    "a line feed in a header": request(LENGTH + b"x-a: b\nx-model: secret\r\n"),
    "a carriage return in a header": request(LENGTH + b"x-a: b\rx-model: secret\r\n"),
    "two hosts": request(LENGTH + b"host: y\r\n"),
    "a whole URL": request(LENGTH, line=b"POST http://secret/v1/completions HTTP/1.1"),
    "a chunk's extension": request(CHUNKED, b"13;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "trailers": request(CHUNKED, CHUNKS[:-2] + b"x-model: secret\r\nx-tenant: other\r\n\r\n"),
    "headers that are to be dropped": request(LENGTH + b"connection: x-model, content-length\r\n"),
    "an upgrade to HTTP/2": request(LENGTH + b"connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"),
    "underscores for dashes": request(
        LENGTH + b"x_model: secret\r\ncontent_length: 3\r\ntransfer_encoding: chunked\r\n"
    ),
}
"""Is answered, and what arrives is plain: no engine has to read it in the same way."""


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("a", keep=10_000) as a, Upstream("b") as b:
        yield a, b


@pytest.fixture
async def rig(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as rig:
        await serve(rig, pods)
        yield rig


async def serve(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    await rig.serve(
        *(model(n, revision("v1", 100, [p.address])) for n, p in zip(("support", "secret"), pods, strict=True))
    )


async def tell(rig: Rig, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    came = b""

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(15):
            while data := await reader.read(1 << 16):
                came += data
    except ConnectionError:
        pass  # closed while more was being sent
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return came


def answers(came: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each."""
    found = []
    while came:
        head, _, came = came.partition(b"\r\n\r\n")
        length = int(dict(re.findall(rb"(?i)\r\n(content-length): ([0-9]+)", head)).get(b"content-length", b"0"))
        found.append((int(head.split(b" ", 2)[1]), came[:length]))
        came = came[length:]
    return found


async def test_what_can_be_read_in_two_ways_is_refused(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    told = await asyncio.gather(*(tell(rig, sent + SMUGGLED) for sent in REFUSED.values()))
    for name, came in zip(REFUSED, told, strict=True):
        ((status, body), *more) = answers(came)
        # a body that is too small for its JSON is refused by that, and what stands behind it as a request of its own
        assert not more or "length" in name or "longer" in name, (name, came)
        assert 400 <= status < 500, (name, status)
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}, name
        assert json.loads(body)["error"]["type"] == "invalid_request_error", name
    assert not pods[0].received
    assert not pods[1].received
    assert (await rig.post(BODY))[0] == 200


async def test_what_is_odd_arrives_plain(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    last = request(b"content-length: 2\r\nconnection: close\r\n", b"{}")
    told = await asyncio.gather(*(tell(rig, sent + last) for sent in MADE_PLAIN.values()))
    for name, came in zip(MADE_PLAIN, told, strict=True):
        assert [status for status, _ in answers(came)] == [200, 400], name
    assert len(pods[0].received) == len(MADE_PLAIN)
    for received in pods[0].received:
        assert (received.body, received.headers["x-model"]) == (b'{"model":"engine-v1"}', "support"), received
        assert received.headers["content-length"] == "21"
        assert not received.headers.keys() & {"transfer-encoding", "x-tenant", "upgrade", "http2-settings"}, received
        assert not re.search(r"[\r\n\0]", "".join(received.headers.values())), received
    assert not pods[1].received


async def test_bodies_that_never_end(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    """100 MB, by its length and by chunks: refused as soon as it is too much, and never kept."""
    piece = b"x" * (1 << 20)
    start = b'{"model":"support","prompt":"'
    length = b"content-length: %d\r\n" % (100 << 20)
    chunk = b"100000\r\n" + piece + b"\r\n"
    before = _highest(rig.envoy.pid)
    for sent in (
        [request(length, start), *[piece] * 100],
        [request(CHUNKED, b"%x\r\n%b\r\n" % (len(start), start)), *[chunk] * 100],
    ):
        ((status, body),) = answers(await tell(rig, *sent))
        assert status == 413
        assert_openai_error(body, code="request_too_large")
    assert _highest(rig.envoy.pid) - before < 64 << 20
    # and one whose client ends it early
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(request(b"content-length: 1000\r\n", BODY))
    await writer.drain()
    writer.close()
    (line,) = [line for line in await rig.envoy.logged(3) if line["bytes_in"] == len(BODY)]
    assert (line["status"], line["model"]) == (0, None)
    assert not pods[0].received


def internal_headers() -> list[str]:
    """Every header that the gateway's code knows by name, so that a new one is tried without being listed here."""
    package = Path(tuneyard.__file__).parent
    files = [
        package / "api" / "names.py",
        *(f for part in ("systems/envoy", "gateway") for f in (package / part).rglob("*.*")),
    ]
    text = "\n".join(f.read_text() for f in files if f.suffix in (".py", ".lua"))
    found = set(re.findall(r"\b(?:x-(?:tuneyard-|envoy-)?[a-z]+(?:-[a-z]+)*|tuneyard-[a-z]+(?:-[a-z]+)*)\b", text))
    assert found >= {
        "x-model",
        "x-tenant",
        "x-prefix",
        "x-revision",
        "x-tuneyard-gate",
        "x-tuneyard-allowed",
        "tuneyard-hop",
    }
    return sorted(found | {"x-tuneyard-unheard-of", "x-envoy-original-path", "x-envoy-retry-on", "x-envoy-max-retries"})


OURS = re.compile(r"x-(model|tenant|prefix|revision|tuneyard-.*|envoy-(?!external-address).*)")
"""What no client's value may reach an engine by."""


@pytest.mark.parametrize("keys", [False, True])
async def test_no_header_of_a_client_s_decides_anything(
    tmp_path: Path, pods: tuple[Upstream, Upstream], keys: bool
) -> None:
    a, b = pods
    caller = Caller("acme", Policy(("support",)))
    async with Rig(tmp_path, keys=keys) as rig:
        key = "sk-of-acme-0123456789abcdef"
        if keys:
            put_keys(rig, {key: caller})
        await serve(rig, pods)
        own = bearer(key) if keys else {}
        tried = 0
        for header in internal_headers():
            if header in ("x-api-key", "tuneyard-hop", "x-request-id"):
                continue  # credentials, what is refused in any case, and what clients may say
            for value in ("secret", "open", "11-17", "v9", "*", " ,secret, *"):
                spoofed = own | {header: value}
                status, answered, _ = await rig.post(BODY, headers=spoofed)
                assert (status, answered["x-revision"]) == (200, "v1"), (header, value)
                told = a.received[-1].headers
                assert (told["x-model"], told.get("x-tenant")) == ("support", "acme" if keys else None), header
                assert value not in {v for h, v in told.items() if OURS.fullmatch(h)}, (header, value)
                assert (await rig.post(b"{}", headers=spoofed))[0] == 400, (header, value)
                if keys:
                    assert (await rig.post(b'{"model":"secret"}', headers=spoofed))[0] == 404, (header, value)
                    assert (await rig.post(BODY, headers={header: value}))[0] == 401, (header, value)
                tried += 1
        assert tried > 150
        assert not b.received
        for value in ("", "0", "1"):
            assert (await rig.post(BODY, headers=own | {"tuneyard-hop": value}))[0] == 508


async def test_whoever_is_slow_is_sent_away(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """A byte now and then, of headers or of a body, or none at all; meanwhile others are served."""
    slow = {
        "headers": [request(LENGTH)[n : n + 1] for n in range(40)],
        "body": [request(b"content-length: 1000\r\n", b""), *[b"x"] * 40],
        "chunks": [request(CHUNKED, b""), *[b"1\r\nx\r\n"] * 40],
        "an upgrade whose end nobody knows": [request(LENGTH + b"connection: upgrade\r\nupgrade: websocket\r\n")],
        "nothing": [b""],
        "nothing after an answer": [request(LENGTH)],
    }
    limits = ClientLimits(headers=1, request=1.5, idle=2)
    async with Rig(tmp_path, limits=limits) as rig:
        await serve(rig, pods)
        attack: Sequence[asyncio.Task[bytes]] = [
            asyncio.create_task(tell(rig, *pieces, pause=0.1)) for pieces in slow.values() for _ in range(30)
        ]
        while not all(task.done() for task in attack):
            assert (await rig.post(BODY))[0] == 200
            await asyncio.sleep(0.05)
        for number, kind in enumerate(slow):
            for task in attack[30 * number : 30 * number + 30]:
                told = [(s, json.loads(b).get("error", {}).get("code")) for s, b in answers(task.result())]
                expected = {"nothing": [], "nothing after an answer": [(200, None)]}
                assert told == expected.get(kind, [(408, "request_timeout")]), kind
        assert await rig.envoy.stat("http.gateway.downstream_rq_active") == 0
        assert not pods[1].received


async def test_more_connections_than_there_may_be(
    tmp_path: Path, pods: tuple[Upstream, Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further ones are closed, those that are there go on, and the next are taken when some have gone."""
    monkeypatch.setattr(overload, "MAX_CONNECTIONS", 20)
    async with Rig(tmp_path) as rig:
        await serve(rig, pods)
        opened = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(40)]
        ended = [asyncio.create_task(reader.read(1)) for reader, _ in opened]
        await eventually(lambda: sum(task.done() for task in ended) == 20, "half of them are closed")
        for (_, writer), task in zip(opened, ended, strict=True):
            if not task.done():
                writer.write(request(LENGTH))
        await eventually(lambda: len(pods[0].received) == 20, "the others are served")
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*ended, return_exceptions=True)
        status = 0
        while status != 200:  # until Envoy has noted that they are gone
            try:
                status = (await rig.post(BODY))[0]
            except OSError:
                await asyncio.sleep(0.01)


PATH = b"/v1/completions"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
HEADERS = POST + bytes([len(PATH)]) + PATH


async def test_http2_that_http1_would_read_otherwise(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    """Nothing of it reaches a pod, in whatever shape."""

    async def ask(name: bytes, value: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(PREFACE + frame(1, 4, 1, HEADERS + literal(name, value)) + frame(0, 1, 1, BODY))
        # an error of the connection ends it, one of the stream is a frame: RST_STREAM, or an answer
        async with asyncio.timeout(10):
            came = b""
            while data := await reader.read(1 << 16):
                came += data
                if {kind for kind, stream in frames(came) if stream == 1 and kind in (1, 3)}:
                    break
        writer.close()

    await asyncio.gather(
        ask(b"content-length", b"3"),
        ask(b"content-length", b"+19"),
        ask(b"transfer-encoding", b"chunked"),
        ask(b"connection", b"x-model"),
        ask(b"x-a", b"x\r\n\r\n" + SMUGGLED[:80]),
        ask(b"x-a\r\nx-model", b"secret"),
        ask(b"x-a: b\r\nx-model", b"secret"),
        ask(b"X-Model", b"secret"),
        ask(b":authority", b"y"),
        ask(b":path", b"/v1/models"),
        ask(b"x-a", b"b\0c"),
    )
    assert not pods[0].received, pods[0].received
    assert not pods[1].received
    await ask(b"x-a", b"b")
    assert len(pods[0].received) == 1, "the same without anything odd is answered"


def frames(came: bytes) -> list[tuple[int, int]]:
    """Kind and stream of each whole one."""
    found, at = [], 0
    while at + 9 <= len(came):
        length = int.from_bytes(came[at : at + 3], "big")
        found.append((came[at + 3], int.from_bytes(came[at + 5 : at + 9], "big")))
        at += 9 + length
    return found


async def test_streams_of_http2_that_are_begun_and_reset(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    """Thousands of requests on one connection, each taken back at once: it is closed, and others do not notice."""
    resets = b"".join(frame(1, 4, n, HEADERS) + frame(3, 0, n, struct.pack(">I", 8)) for n in range(1, 8001, 2))
    before = _highest(rig.envoy.pid)
    attacks = [asyncio.create_task(tell(rig, PREFACE, resets)) for _ in range(10)]
    while not all(task.done() for task in attacks):
        assert (await rig.post(BODY))[0] == 200
    assert await rig.envoy.stat("http.gateway.downstream_rq_too_many_premature_resets") == 10
    assert _highest(rig.envoy.pid) - before < 64 << 20
    assert await rig.envoy.stat("http.gateway.downstream_rq_active") == 0
    # and one that is meant
    whole = frame(1, 4, 1, HEADERS) + frame(0, 1, 1, BODY)
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(PREFACE + whole)
    await eventually(lambda: pods[0].asked.total() > 0, "it is answered")
    async with asyncio.timeout(10):
        assert b"hello from a" in await reader.readuntil(b"hello from a")
    writer.close()
    assert not pods[1].received
