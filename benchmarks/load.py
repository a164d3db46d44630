"""A load generator and an upstream that are fast enough to measure a proxy with, without installing anything.

Both speak just as much HTTP/1.1 as the measurement needs: fixed requests on kept connections, fixed answers. Each
connection has one request open at a time (a closed loop), as `wrk` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.processes import beside

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "engine",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "total_tokens": 203, "completion_tokens": 3},
    }
).encode()
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER)
) + _ANSWER


def body_of(model: str, size: int) -> bytes:
    """A chat request of exactly `size` bytes."""
    shell = json.dumps({"model": model, "messages": [{"role": "user", "content": ""}], "max_tokens": 16})
    return shell.replace('"content": ""', f'"content": "{"x" * (size - len(shell))}"').encode()


def request_of(body: bytes) -> bytes:
    """The request as it goes over the wire."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer client\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True)
class Measured:
    """Latencies in milliseconds, sorted; `errors` are answers other than 200."""

    latencies: list[float]
    seconds: float
    errors: int

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency that a share (0 to 1) of the answers stays below."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class _Client(asyncio.Protocol):
    """One connection; sends the next request when an answer is complete."""

    def __init__(self, request: bytes, until: float, latencies: list[float], done: asyncio.Event) -> None:
        self._request, self._until, self._latencies, self._done = request, until, latencies, done
        self._buffer, self._wanted, self.sent, self.errors = b"", 0, 0.0, 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._wanted:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            self._wanted = head + 4 + _content_length(self._buffer[:head])
        if len(self._buffer) < self._wanted:
            return
        now = time.perf_counter()
        self._latencies.append((now - self.sent) * 1000)
        self.errors += not self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer, self._wanted = b"", 0
        if now >= self._until:
            self._transport.close()
            return
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.errors += exc is not None
        self._done.set()


class _Server(asyncio.Protocol):
    """Answers every request as soon as its body is there."""

    def __init__(self) -> None:
        self._missing, self._buffer = 0, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._buffer += data
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            self._missing = head + 4 + _content_length(self._buffer[:head]) - len(self._buffer)
            self._buffer = b""
        if not self._missing:
            self._transport.write(_RESPONSE)


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", port)
    await server.serve_forever()


def wait_until_open(port: int) -> None:
    """Until somebody listens there; OSError after 20 seconds."""
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextmanager
def upstream(port: int) -> Iterator[None]:
    """An upstream in a process of its own."""
    with beside(_serve, port):
        wait_until_open(port)
        yield


async def _load(port: int, request: bytes, connections: int, seconds: float) -> Measured:
    loop, latencies = asyncio.get_running_loop(), list[float]()
    begin = time.perf_counter()
    clients: list[_Client] = []
    ends = [asyncio.Event() for _ in range(connections)]
    for done in ends:
        client = _Client(request, begin + seconds, latencies, done)
        await loop.create_connection(lambda c=client: c, "127.0.0.1", port)  # type: ignore[misc]
        clients.append(client)
    async with asyncio.timeout(seconds + 30):
        for done in ends:
            await done.wait()
    elapsed = time.perf_counter() - begin
    return Measured(sorted(latencies), elapsed, sum(c.errors for c in clients))


def measure(port: int, request: bytes, *, connections: int, seconds: float) -> Measured:
    """Send the request over and over to 127.0.0.1:port."""
    measured: Measured = uvloop.run(_load(port, request, connections, seconds))
    return measured


async def once(port: int, request: bytes, connections: int, within: float, told: Path) -> None:
    """Send the request once over each of so many connections; writes when each answer had come, by `time.perf_counter`,
    and how many errors there were, as JSON to `told`.
    """
    loop, clients = asyncio.get_running_loop(), list[tuple[_Client, list[float], asyncio.Event]]()
    for _ in range(connections):
        latencies, done = list[float](), asyncio.Event()
        client = _Client(request, 0.0, latencies, done)
        await loop.create_connection(lambda c=client: c, "127.0.0.1", port)  # type: ignore[misc]
        clients.append((client, latencies, done))
    async with asyncio.timeout(within):
        for _, _, done in clients:
            await done.wait()
    ends = [client.sent + latency / 1000 for client, latencies, _ in clients for latency in latencies]
    errors = sum(client.errors for client, _, _ in clients) + connections - len(ends)
    told.with_suffix(".new").write_text(json.dumps({"ends": ends, "errors": errors}))
    told.with_suffix(".new").rename(told)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
