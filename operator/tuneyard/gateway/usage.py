"""Tokens as this gateway has counted them: from the lines that Envoy writes, into sums for Prometheus.

Rules:
- each line counts once, whenever this process ends: sums and the place up to which they were read are one file, written
  beside and then renamed. Numbers that are not in it are shown to nobody, so that a process that comes after a killed
  one never shows less;
- Envoy goes on writing while no process is there, and the next one reads what it missed;
- records for the bucket come from the same lines, at their own pace (usageexport.py). A file stays until both have read
  it, and those that wait for the bucket have at most MOST_BYTES: beyond that the oldest go, and are counted;
- requests wait for none of that: reading takes a turn of the event loop for so many lines, and writing the sums so much
  of the time.
What is lost: what Envoy has not flushed when it is killed (a second at most), and everything when the node is lost. The
volume is memory.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from tuneyard.api.usage import UsageRecord
from tuneyard.gateway.usagefiles import Place, UsageFiles
from tuneyard.planning.usage import Tokens, UsageKey, UsageSums, key_of, tokens_of
from tuneyard.systems.envoy.usage import usage_record

EVERY = 0.5
SHARE = 0.05
"""Of the time, at most, is spent writing sums."""
ROTATE_BYTES = 4 << 20
MOST_BYTES = 64 << 20
"""Of files that wait for the bucket: about 130,000 requests."""
AT_A_TIME = 100
"""Lines without a turn for others: about two milliseconds."""
_PIECE = 256 << 10
_PIECES = 16
"""After so many of them sums are written, however much there still is."""
FLUSHING = 3.0
"""Seconds in which Envoy writes its last lines when it is asked to."""
STATE = "usage.json"
_VERSION = 1

TOKENS, REQUESTS = "tuneyard_usage_tokens_total", "tuneyard_usage_requests_total"
_LABELS = ("revision", "contents", "adapter", "adapter_digest", "base", "base_digest", "endpoint")

_log = logging.getLogger(__name__)


class UsageMetrics:
    """What is told of the counting itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "tuneyard_gateway_usage"
        self.unreadable = Counter(f"{prefix}_unreadable", "Lines of usage that could not be read.", registry=registry)


