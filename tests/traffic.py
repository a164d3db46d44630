"""Continuous traffic: sends chat requests at a steady rate and records the fate of every one.

Fates:
- `ok`: 200 and the whole answer came (a stream: up to `data: [DONE]`);
- `failed`: refused, or the connection ended, before an answer began;
- `cut`: 200 came, the rest did not. `ttft` None then says that not even the first byte of the answer came.

Rules: bounded in rate, number and time; a request that has begun is waited for when the traffic stops; a request that
could not be sent in time because too many are open counts as `skipped`, never silently as fewer requests.

In asynchronous tests `async with Traffic(url, ...) as traffic:`, in others `with traffic_in_thread(url, ...)`.
`python -m tests.traffic URL MODEL` sends some by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

Fate = Literal["ok", "failed", "cut"]


@dataclass(frozen=True)
class Record:
    """One request. Times in seconds; `start` is Unix time, `ttft` and `duration` count from it."""

    start: float
    model: str
    stream: bool
    fate: Fate
    status: int | None = None
    revision: str | None = None
    """The answer's header x-revision."""
    served_by: str | None = None
    """The answer's own `model`: the engine's name of what answered."""
    ttft: float | None = None
    duration: float = 0.0
    bytes: int = 0
    text: str = ""
    """What was generated; of a failure, what was said instead."""
    longest_gap: float = 0.0
    """The longest silence between two chunks of a stream."""

    @property
    def end(self) -> float:
        return self.start + self.duration


@dataclass(frozen=True)
class Load:
    """What is sent."""

    models: Sequence[str]
    rate: float = 20.0
    """Requests per second."""
    streaming: float = 0.5
    """Share of requests that stream, 0 to 1."""
    max_open: int = 200
    """Requests at a time; above, new ones are skipped and counted."""
    max_requests: int = 100_000
    max_seconds: float = 600.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the body, for example max_tokens."""
    prompt: str = "What is the capital of France?"
    timeout: float = 120.0
    """Seconds that one request may take."""
    path: str = "/v1/chat/completions"
    tls: ssl.SSLContext | None = None
    """Whom to believe, where the URL is https."""
    fresh_connections: bool = False
    """A connection of its own for every request, as from many clients."""


@dataclass(frozen=True)
class Summary:
    """What came of it."""

    requests: int
    ok: int
    failed: int
    cut: int
    skipped: int
    by_revision: Mapping[str, int]
    by_status: Mapping[str, int]
    complaints: Sequence[str]
    """The first few failures in words."""
    ttft_p50: float | None = None
    ttft_p99: float | None = None

    def __str__(self) -> str:
        words = [f"{self.requests} requests: {self.ok} ok, {self.failed} failed, {self.cut} cut"]
        words += [f"{self.skipped} skipped"] if self.skipped else []
        words += [f"revisions {dict(self.by_revision)}", *self.complaints]
        return "; ".join(words)


def summarise(records: Sequence[Record], skipped: int = 0) -> Summary:
    """Counts over records."""
    fates = Counter(r.fate for r in records)
    firsts = sorted(r.ttft for r in records if r.ttft is not None)
    return Summary(
        requests=len(records),
        ok=fates["ok"],
        failed=fates["failed"],
        cut=fates["cut"],
        skipped=skipped,
        by_revision=dict(Counter(r.revision or "-" for r in records if r.fate == "ok")),
        by_status=dict(Counter(str(r.status) for r in records)),
        complaints=[
            f"{r.fate} at {r.start:.3f} +{r.duration:.3f} s: {r.status} {r.text[:160]}"
            for r in records
            if r.fate != "ok"
        ][:5],
        ttft_p50=firsts[len(firsts) // 2] if firsts else None,
        ttft_p99=firsts[int(len(firsts) * 0.99)] if firsts else None,
    )


@dataclass
class _Answer:
    """What has come of one request so far."""

    status: int | None = None
    revision: str | None = None
    served_by: str | None = None
    ttft: float | None = None
    bytes: int = 0
    text: str = ""
    longest_gap: float = 0.0
    whole: bool = False


class Traffic:
    """Requests at a steady rate to one URL, in the running event loop."""

    def __init__(self, url: str, load: Load) -> None:
        """`url` without /v1."""
        self._url = url.rstrip("/")
        self.load = load
        self.records: list[Record] = []
        """Of requests that have ended, in the order in which they did."""
        self.skipped = 0
        self._open: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()
        self._clock: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, force_close=self.load.fresh_connections, ssl=self.load.tls or True)
        timeout = aiohttp.ClientTimeout(total=self.load.timeout, sock_connect=5)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._clock = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Send no more, wait for what is open."""
        self._stopping.set()
        if self._clock is not None:
            await self._clock
        if self._open:
            await asyncio.wait(self._open)
        if self._session is not None:
            await self._session.close()

    async def wait_for(self, count: int, within: float = 60.0) -> None:
        """Until `count` requests more than now have ended."""
        wanted = len(self.records) + count
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(lambda: len(self.records) >= wanted)

    def summary(self, since: float = 0.0) -> Summary:
        """Over the requests that began at or after `since` (Unix time) and have ended."""
        return summarise([r for r in list(self.records) if r.start >= since], self.skipped)

    async def _run(self) -> None:
        load, begin = self.load, time.monotonic()
        for number in range(load.max_requests):
            due = begin + number / load.rate
            if due - begin > load.max_seconds:
                return
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, due - time.monotonic())):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            if self._stopping.is_set():
                return
            if len(self._open) >= load.max_open:
                self.skipped += 1
                continue
            # spread evenly: of every ten requests at 0.3, three stream
            stream = int((number + 1) * load.streaming) > int(number * load.streaming)
            task = asyncio.create_task(self._one(load.models[number % len(load.models)], stream))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _one(self, model: str, stream: bool) -> None:
        start, begin, answer = time.time(), time.monotonic(), _Answer()
        try:
            await self._ask(model, stream, answer, begin)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            answer.text = f"{answer.text} {type(error).__name__}: {error}".strip()
        fate: Fate = "ok" if answer.whole else "cut" if answer.status == 200 else "failed"
        self.records.append(
            Record(
                start=start,
                model=model,
                stream=stream,
                fate=fate,
                status=answer.status,
                revision=answer.revision,
                served_by=answer.served_by,
                ttft=answer.ttft,
                duration=time.monotonic() - begin,
                bytes=answer.bytes,
                text=answer.text,
                longest_gap=answer.longest_gap,
            )
        )
        async with self._changed:
            self._changed.notify_all()

    async def _ask(self, model: str, stream: bool, answer: _Answer, begin: float) -> None:
        assert self._session is not None
        message = [{"role": "user", "content": self.load.prompt}]
        body = {"model": model, "messages": message, "stream": stream, **self.load.body}
        headers = {"content-type": "application/json", **self.load.headers}
        async with self._session.post(self._url + self.load.path, data=json.dumps(body), headers=headers) as response:
            answer.status = response.status
            answer.revision = response.headers.get("x-revision")
            if response.status != 200:
                answer.text = (await response.text())[:500]
            elif stream:
                await self._read_stream(response, answer, begin)
            else:
                await self._read_whole(response, answer, begin)

    @staticmethod
    async def _read_whole(response: aiohttp.ClientResponse, answer: _Answer, begin: float) -> None:
        body = await response.read()
        answer.ttft, answer.bytes = time.monotonic() - begin, len(body)
        told = json.loads(body)
        answer.served_by = told.get("model")
        answer.text = str((told.get("choices") or [{}])[0].get("message", {}).get("content") or "")
        answer.whole = True

    @staticmethod
    async def _read_stream(response: aiohttp.ClientResponse, answer: _Answer, begin: float) -> None:
        last = None
        async for line in response.content:
            answer.bytes += len(line)
            if not line.startswith(b"data:"):
                continue
            now = time.monotonic()
            answer.ttft = now - begin if answer.ttft is None else answer.ttft
            answer.longest_gap = max(answer.longest_gap, now - last if last is not None else 0.0)
            last = now
            payload = line[5:].strip()
            if payload == b"[DONE]":
                answer.whole = True
                continue
            told = json.loads(payload)
            if "error" in told:
                answer.text = json.dumps(told["error"])[:500]
                answer.whole = False
                return
            answer.served_by = told.get("model", answer.served_by)
            for choice in told.get("choices") or []:
                answer.text += str(choice.get("delta", {}).get("content") or "")


