"""The least that a source must deliver: one that trickles ends in words, so that whoever waits for it can go on.

Rules:
- it is judged over whole windows of WINDOW_SECONDS in which somebody asked it; time in which nobody did (the disk was
  slow, or the source itself named a time to come back) is not the source's;
- every whole answer counts as ANSWER_BYTES at least: many small files take a round trip each;
- a listing, which has no rate, has LISTING_SECONDS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuneyard.systems.artifacts.remote import Remote, RemoteFile, UnreachableError

LEAST_RATE = 64 << 10
"""Bytes per second."""
WINDOW_SECONDS = 60.0
ANSWER_BYTES = 64 << 10
LISTING_SECONDS = 300.0
_LOOK = 0.1


class Floor:
    """Counts what comes, from any thread; `check` is one thread's."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._asking = 0
        self._came = 0
        self._since = now()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The source is asked for something while the block lasts."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1

    def came(self, count: int) -> None:
        """So many bytes came."""
        with self._lock:
            self._came += count

    def answered(self, count: int) -> None:
        """An answer of so many bytes, which were counted as they came, is whole."""
        self.came(max(0, ANSWER_BYTES - count))

    def excuse(self, until: float) -> None:
        """The source has named the time at which it wants to be asked again."""
        with self._lock:
            self._since, self._came = max(self._since, until), 0

    def check(self, what: str) -> None:
        """Raises UnreachableError where `what` delivered too little for a whole window."""
        now = self._now()
        with self._lock:
            if not self._asking:
                self._since, self._came = now, 0
            if now - self._since < WINDOW_SECONDS:
                return
            seconds, rate = now - self._since, self._came / (now - self._since)
            self._since, self._came = now, 0
        if rate < LEAST_RATE:
            raise UnreachableError(
                f"{what} delivers {rate / 1024:.1f} KiB/s (over {seconds:.0f} s), at least {LEAST_RATE >> 10} KiB/s "
                "are needed: what has come is kept and gone on from; if it stays like this, copy the files to a "
                "quicker server"
            )


def files_in_time(remote: Remote, going_on: Callable[[], None]) -> list[RemoteFile]:
    """What the remote lists, within LISTING_SECONDS; raises ArtifactError.

    `going_on` is called again and again and raises if it is to end. The thread that asks is left to its time limits
    then: whoever gives up closes the remote.
    """
    found: list[list[RemoteFile]] = []
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            found.append(remote.files())
        except BaseException as error:  # noqa: BLE001 -- it is raised in the caller's thread
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True, name="list")
    asking.start()
    until = time.monotonic() + LISTING_SECONDS
    while asking.is_alive():
        asking.join(_LOOK)
        going_on()
        if asking.is_alive() and time.monotonic() > until:
            raise UnreachableError(
                f"{remote.what} was not listed within {LISTING_SECONDS:.0f} s: ask a quicker server, or name a place "
                "with fewer files"
            )
    if failed:
        raise failed[0]
    return found[0]