class Usage:
    """Counts the tokens of one gateway."""

    def __init__(
        self,
        gateway: str,
        files: UsageFiles,
        state: Path,
        reopen: Callable[[], Awaitable[bool]],
        metrics: UsageMetrics,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`state`: the file of sums; `reopen` has Envoy open its log anew and says whether it was asked."""
        self._gateway = gateway
        self.files = files
        self._state = state
        self._reopen = reopen
        self._metrics = metrics
        self._now = now
        self.exported: Callable[[], Place] | None = None
        """Up to where records have left, where there is an export; nobody else needs the files."""
        self._sums, self.place = self._restored()
        files.know(self.place)
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Count everything that has ended."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        # Envoy writes what it has kept back just after it has opened the file anew, and has done that when it opens it
        # once more
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSHING):
                await self._flushed()
                await self._flushed()
        before = None
        while self.place != before:
            before = self.place
            await self.count()

    async def _flushed(self) -> None:
        self.files.rotate()
        while True:
            asked = await self._reopen()
            if self.files.reopened() or not asked:
                return
            await asyncio.sleep(0.02)

    async def _run(self) -> None:
        while True:
            took = 0.0
            try:
                took = await self.count()
                if not self.files.reopened():
                    await self._reopen()
                elif self.files.size() >= ROTATE_BYTES:
                    self.files.rotate()
                    await self._reopen()
                self._remove()
            except OSError as error:
                # the volume is full, for example: what is not written now is counted later
                _log.error("usage cannot be counted, and is tried again: %s", error)
            await asyncio.sleep(max(EVERY, took / SHARE))

    async def count(self) -> float:
        """Count what is there, or _PIECES of it; returns how many seconds it took to write the sums."""
        place, sums, broken = self.place, self._sums.copy(), 0
        for _ in range(_PIECES):
            piece = self.files.read(place, _PIECE)
            if piece.end == place:
                break
            for at in range(0, len(piece.lines), AT_A_TIME):
                fresh, bad = records_of(piece.lines[at : at + AT_A_TIME], self._gateway)
                broken += bad
                sums.add(((key_of(r), tokens_of(r)) for r in fresh), self._now())
                await asyncio.sleep(0)
            broken += 1 if piece.broken else 0
            place = piece.end
        if place == self.place:
            return 0.0
        began = time.perf_counter()
        self._keep(sums, place)
        self._sums, self.place = sums, place
        self.files.know(place)
        if broken:
            self._metrics.unreadable.inc(broken)
            _log.error("%d lines of usage could not be read", broken)
        return time.perf_counter() - began

    def _remove(self) -> None:
        """Files that everybody has read, and those that are too many."""
        exported = self.exported() if self.exported is not None else self.place
        self.files.remove_before(min(exported, self.place))
        for number in self.files.over(MOST_BYTES):
            if number < self.place.number:
                self.files.remove_before(Place(number + 1))

    # -- what outlives the process ---------------------------------------------------------------------------------

    def _keep(self, sums: UsageSums, place: Place) -> None:
        written = {"version": _VERSION, "place": list(place), "sums": sums.to_json()}
        replace(self._state, written)

    def _restored(self) -> tuple[UsageSums, Place]:
        try:
            told = json.loads(self._state.read_bytes())
            if told["version"] != _VERSION:
                raise ValueError(f"it has version {told['version']}")
            number, offset = told["place"]
            return UsageSums.from_json(told["sums"]), Place(int(number), int(offset))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("the sums of usage cannot be read, and begin anew: %s", error)
        return UsageSums(), Place(min(self.files.rotated(), default=0))

    # -- for Prometheus --------------------------------------------------------------------------------------------

    def page(self) -> str:
        """The sums in Prometheus' text."""
        lines = [f"# HELP {REQUESTS} Requests to engines, by who asked and what answered.\n# TYPE {REQUESTS} counter\n"]
        found = [(_labels(key), tokens) for key, tokens in self._sums]
        lines += [f"{REQUESTS}{{{labels}}} {tokens.requests}\n" for labels, tokens in found]
        lines.append(f"# HELP {TOKENS} Tokens, cached ones being part of the prompt's.\n# TYPE {TOKENS} counter\n")
        lines += [line for labels, tokens in found for line in _token_lines(labels, tokens)]
        return "".join(lines)


def replace(path: Path, written: object) -> None:
    """Write a JSON file so that a reader never sees half of it."""
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(written, file, separators=(",", ":"))
    beside.replace(path)


def records_of(lines: Iterable[bytes], gateway: str) -> tuple[list[UsageRecord], int]:
    """The records of lines, and how many lines were none that can be read."""
    found, broken = [], 0
    for line in lines:
        try:
            record = usage_record(line, gateway)
        except (ValueError, KeyError, TypeError):
            broken += 1
            continue
        if record is not None:
            found.append(record)
    return found, broken


def _token_lines(labels: str, tokens: Tokens) -> Iterator[str]:
    for kind in ("prompt", "cached", "completion"):
        number = getattr(tokens, kind)
        if number:
            yield f'{TOKENS}{{{labels},kind="{kind}"}} {number}\n'


def _labels(key: UsageKey) -> str:
    namespace, _, deployment = key.deployment.rpartition("/")
    # names of Kubernetes objects, digests and this program's own words: nothing in them needs escaping
    told = [f'tenant="{key.tenant}",namespace="{namespace}",deployment="{deployment}"']
    told += [f'{name}="{getattr(key, name)}"' for name in _LABELS]
    told.append(f'gate="{str(key.gate).lower()}",source="{"estimate" if key.estimated else "engine"}"')
    return ",".join(told)
