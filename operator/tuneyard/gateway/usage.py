"""Tokens as this gateway has counted them: from the lines of the request log, into sums for Prometheus.

Rules:
- each line counts once, whenever this process ends: sums and the place up to which they were read are written together
  (keptstate.py). Numbers that are not written are shown to nobody, so that a process that comes after a killed one
  never shows less;
- Envoy goes on writing while no process is there, and the next one reads what it missed;
- records for the bucket come from the same lines, at their own pace (usageexport.py). A file stays until both have read
  it, and those that wait for the bucket have at most MOST_BYTES: beyond that the oldest go, and are counted;
- files are renamed and removed whether counting works or not. While it does not, those over MOST_BYTES go uncounted,
  and a metric tells how many: otherwise a full volume would stay full, and nothing would ever count again;
- requests wait for none of that: reading takes a turn of the event loop for so many lines, and writing the sums so much
  of the time.
What is lost: docs/explanation/usage.md.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from tuneyard.api.usage import Outcome, UsageRecord
from tuneyard.gateway.background import ended
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.requestfiles import NOWHERE, Place, RequestFiles
from tuneyard.planning.usage import Tokens, UsageKey, UsageSums, key_of, tokens_of
from tuneyard.systems.envoy.requestlog import after_half, line_of
from tuneyard.systems.envoy.usage import usage_record

EVERY = 0.5
SHARE = 0.05
"""Of the time, at most, is spent writing sums."""
MOST_BYTES = 64 << 20
"""Of files that wait, for the bucket or for counting to work again: about 130,000 requests."""
AT_A_TIME = 100
"""Lines without a turn for others: about two milliseconds."""
_PIECE = 256 << 10
_PIECES = 16
"""After so many of them sums are written, however much there still is."""
FLUSHING = 3.0
"""Seconds in which Envoy writes its last lines when it is asked to."""
STATE = "usage.json"
_VERSION = 1
_ROOM = 1 << 20
"""Bytes that the sums have on the volume from the start: about 2,000 of them."""

TOKENS, REQUESTS = "tuneyard_usage_tokens_total", "tuneyard_usage_requests_total"
_LABELS = ("revision", "contents", "adapter", "adapter_digest", "base", "base_digest", "endpoint")

_log = logging.getLogger(__name__)


class UsageMetrics:
    """What is told of the counting itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "tuneyard_gateway_usage"
        self.unreadable = Counter(f"{prefix}_unreadable", "Lines of usage that could not be read.", registry=registry)
        self.untold = Counter(
            f"{prefix}_untold", "Answers without an engine's numbers, whose tokens are estimates.", registry=registry
        )
        self.uncounted = Counter(
            f"{prefix}_uncounted_files",
            "Files of usage that were lost before they were counted, for want of room.",
            registry=registry,
        )
        self.stopped = Gauge(
            f"{prefix}_stopped_seconds", "How long nothing could be counted, 0 while it works.", registry=registry
        )


