"""Engines that batch as benchmarks/batching.py says, each behind a port of its own, all in one process.

A chat request says by `max_tokens` how long its answer is and by `prompt_tokens`, which no real engine knows, how long
its prompt is. Every answer is a stream: its head comes at once, as vLLM's does, and then only what is measured, the
first token, which says in `system_fingerprint` which engine it is, and the end. The head has the engine's load as ORCA
has it (`endpoint-load-metrics`), `/metrics` has it in vLLM's names.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import cast

from benchmarks.batching import Engine, Load, Recent, Request, Speed, What, busy
from benchmarks.processes import beside

SMOOTHED = 1.0
"""Seconds that ORCA's figures look back: what one request finds is no load yet."""

_BODY = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
_METRIC = re.compile(r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc) (\S+)$", re.MULTILINE)


def metrics_of(load: Load) -> str:
    """As vLLM tells it."""
    return (
        f"vllm:num_requests_running {load.running}\n"
        f"vllm:num_requests_waiting {load.waiting}\n"
        f"vllm:kv_cache_usage_perc {load.cache}\n"
    )


def load_of(metrics: str) -> Load:
    """The other way round; KeyError where something is not told."""
    told = {name: float(value) for name, value in _METRIC.findall(metrics)}
    running, waiting = int(told["num_requests_running"]), int(told["num_requests_waiting"])
    return Load(running, waiting, told["kv_cache_usage_perc"])


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


class _Pod:
    """One engine in real time."""

    def __init__(self, number: int, speed: Speed) -> None:
        self._loop = asyncio.get_running_loop()
        self._engine, self._places = Engine(speed), speed.places
        self._recent = Recent(SMOOTHED)
        self._first = _chunk("data: " + json.dumps({"system_fingerprint": str(number)}) + "\n\n")
        self._last = _chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
        self._waiting: dict[int, asyncio.Transport] = {}
        self._asked = 0
        self._timer: asyncio.TimerHandle | None = None

    def metrics(self) -> str:
        self._pass()
        return metrics_of(self._engine.load())

    def ask(self, request: Request, transport: asyncio.Transport) -> None:
        """Answer there, in time."""
        self._pass()
        now, key = self._loop.time(), self._asked
        self._asked += 1
        self._waiting[key] = transport
        self._engine.arrive(now, key, request)
        self._recent.seen(now, busy(self._engine.load(), self._places))
        # Envoy takes no report without both; and weighs by their ratio
        report = {"application_utilization": self._recent.value, "rps_fractional": self._recent.per_second}
        head = (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            f"endpoint-load-metrics: JSON {json.dumps(report)}\r\n\r\n"
        )
        transport.write(head.encode())
        self._wake()

    def _wake(self) -> None:
        if self._timer is None and self._engine.next_at is not None:
            self._timer = self._loop.call_at(self._engine.next_at, self._due)

    def _due(self) -> None:
        self._timer = None
        self._pass()
        self._wake()

    def _pass(self) -> None:
        for told in self._engine.advance(self._loop.time()):
            if told.what is What.FIRST:
                self._waiting[told.key].write(self._first)
            else:
                self._waiting.pop(told.key).write(self._last)


class _Connection(asyncio.Protocol):
    """Requests one after the other."""

    def __init__(self, pod: _Pod) -> None:
        self._pod, self._buffer = pod, b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _BODY.search(head)
        wanted = int(length[1]) if length else 0
        if not found or len(body) < wanted:
            return
        self._buffer = b""
        if head.startswith(b"GET"):
            text = self._pod.metrics()
            self._transport.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
            return
        asked = json.loads(body)
        self._pod.ask(Request(asked["prompt_tokens"], asked["max_tokens"]), self._transport)


async def _serve(pods: Sequence[tuple[int, int, Speed]]) -> None:
    loop = asyncio.get_running_loop()
    for port, number, speed in pods:
        pod = _Pod(number, speed)
        await loop.create_server(lambda p=pod: _Connection(p), "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.Event().wait()


def engines(pods: Sequence[tuple[int, int, Speed]]) -> AbstractContextManager[int]:
    """The process, with an engine for each (port, number, speed); gives its id."""
    return beside(_serve, pods)