class TrafficThread:
    """The same from a thread of its own, for tests that are not asynchronous."""

    def __init__(self, url: str, load: Load) -> None:
        self._ready, self._stop = threading.Event(), threading.Event()
        self._traffic: Traffic | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(url, load)), name="traffic", daemon=True)

    async def _main(self, url: str, load: Load) -> None:
        async with Traffic(url, load) as self._traffic:
            self._ready.set()
            await asyncio.to_thread(self._stop.wait)

    @property
    def records(self) -> list[Record]:
        return list(self._traffic.records) if self._traffic else []

    def summary(self, since: float = 0.0) -> Summary:
        assert self._traffic is not None
        return self._traffic.summary(since)

    def wait_for(self, count: int, within: float = 60.0) -> None:
        """Until `count` requests more than now have ended."""
        wanted, deadline = len(self.records) + count, time.monotonic() + within
        while len(self.records) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.records) - wanted + count} of {count} requests in {within} s")
            time.sleep(0.02)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Send no more, wait for what is open."""
        self._stop.set()
        self._thread.join()


@contextmanager
def traffic_in_thread(url: str, load: Load) -> Iterator[TrafficThread]:
    """Traffic for the length of the block."""
    traffic = TrafficThread(url, load)
    traffic.start()
    try:
        yield traffic
    finally:
        traffic.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Send chat requests and say what became of them.")
    parser.add_argument("url")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streaming", type=float, default=0.5)
    given = parser.parse_args()
    load = Load(given.models, rate=given.rate, max_seconds=given.seconds, streaming=given.streaming)

    async def run() -> Summary:
        async with Traffic(given.url, load) as traffic:
            await asyncio.sleep(given.seconds)
        return traffic.summary()

    print(asyncio.run(run()))


if __name__ == "__main__":
    main()
