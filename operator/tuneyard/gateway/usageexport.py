"""Records of usage on their way out of the cluster: JSON lines in objects of a bucket.

Rules:
- an object holds the records of one stretch of one of Envoy's files (requestfiles.py), of one day (UTC), and is called
  after it: `dt=YYYY-MM-DD/<gateway>-<run>-<file>-<offset>.jsonl`. `run` is made once for the volume with the files;
- before an object is written, the stretch is written down; so a process that comes after a killed one writes the same
  bytes under the same key, and each record is in the bucket once. A record's own id is made of the same: run, file and
  offset of its line;
- it is written every INTERVAL seconds if there is something to write, and at once when RECORDS wait;
- how an object gets there, and what happens while it cannot: bucketwriting.py. What waits are the files themselves;
- no record appears in a log or in an error.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge

from tuneyard.gateway.background import ended
from tuneyard.gateway.bucketwriting import BucketWriting, Writer
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.requestfiles import Place, RequestFiles
from tuneyard.gateway.usage import AT_A_TIME, records_of
from tuneyard.systems.envoy.requestlog import line_of

INTERVAL = 60.0
RECORDS = 1000
LEAVING = 10.0
"""Seconds that the last writes may take when the process ends."""
STATE = "usage-export.json"
_LOOK = 1.0
_PIECE = 2 << 20
_SHORTEST = 150
"""Bytes that a line has at least."""
_ROOM = 4096

_log = logging.getLogger(__name__)


class UsageExportMetrics:
    """What is told of the export; made only where there is one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "tuneyard_gateway_usage"
        self.exported = Counter(f"{prefix}_exported", "Records of usage written to the bucket.", registry=registry)
        self.dropped = Counter(
            f"{prefix}_dropped_files",
            "Files of usage whose records were lost because the bucket took none for too long.",
            registry=registry,
        )
        self.failing = Gauge(
            f"{prefix}_failing_seconds", "How long no record could be written, 0 while it works.", registry=registry
        )


class _Stretch(NamedTuple):
    """What one object is made of; without lines: there is nothing up to `end`."""

    begin: Place
    end: Place
    lines: list[bytes]


class UsageExport:
    """Writes records away in its own time."""

    def __init__(
        self,
        gateway: str,
        files: RequestFiles,
        state: Path,
        open_writer: Callable[[], Writer],
        metrics: UsageExportMetrics,
    ) -> None:
        """`state`: how the files of how far it is are called; `open_writer` is called in a thread."""
        self._gateway = gateway
        self._files = files
        self._state = KeptState(state, _ROOM)
        self._metrics = metrics
        self._bucket = BucketWriting("usage", open_writer)
        self._run_name, self.place, self._until = self._restored()
        files.know(self.place)
        self._task: asyncio.Task[None] | None = None
        metrics.failing.set_function(self._bucket.failing)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    async def close(self, within: float = LEAVING) -> None:
        """Write what is there, as far as that is possible in so many seconds.

        The rest stays for the next process, if there is one: with the pod its volume goes, and what is on it.
        """
        await ended(self._task)
        try:
            async with asyncio.timeout(within):
                await self.write_all()
        except TimeoutError:
            _log.error(
                "%d bytes of usage were not exported before the end of this process", self._files.after(self.place)
            )
        except OSError as error:
            _log.error("usage was not exported before the end of this process: %s", error)
        self._bucket.close()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(_LOOK)
            try:
                if clock() - last >= INTERVAL or self._until is not None:
                    await self.write_all()
                    last = clock()
                elif self._many():
                    await self.write_all(least=RECORDS)
            except OSError as error:
                _log.error("usage cannot be exported, and is tried again: %s", error)

    def _many(self) -> bool:
        if self.place.number == self._files.newest() and self._files.size() - self.place.offset < RECORDS * _SHORTEST:
            return False
        return len(self._files.read(self.place, _PIECE).lines) >= RECORDS

    async def write_all(self, least: int = 1) -> None:
        """Until fewer than `least` records wait."""
        while (found := self._next(least)) is not None:
            day = _day(found.lines)
            records, body = await self._object(found)
            if records:
                self._keep(found.end)
                name = f"{self._gateway}-{self._run_name}-{found.begin.number}-{found.begin.offset}.jsonl"
                await self._bucket.put(f"dt={day}/{name}", body)
                self._metrics.exported.inc(records)
            self.place = found.end
            self._files.know(self.place)
            self._keep(None)

    def _next(self, least: int) -> _Stretch | None:
        """What is to be written now: the stretch that was written down, or the next one."""
        piece = self._files.read(self.place, _PIECE)
        if piece.end == piece.begin:
            return None
        if not piece.lines:
            self._metrics.dropped.inc(piece.lost)
            return _Stretch(piece.begin, piece.end, [])
        if self._until is not None:
            return _Stretch(piece.begin, self._until, _within(piece.lines, self._until.offset - piece.begin.offset))
        if len(piece.lines) < least and piece.begin.number == self._files.newest():
            return None
        lines = piece.lines[:RECORDS]
        day = _day(lines)
        lines = list(takewhile(lambda line: _day([line]) in (day, ""), lines))
        end = Place(piece.begin.number, piece.begin.offset + sum(map(len, lines)) + len(lines))
        return _Stretch(piece.begin, end, lines)

    async def _object(self, stretch: _Stretch) -> tuple[int, bytes]:
        """How many records its lines make, and those."""
        made, place = list[bytes](), stretch.begin
        for at in range(0, len(stretch.lines), AT_A_TIME):
            lines = stretch.lines[at : at + AT_A_TIME]
            records, _ = records_of(lines, self._gateway, place, self._run_name)
            made += [record.line() for record in records]
            place = Place(place.number, place.offset + sum(map(len, lines)) + len(lines))
            await asyncio.sleep(0)
        return len(made), b"".join(made)

    # -- what outlives the process ---------------------------------------------------------------------------------

    def _keep(self, until: Place | None) -> None:
        self._until = until
        written = {"run": self._run_name, "place": list(self.place), "until": list(until) if until else None}
        self._state.write(written)

    def _restored(self) -> tuple[str, Place, Place | None]:
        with suppress(OSError):  # where there is no room now, it is taken with the first write
            self._state.reserve()
        try:
            if self._state.spoiled:
                raise ValueError("it was written by something else")
            told = self._state.read()
            if told is not None:
                until = Place(*map(int, told["until"])) if told["until"] else None
                return str(told["run"]), Place(*map(int, told["place"])), until
        except (ValueError, KeyError, TypeError) as error:
            _log.error("how far usage was exported cannot be read, and what is there is exported again: %s", error)
        start = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return f"{start}{secrets.token_hex(3)}", Place(min(self._files.rotated(), default=self._files.newest())), None


def _within(lines: list[bytes], size: int) -> list[bytes]:
    """The first lines, that have so many bytes with their line feeds."""
    found, total = [], 0
    for line in lines:
        if total >= size:
            break
        found.append(line)
        total += len(line) + 1
    return found


def _day(lines: list[bytes]) -> str:
    """The day of the first line that has one."""
    for line in lines:
        with suppress(ValueError):
            return line_of(line).time[:10]
    return ""
