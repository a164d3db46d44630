"""Reads in the request log how requests end, for everything that goes by that: judges, metrics, limits, feedback.

Rules:
- what counts is what ends while this process is there: it begins where the log ends. How far it has read is kept
  nowhere, as nothing of what it tells is; usage, which must lose nothing, has a place of its own (usage.py);
- an end is heard of after FLUSHED_MILLISECONDS (requestlog.py) and LOOK at the latest;
- lines that cannot be read are left to usage to count;
- this process spends half of its time on answers at most, whatever the rate is: it rests as long as some took. Where
  more than MOST_BEHIND wait, the oldest are dropped, of whichever revision, and counted: old news helps no judge, and
  the files they are in must go;
- where nobody counts usage, the files are renamed and removed here.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter

from tuneyard.gateway.background import ended
from tuneyard.gateway.requestfiles import Place, RequestFiles
from tuneyard.systems.envoy.requestlog import Line, after_half, line_of

LOOK = 0.05
AT_A_TIME = 100
"""Lines without a turn for others: about two milliseconds."""
MOST_BEHIND = 16 << 20
"""Bytes: some 40,000 requests, which take two seconds."""
_PIECE = 256 << 10

_log = logging.getLogger(__name__)


class EndingsMetrics:
    """What is told of the reading itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.dropped = Counter(
            "tuneyard_gateway_endings_dropped",
            "Requests whose end was not heard of because this process could not keep up.",
            registry=registry,
        )


class Endings:
    """Tells what becomes of requests."""

    def __init__(
        self,
        files: RequestFiles,
        ended: Callable[[Sequence[Line]], None],
        metrics: EndingsMetrics,
        *,
        reopen: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`ended` gets some at a time, in the order in which they ended; `reopen` has Envoy open its log anew, and is
        given where nobody else does it.
        """
        self._files, self._ended, self._reopen = files, ended, reopen
        self._metrics = metrics
        self._told = ""
        self.place = files.end()
        """Up to where it has read."""
        files.know(self.place)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Read what is there; never fails."""
        await ended(self._task)
        try:
            await self.look()
        except OSError as error:
            _log.error("the end of the request log could not be read: %s", error)

    async def _run(self) -> None:
        while True:
            problem = ""
            try:
                await self.look()
                if self._reopen is not None:
                    await self._files.renew(self._reopen)
                    self._files.remove_before(self.place)
            except OSError as error:
                problem = str(error)
                if problem != self._told:  # once, not at every turn
                    _log.error("the request log cannot be read, and is tried again: %s", problem)
            self._told = problem
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Read what there is now."""
        if self.place.number == self._files.newest() and self._files.size() == self.place.offset:
            return
        clock = asyncio.get_running_loop().time
        while (piece := self._files.read(self.place, _PIECE)).end != self.place:
            if self._files.after(self.place) > MOST_BEHIND:
                self._metrics.dropped.inc(len(piece.lines))
                self._read_to(piece.end)
                continue
            for at in range(0, len(piece.lines), AT_A_TIME):
                began, some = clock(), piece.lines[at : at + AT_A_TIME]
                self._tell(lines_of(some))
                # at once: whoever ends the reading in the pause that follows must not hear of these again
                read = sum(len(line) + 1 for line in some)
                self._read_to(self.place._replace(offset=self.place.offset + read))
                await asyncio.sleep(clock() - began)
            self._read_to(piece.end)

    def _tell(self, lines: list[Line]) -> None:
        """Whatever a listener makes of a line, it must neither end the reading nor stop it there for ever."""
        try:
            self._ended(lines)
        except Exception:  # noqa: BLE001
            _log.exception("the ends of %d requests are not told", len(lines))

    def _read_to(self, place: Place) -> None:
        self.place = place
        self._files.know(place)


def lines_of(texts: Iterable[bytes]) -> list[Line]:
    """What can be read of them, also behind half a line."""
    found: list[Line] = []
    for text in texts:
        rest: bytes | None = text
        while rest is not None:
            try:
                found.append(line_of(rest))
            except ValueError:
                rest = after_half(rest)
            else:
                rest = None
    return found
