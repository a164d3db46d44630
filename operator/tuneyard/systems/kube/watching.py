"""What one informer's watch has been through: when it must wait, and when it must list everything again.

Rules:
- failures in a row double the delay, from 0.4 s up to 5 s, with jitter; any event, bookmark or list ends the row;
- connections that fail and answers that refuse are two rows: a server that is back after an outage is met with short
  delays again, although its first answer will be that the watch is too old;
- a watch that ends within a second is a failure too, although nothing refused it;
- a list is due when the watch cannot be resumed without a gap, or the last list is some ten minutes old.
Only the informer's own thread writes here, so nothing is locked; `seen` and `hang_up` are for other threads.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Literal

import urllib3

from tuneyard.systems.kube.client import ApiError, Object

Change = Literal["ADDED", "MODIFIED", "DELETED"]

_log = logging.getLogger(__name__)

_RELIST_SECONDS = 600.0
_REFUSALS = 3
_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0


class StoppedError(Exception):
    """The informer is being stopped."""


class WatchState:
    """What one watch has been through; only its informer's thread writes it."""

    def __init__(self) -> None:
        self.seen = time.monotonic()
        self.outage = False
        self._unreachable = 0
        self._fruitless = 0
        self.listing: list[tuple[Change, Object]] | None = None
        self.known: dict[tuple[str, str], str] = {}
        self._refusals = 0
        self._revision = 0
        self._list_again = False
        self._listed_at = 0.0
        self._list_after = 0.0
        self._stream: Stream | None = None

    def listed(self, revision: str, known: dict[tuple[str, str], str]) -> None:
        """A list came, at this revision; `known`: the revisions of what was known before."""
        self.seen = self._listed_at = time.monotonic()
        self._list_after = self._listed_at + _RELIST_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311
        self._list_again = False
        self._refusals = 0
        self._revision = int(revision) if revision.isdecimal() else 0
        self.listing, self.known = [], known

    def saw(self, item: Object) -> None:
        """An event or a bookmark came."""
        self.seen = time.monotonic()
        self._refusals = 0
        revision = str(item.get("metadata", {}).get("resourceVersion", ""))
        if revision.isdecimal():
            # etcd came back from a backup: its future is not ours, and a resumed watch would wait for ever
            self._list_again |= int(revision) < self._revision
            self._revision = max(self._revision, int(revision))

    def watching(self, stream: Stream) -> Stream:
        """A watch was opened."""
        self._unreachable = 0
        self._stream = stream
        return stream

    def watch_ended(self) -> None:
        """A watch that ends at once, again and again, is a failure too, although nothing refused it."""
        if self._stream is not None and self._stream.lived() < 1.0:
            self._fruitless += 1
        self._stream = None

    def failed(self, error: ApiError) -> bool:
        """A request failed; returns whether this begins an outage."""
        if error.unreachable:
            self._unreachable += 1
        else:
            self._unreachable = 0
            self._fruitless += 1
        begins, self.outage = not self.outage, True
        return begins

    def worked(self) -> bool:
        """Objects arrived; returns whether this ends an outage."""
        self._unreachable = self._fruitless = 0
        ends, self.outage = self.outage, False
        return ends

    def refused(self, error: ApiError) -> None:
        """The API server refused the watch, or ended it with an error."""
        self._refusals += error.status != 0
        # 403 and 404: while we were not allowed to look, or the kind was gone, anything may have happened
        self._list_again |= error.status in (403, 404, 410) or self._refusals >= _REFUSALS

    def must_list_again(self) -> bool:
        """Whether going on with the watch could miss something."""
        return self._list_again or time.monotonic() > self._list_after

    @property
    def broken(self) -> bool:
        """Whether the running watch is of no more use."""
        return self._list_again

    def delay(self) -> float:
        """Seconds to wait before the next attempt."""
        failures = max(self._unreachable, self._fruitless)
        if not failures:
            return 0.0
        longest: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def hang_up(self) -> None:
        """End the running watch, from any thread."""
        if self._stream is not None:
            self._stream.hang_up()


class Stream:
    """The answer to a watch, as kubernetes.watch reads it: ends when the informer stops or has to list again."""

    def __init__(self, response: urllib3.BaseHTTPResponse, stopping: threading.Event, state: WatchState) -> None:
        self.status = response.status
        self._response = response
        self._stopping = stopping
        self._state = state
        self._opened = time.monotonic()

    def stream(self, amt: int | None = None, decode_content: bool | None = None) -> Iterator[bytes]:
        """The chunks of the answer, until it ends, is broken or the informer stops."""
        for chunk in self._response.stream(amt=amt, decode_content=decode_content):
            yield chunk
            if self._stopping.is_set():
                raise StoppedError
            if self._state.broken:
                return

    def lived(self) -> float:
        """Seconds since the watch was opened."""
        return time.monotonic() - self._opened

    def hang_up(self) -> None:
        """Make a reader that waits for the next event return at once."""
        try:
            self._response.shutdown()
        except (OSError, ValueError, RuntimeError):
            _log.debug("the watch had ended already")

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()

    def release_conn(self) -> None:
        """Give the connection back."""
        self._response.release_conn()
