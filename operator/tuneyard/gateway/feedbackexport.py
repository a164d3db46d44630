"""Feedback records on their way out of the cluster: JSON lines in objects of a bucket.

Rules:
- an object is `dt=YYYY-MM-DD/<gateway>-<start>-<n>.jsonl`: the day of its records (UTC), the gateway, when its process
  started with a random end, and a number. So no process writes over another's object, nor over an earlier one of its
  own;
- it is written every EVERY seconds if there is something to write, and at once when RECORDS wait;
- how an object gets there, and what happens while it cannot: bucketwriting.py;
- requests never wait for the bucket. What waits is bounded by MOST_BYTES; beyond that the oldest goes, and is counted;
- no record appears in a log or in an error.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge

from tuneyard.api.feedback import FeedbackRecord
from tuneyard.gateway.background import ended
from tuneyard.gateway.bucketwriting import BucketWriting, Writer

EVERY = 60.0
RECORDS = 1000
MOST_BYTES = 16 << 20
"""Of records that wait: 60,000 scores, or 3,800 of the longest texts."""
LEAVING = 10.0
"""Seconds that the last writes may take when the process ends."""

_log = logging.getLogger(__name__)


class FeedbackMetrics:
    """What is told of the export; made only where there is one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "tuneyard_gateway_feedback"
        self.exported = Counter(f"{prefix}_exported", "Feedback records written to the bucket.", registry=registry)
        self.dropped = Counter(
            f"{prefix}_dropped", "Feedback records lost because the bucket took none for too long.", registry=registry
        )
        self.waiting = Gauge(f"{prefix}_waiting", "Feedback records that wait to be written.", registry=registry)
        self.failing = Gauge(
            f"{prefix}_failing_seconds",
            "How long no record could be written, 0 while it works.",
            registry=registry,
        )


@dataclass(frozen=True)
class _Object:
    """What one write holds; it stays the same until it is written."""

    name: str
    body: bytes
    records: int


class FeedbackExport:
    """Takes records and writes them away in its own time."""

    def __init__(self, gateway: str, open_writer: Callable[[], Writer], metrics: FeedbackMetrics) -> None:
        """`open_writer` is called in a thread, at the first write and after each failure."""
        self._bucket = BucketWriting("feedback", open_writer)
        self._metrics = metrics
        start = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._names = f"{gateway}-{start}{secrets.token_hex(3)}"
        self._number = 0
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._object: _Object | None = None
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        metrics.waiting.set_function(lambda: float(self.waiting))
        metrics.failing.set_function(self._bucket.failing)

    @property
    def waiting(self) -> int:
        """How many records are not written yet."""
        return len(self._waiting) + (self._object.records if self._object else 0)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    def add(self, record: FeedbackRecord) -> None:
        """Take one record; never waits."""
        line = record.line()
        self._waiting.append((record.time[:10], line))
        self._bytes += len(line)
        while self._bytes > MOST_BYTES:
            self._bytes -= len(self._waiting.popleft()[1])
            self._metrics.dropped.inc()
        if len(self._waiting) >= RECORDS:
            self._full.set()

    async def close(self, within: float = LEAVING) -> None:
        """Write what waits, as far as that is possible in so many seconds; the rest is lost and counted."""
        await ended(self._task)
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._write_all()
        if self.waiting:
            self._metrics.dropped.inc(self.waiting)
            _log.error("%d feedback records were not written before the end of this process", self.waiting)
        self._bucket.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._full.wait()
            await self._write_all()

    async def _write_all(self) -> None:
        """Until nothing waits."""
        while (found := self._next()) is not None:
            await self._bucket.put(found.name, found.body)
            self._object = None
            self._metrics.exported.inc(found.records)

    def _next(self) -> _Object | None:
        """What is to be written now: the object that failed, or the next records of one day."""
        if self._object is None and self._waiting:
            day = self._waiting[0][0]
            lines: list[bytes] = []
            while self._waiting and self._waiting[0][0] == day and len(lines) < RECORDS:
                lines.append(self._waiting.popleft()[1])
            self._bytes -= sum(map(len, lines))
            self._number += 1
            self._object = _Object(f"dt={day}/{self._names}-{self._number}.jsonl", b"".join(lines), len(lines))
        if len(self._waiting) < RECORDS:
            self._full.clear()
        return self._object