class Usage:
    """Counts the tokens of one gateway."""

    def __init__(
        self,
        gateway: str,
        files: RequestFiles,
        state: Path,
        reopen: Callable[[], Awaitable[bool]],
        metrics: UsageMetrics,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`state`: how the files of sums are called; `reopen` has Envoy open its log anew and says if it was asked."""
        self._gateway = gateway
        self.files = files
        self._state = KeptState(state, _ROOM)
        self._reopen = reopen
        self._metrics = metrics
        self._now = now
        self._stopped_since: float | None = None
        self._told = ""
        self._given_up: set[int] = set()
        """Numbers of files that this process has dropped uncounted."""
        metrics.stopped.set_function(self._stopped)
        self.others: list[Callable[[], Place]] = []
        """Up to where others have read who need the files."""
        self._sums, self.place = self._restored()
        files.know(self.place)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Count everything that has ended; never fails."""
        await ended(self._task)
        # Envoy writes what it has kept back just after it has opened the file anew, and has done that when it opens it
        # once more
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSHING):
                    await self._flushed()
                    await self._flushed()
            before = None
            while self.place != before:
                before = self.place
                await self.count()
        except OSError as error:
            _log.error("not everything was counted before the end of this process: %s", error)

    async def _flushed(self) -> None:
        self.files.rotate()
        while True:
            asked = await self._reopen()
            if self.files.reopened() or not asked:
                return
            await asyncio.sleep(0.02)

    async def _run(self) -> None:
        while True:
            took = await self.turn()
            await asyncio.sleep(max(EVERY, took / SHARE))

    async def turn(self) -> float:
        """Count, and keep the files few; returns how many seconds it took to write the sums."""
        took, problem = 0.0, ""
        try:
            took = await self.count()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is told, and tried again
            problem = str(error) or type(error).__name__
        try:
            await self._tidy(counts=not problem)
        except Exception as error:  # noqa: BLE001
            problem = problem or str(error) or type(error).__name__
        if problem:
            self._stopped_since = self._stopped_since or time.monotonic()
            if problem != self._told:  # once, not at every turn
                _log.error("usage cannot be counted, and is tried again: %s", problem)
        elif self._told:
            self._stopped_since = None
            _log.info("usage is counted again")
        self._told = problem
        return took

    def _stopped(self) -> float:
        return 0.0 if self._stopped_since is None else time.monotonic() - self._stopped_since

    async def count(self) -> float:
        """Count what is there, or _PIECES of it; returns how many seconds it took to write the sums."""
        place, sums, broken, untold, lost = self.place, self._sums.copy(), 0, 0, set[int]()
        for _ in range(_PIECES):
            piece = self.files.read(place, _PIECE)
            if piece.end == place:
                break
            for at in range(0, len(piece.lines), AT_A_TIME):
                fresh, bad = records_of(piece.lines[at : at + AT_A_TIME], self._gateway)
                broken += bad
                untold += sum(1 for r in fresh if r.estimated and r.outcome is Outcome.OK)
                sums.add(((key_of(r), tokens_of(r)) for r in fresh), self._now())
                await asyncio.sleep(0)
            broken += 1 if piece.broken else 0
            if piece.lost:
                lost.update(range(piece.begin.number, piece.end.number))
            place = piece.end
        if place == self.place:
            return 0.0
        began = time.perf_counter()
        self._state.write({"version": _VERSION, "place": list(place), "sums": sums.to_json()})
        self._sums, self.place = sums, place
        self.files.know(place)
        self._metrics.untold.inc(untold)
        self._metrics.uncounted.inc(len(lost - self._given_up))
        self._given_up -= lost
        if broken:
            self._metrics.unreadable.inc(broken)
            _log.error("%d lines of usage could not be read", broken)
        return time.perf_counter() - began

    async def _tidy(self, *, counts: bool) -> None:
        """Have Envoy begin a new file where one is large; remove those that everybody has read or that are too many."""
        await self.files.renew(self._reopen)
        self.files.remove_before(min([self.place, *(place() for place in self.others)]))
        for number in self.files.over(MOST_BYTES):
            if number < self.place.number:
                self.files.remove_before(Place(number + 1))
            elif not counts:
                self._given_up.add(number)
                if self.files.drop(number, self.place):
                    self._metrics.uncounted.inc()

    # -- what outlives the process ---------------------------------------------------------------------------------

    def _restored(self) -> tuple[UsageSums, Place]:
        with suppress(OSError):  # where there is no room now, it is taken with the first write
            self._state.reserve()
        try:
            if self._state.spoiled:
                raise ValueError("they were written by something else")
            told = self._state.read()
            if told is not None:
                if told["version"] != _VERSION:
                    raise ValueError(f"they have version {told['version']}")
                number, offset = told["place"]
                return UsageSums.from_json(told["sums"]), Place(int(number), int(offset))
        except (ValueError, KeyError, TypeError) as error:
            _log.error("the sums of usage cannot be read, and begin anew: %s", error)
        return UsageSums(), Place(min(self.files.rotated(), default=self.files.newest()))

    # -- for Prometheus --------------------------------------------------------------------------------------------

    def page(self) -> str:
        """The sums in Prometheus' text."""
        lines = [f"# HELP {REQUESTS} Requests to engines, by who asked and what answered.\n# TYPE {REQUESTS} counter\n"]
        found = [(_labels(key), tokens) for key, tokens in self._sums]
        lines += [f"{REQUESTS}{{{labels}}} {tokens.requests}\n" for labels, tokens in found]
        lines.append(f"# HELP {TOKENS} Tokens, cached ones being part of the prompt's.\n# TYPE {TOKENS} counter\n")
        lines += [line for labels, tokens in found for line in _token_lines(labels, tokens)]
        return "".join(lines)


def records_of(
    lines: Iterable[bytes], gateway: str, begin: Place = NOWHERE, run: str = ""
) -> tuple[list[UsageRecord], int]:
    """The records of the lines that begin at that place, and how many lines, or halves, were none that can be read.

    A record's id says where its line is; without `run` it has none.
    """
    found, broken, offset = list[UsageRecord](), 0, begin.offset
    for line in lines:
        record_id = f"{run}-{begin.number}-{offset}" if run else ""
        offset += len(line) + 1
        text: bytes | None = line
        while text is not None:
            try:
                record = usage_record(line_of(text), gateway, record_id)
            except ValueError:
                broken += 1
                text = after_half(text)
            else:
                text = None
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
