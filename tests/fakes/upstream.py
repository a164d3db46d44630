"""A model pod as gateways see it: an HTTP server that answers like an engine and remembers every byte it was sent.

Not an engine (tests/fakes/engine.py is one): it loads nothing and takes any model, unless `models` says which. A body
may say how the answer is to come: `stream`, `chunks` (number), `delay` (seconds between two), `first` (seconds before
the first), `size` (bytes of a whole answer), `comments` (whether a stream is kept alive by comments, one before every
token), `fails` (whether it ends in an error).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

Mode = Literal["answer", "close", "draining", "stopping", "error", "busy", "headers-then-close", "hang"]


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Upstream:
    """One pod; `async with Upstream("a") as pod:`."""

    name: str
    models: set[str] | None = None
    """Engine names that it knows; None: any."""
    mode: Mode = "answer"
    port: int = 0
    keep: int = 1000
    received: list[Received] = field(default_factory=list)
    """The newest `keep` requests."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by model."""
    arrived: dict[str, float] = field(default_factory=dict)
    """When the newest request of a model came, by `time.perf_counter`."""
    active: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """What an engine counts: `prompt` and `completion` of answers that it finished, `left` generated in others."""
    _server: asyncio.Server | None = None
    _connections: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()

    async def die(self) -> None:
        """As killed: the port is closed, every connection reset."""
        if self._server is None:
            return
        self._server.close()
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while (request := await _read(reader)) is not None:
                self.active += 1
                try:
                    if not await self._answer(request, writer):
                        break
                finally:
                    self.active -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a cancelled handler would end in asyncio's log
        finally:
            self._connections.pop(task)
            writer.close()

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False: the connection is to be closed."""
        if request.path == "/health":
            writer.write(_whole(200, b""))
            return True
        self.received.append(request)
        del self.received[: -self.keep]
        try:
            asked = json.loads(request.body)
        except ValueError:
            asked = {}
        model = str(asked.get("model"))
        self.asked[model] += 1
        self.arrived[model] = time.perf_counter()
        if self.mode == "close":
            return False
        if self.mode == "hang":
            await asyncio.Event().wait()  # until its connection is ended
        if self.mode == "headers-then-close":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            writer.write(_chunk(_event({"choices": [{"index": 0, "delta": {"content": "begun"}}]})))
            await writer.drain()
            await asyncio.sleep(0.05)
            return False
        refusal = self._refusal(model)
        if refusal is not None:
            writer.write(refusal)
        elif asked.get("stream"):
            await self._stream(asked, model, writer)
        else:
            await self._generate(asked)
            headers = "".join(f"{key}: {value}\r\n" for key, value in asked.get("headers", {}).items())
            answer = _embedding(model) if request.path == "/v1/embeddings" else self._completion(asked, model)
            writer.write(_whole(200, json.dumps(answer).encode(), headers))
            self._finished(answer["usage"])
        await writer.drain()
        return True

    async def _generate(self, asked: dict[str, Any]) -> None:
        """The time that a whole answer takes."""
        await asyncio.sleep(float(asked.get("first", 0)))

    def _finished(self, usage: dict[str, Any]) -> None:
        for kind in ("prompt", "completion"):
            self.tokens[kind] += usage[f"{kind}_tokens"]

    def _refusal(self, model: str) -> bytes | None:
        if self.mode == "draining":
            return _whole(503, b'{"error":{"message":"draining"}}', "x-tuneyard-draining: 1\r\n")
        if self.mode == "stopping":
            return _whole(503, b'{"error":{"message":"stopping"}}', "x-tuneyard-retry: engine-stopping\r\n")
        if self.mode == "busy":
            return _whole(503, b'{"error":{"message":"busy, try another instance","type":"ServiceUnavailableError"}}')
        if self.mode == "error":
            return _whole(500, b'{"error":{"message":"an error of the engine","type":"server_error"}}')
        if self.models is not None and model not in self.models:
            text = {"message": f"The model `{model}` does not exist.", "type": "NotFoundError", "code": 404}
            return _whole(404, json.dumps({"error": text}).encode())
        return None

    def _completion(self, asked: dict[str, Any], model: str) -> dict[str, Any]:
        content = "x" * int(asked["size"]) if "size" in asked else f"hello from {self.name}"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 11, "total_tokens": 14, "completion_tokens": 3, "prompt_tokens_details": None},
        }

    async def _stream(self, asked: dict[str, Any], model: str, writer: asyncio.StreamWriter) -> None:
        count, delay = int(asked.get("chunks", 4)), float(asked.get("delay", 0.02))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if asked.get("comments"):
            writer.write(_chunk(b": keep-alive\n\n"))
        await writer.drain()
        await asyncio.sleep(float(asked.get("first", 0)))
        common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": model}
        for number in range(count):
            if number:
                await asyncio.sleep(delay / 2)
                if asked.get("comments"):
                    writer.write(_chunk(b": keep-alive\n\n"))
                    await writer.drain()
                await asyncio.sleep(delay / 2)
            if writer.transport.is_closing():
                raise ConnectionResetError
            self.tokens["left"] += 1
            delta = {"index": 0, "delta": {"content": f"{number} "}}
            writer.write(_chunk(_event({**common, "choices": [delta]})))
            await writer.drain()
        if asked.get("fails"):
            writer.write(_chunk(_event({"error": {"message": "out of memory", "type": "InternalServerError"}})))
        usage = {"prompt_tokens": 7, "total_tokens": 7 + count, "completion_tokens": count}
        self.tokens["left"] -= count
        self._finished(usage)
        if (asked.get("stream_options") or {}).get("include_usage"):
            writer.write(_chunk(_event({**common, "choices": [], "usage": usage})))
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _embedding(model: str) -> dict[str, Any]:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}
    return {
        "object": "list",
        "model": model,
        "data": [vector],
        "usage": {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": None},
    }


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _whole(status: int, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _read(reader: asyncio.StreamReader) -> Received | None:
    """The next request of a connection, None at its end."""
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while header := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
        key, _, value = header.partition(":")
        headers[key.lower()] = value.strip()
    if "content-length" in headers:
        return Received(method, path, headers, await reader.readexactly(int(headers["content-length"])))
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Received(method, path, headers, body)
