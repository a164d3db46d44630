"""Bodies that nobody would write, by the thousand, and what a JSON parser says of them.

`bodies(seed)` mutates sound requests: bytes, pieces of JSON's own syntax, keys that gateways look at, and whole pieces
of other bodies. The same seed gives the same bodies. `Reading.of` is the oracle: Python's `json`, as vLLM uses it, told
to keep duplicate keys. `SinkPod` is a pod that only remembers, `send_all` a client that is fast enough for 100,000.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

MODELS = ("support", "org/other", "prompted", "guarded")
_SOUND = [
    b'{"model":"support","messages":[{"role":"user","content":"hi"}]}',
    b'{"messages":[{"role":"system","content":"caf\\u00e9 \\"model\\": \\"x\\" \\\\"}], "model" : "org/other" }',
    b'{"model":"org\\/other","stream":true,"messages":[{"role":"user","content":"a"}],"n":1}',
    b'{"stream":true,"stream_options":{"include_usage":false,"x":1.5},"model":"support","prompt":"a b"}',
    b'{"stream_options":{"include_usage":true},"messages":[],"stream":true,"model":"prompted"}',
    '{"messages":[{"content":"日本語 😀 {[\\"]}","role":"user"}],"model":"prompted","seed":-0.0}'.encode(),
    b'{"metadata":{"model":"org/other","x":[{"model":"guarded"}]},"model":"support","stream":false}',
    b'{"model":"guarded","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"developer"}]}',
    b'{"tools":[{"b":1,"a":{"z":9007199254740993,"A":1.0e5}}],"model":"guarded","messages":[{"role":"user"}],"stop":null}',
    b'{\r\n\t"model" :\t"prompted" ,\n"messages":[ {"role" : "assistant"} , {"role":"user","content":null}],"a":{}}',
    b'{"input":["a","b"],"model":"support","user":"\xc3\xa9"}',
]
_PIECES = [
    *(b'"model"', b'"model":"support"', b'"model":"org/other",', b',"model":"guarded"', b'"mod\\u0065l":"org/other",'),
    *(
        b'"m\\u006fdel"',
        b'"Model":"guarded",',
        b'"model\\u0000":"guarded",',
        b'"model ":"guarded",',
        b"\\/",
        b'"org\\/other"',
    ),
    *(
        b'"stream":true,',
        b'"stream":"true",',
        b'"str\\u0065am":true,',
        b'"stream_options":{},',
        b'"stream_options":null,',
    ),
    *(
        b'"include_usage":true',
        b'"messages":[],',
        b'"messages":[{"role":"system","content":"s"}],',
        b'"role":"system",',
    ),
    *(
        b'"rol\\u0065":"system",',
        b'"chat_template":"x",',
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b'\\"',
        b"\\\\",
        b'\\\\"',
        b":",
        b",",
    ),
    *(
        b"{}",
        b"[]",
        b'""',
        b" ",
        b"\n",
        b"\t",
        b"\r",
        b"\x0b",
        b"\x0c",
        b"\xc2\xa0",
        b"\xe2\x80\xa8",
        b"\0",
        b"\xef\xbb\xbf",
    ),
    *(
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0022",
        b"\\u005c",
        b"\\x22",
        b"NaN",
        b"-Infinity",
        b"1e999",
    ),
    *(
        b"0123",
        b"true",
        b"null",
        b"//",
        b"/*",
        b"*/",
        b"#",
        b"'",
        b"'model':'guarded',",
        b"\x7f",
        b"\x1b",
        b"[" * 300,
        b'{"a":' * 50,
    ),
]


def bodies(seed: int) -> Iterator[bytes]:
    """Without end."""
    chance = random.Random(seed)
    kept = list(_SOUND)
    while True:
        if chance.random() < 0.4:
            body = bytearray(_built(chance))
            mutations = chance.choice((0, 0, 0, 1))
        else:
            body = bytearray(chance.choice(kept if chance.random() < 0.3 else _SOUND))
            mutations = chance.choice((1, 1, 1, 2, 2, 3, 5, 9))
        for _ in range(mutations):
            _mutate(body, chance)
        yield bytes(body)
        if len(body) < 2000 and chance.random() < 0.05:
            kept.append(bytes(body))
            if len(kept) > 500:
                del kept[chance.randrange(len(_SOUND), len(kept))]


_KEYS = ["messages", "prompt", "stream", "stream_options", "n", "tools", "metadata", "Model", "model ", "x", "", "role"]
_ODD_KEYS = ["model", r"mod\u0065l", "stream", r"str\u0065am", "stream_options", "messages", r"a\/b", r"\""]
_SPACES = ["", "", "", " ", "\n", "\t ", "\r\n"]
_NAMES = [*MODELS, *MODELS, "nobody", r"org\/other", r"s\u0075pport"]
_SWITCHES = ["true", "true", "false", "null", "1", '"true"']
_TEXTS = ['""', '"a:b"', r'"\"model\":\"guarded\""', r'"{[\\"', r'"日本\ud83d\ude00"', '"model"']
_SCALARS = ["0", "-1.5e+300", "9007199254740993", "true", "false", "null", "{}", "[]"]
_ROLES = ["user", "user", "assistant", "system", "developer", "tool", "System"]


def _built(chance: random.Random) -> bytes:
    """A JSON object of parts that gateways look at, in any order, now and then twice or with escapes."""
    keys = [*chance.sample(_KEYS, chance.randrange(6)), "model"]
    if chance.random() < 0.15:
        keys.append(chance.choice(_ODD_KEYS))
    chance.shuffle(keys)

    def space() -> str:
        return chance.choice(_SPACES)

    def value(key: str) -> str:
        if key == "model":
            return f'"{chance.choice(_NAMES)}"'
        return chance.choice(_SWITCHES) if key == "stream" else _value(chance, 0)

    pairs = [f'{space()}"{key}"{space()}:{space()}{value(key)}{space()}' for key in keys]
    return f"{space()}{{{','.join(pairs)}}}{space()}".encode()


def _value(chance: random.Random, depth: int) -> str:
    kind = chance.randrange(8 if depth < 4 else 5)
    if kind < 3:
        return chance.choice(_TEXTS)
    if kind < 5:
        return chance.choice(_SCALARS)
    if kind == 5:
        content = _value(chance, depth + 1)
        return f'[{{"role":"{chance.choice(_ROLES)}","content":{content}}},{{"role":"user"}}]'
    parts = [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return f"[{', '.join(parts)}]"
    keys = ["model", "include_usage", "role", "stream", "content", "x"]
    return "{" + ",".join(f'"{chance.choice(keys)}": {part}' for part in parts) + "}"


def _mutate(body: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(body) + 1)
    kind = chance.random()
    if kind < 0.5:
        if chance.random() < 0.6:  # between two parts, where it may still be JSON
            marks = [n + 1 for n, byte in enumerate(body) if byte in b"{[,:"] or [at]
            at = chance.choice(marks)
        body[at:at] = chance.choice(_PIECES)
    elif kind < 0.6:
        body[at : at + 1] = bytes([chance.randrange(256)])
    elif kind < 0.7:
        del body[at : at + chance.choice((1, 1, 2, 5, 20))]
    elif kind < 0.8:
        other = chance.choice(_SOUND)
        begin = chance.randrange(len(other))
        body[at:at] = other[begin : begin + chance.randrange(1, 60)]
    elif kind < 0.9:
        begin = chance.randrange(len(body) + 1)
        body[at:at] = body[begin : begin + chance.randrange(1, 40)]
    elif kind < 0.94:
        del body[at:]
    else:
        old, new = chance.sample([m.encode() for m in MODELS], 2)
        body[:] = body.replace(old, new, 1)


class Pairs(list[tuple[str, Any]]):
    """An object with its keys in order, all of them."""

    def all(self, key: str) -> list[Any]:
        return [value for name, value in self if name == key]


class InvalidError(ValueError):
    """No JSON object."""


@dataclass(frozen=True)
class Reading:
    """What a parser reads."""

    pairs: Pairs

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Raises InvalidError."""
        try:
            read = json.loads(body, object_pairs_hook=Pairs, parse_float=str, parse_int=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise InvalidError(str(error)) from error
        if not isinstance(read, Pairs):
            raise InvalidError("no object")
        return cls(read)

    @property
    def model(self) -> str | None:
        """The one that is asked for; None where there is none, or more than one."""
        named = self.pairs.all("model")
        return named[0] if len(named) == 1 and isinstance(named[0], str) else None


class Sink(asyncio.Protocol):
    """One connection to a pod that answers everything at once, and remembers the bodies by x-request-id."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    def __init__(self, received: dict[int, bytes]) -> None:
        self._received, self._buffer = received, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            headers = self._buffer[:head].lower()
            end = head + 4 + _number(headers, b"\r\ncontent-length: ")
            if len(self._buffer) < end:
                return
            number = _number(headers, b"\r\nx-request-id: ")
            assert number not in self._received, "a request came twice"
            self._received[number] = self._buffer[head + 4 : end]
            self._buffer = self._buffer[end:]
            self._transport.write(self.ANSWER)


@dataclass
class SinkPod:
    """A pod; `async with SinkPod() as pod:`."""

    received: dict[int, bytes] = field(default_factory=dict)
    address: str = ""
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Sink(self.received), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()


def _number(head: bytes, name: bytes) -> int:
    at = head.find(name)
    return int(head[at + len(name) :].split(b"\r", 1)[0]) if at >= 0 else 0


async def send_all(port: int, sent: Sequence[bytes], *, first: int = 0, connections: int = 4) -> dict[int, int]:
    """Sends all of them, a number at a time on each connection; gives the status of each by its number.

    HTTP/2, because Envoy ends a connection of HTTP/1.1 after every 400. HTTP itself is sound, so that a connection or a
    stream that ends early is a failure: ConnectionError.
    """
    loop, told = asyncio.get_running_loop(), dict[int, int]()
    left = iter(range(first, first + len(sent)))
    clients = [_Client(left, sent, first, told, loop.create_future()) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda c=client: c, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(client.done for client in clients))
    return told


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY, _WINDOW = 0, 1, 3, 4, 7, 8
_STATUSES = {0x88: 200, 0x8C: 400, 0x8D: 404, 0x8E: 500}
"""As HPACK's static table has them; every other one is a failure here."""
_PATH = b"/v1/chat/completions"
_AT_ONCE = 16


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One of HTTP/2's."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK, as it stands."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


POST = b"\x83\x86\x41\x01x\x04"
"""Method, scheme (http), authority (x), and that a path follows; by HPACK's static table."""


class _Client(asyncio.Protocol):
    def __init__(
        self,
        left: Iterator[int],
        sent: Sequence[bytes],
        first: int,
        told: dict[int, int],
        done: asyncio.Future[None],
    ) -> None:
        self._left, self._sent, self._first, self._told, self.done = left, sent, first, told, done
        self._buffer, self._stream = b"", 1
        self._asked: dict[int, int] = {}
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        most = struct.pack(">I", 2**31 - 1 - 65_535)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0) + frame(_WINDOW, 0, 0, most))
        for _ in range(_AT_ONCE):
            self._ask()

    def _ask(self) -> None:
        number = next(self._left, None)
        if number is None:
            if not self._asked and not self.done.done():
                self.done.set_result(None)
                self._transport.close()
            return
        stream, self._stream = self._stream, self._stream + 2
        self._asked[stream] = number
        path = bytes([len(_PATH)]) + _PATH
        headers = frame(_HEADERS, 4, stream, POST + path + literal(b"x-request-id", str(number).encode()))
        self._transport.write(headers + frame(_DATA, 1, stream, self._sent[number - self._first]))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while at + 9 <= len(self._buffer):
            end = at + 9 + int.from_bytes(self._buffer[at : at + 3], "big")
            if end > len(self._buffer):
                break
            kind, flags = self._buffer[at + 3], self._buffer[at + 4]
            self._frame(kind, flags, int.from_bytes(self._buffer[at + 5 : at + 9], "big"), self._buffer[at + 9 : end])
            at = end
        self._buffer = self._buffer[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_RESET, _GOAWAY):
            self._fail(f"frame {kind} {payload!r}")
        elif kind == _SETTINGS and not flags & 1:
            self._transport.write(frame(_SETTINGS, 1, 0))
        elif kind == _HEADERS:
            status = payload.lstrip(bytes(range(0x20, 0x40)))[0]  # behind changes of the table's size
            self._told[self._asked[stream]] = _STATUSES.get(status, -status)
        if kind in (_HEADERS, _DATA) and flags & 1:
            del self._asked[stream]
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection ended")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            waiting = [self._sent[number - self._first] for number in self._asked.values()]
            self.done.set_exception(ConnectionError(f"{why}; under way: {waiting!r}"))
