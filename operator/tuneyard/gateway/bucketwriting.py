"""Objects on their way into a bucket, for whoever in the gateway process exports something.

Rules:
- a write that failed is repeated with the same bytes under the same key, after FIRST_DELAY to LONGEST_DELAY seconds,
  for as long as its caller waits: whether it had arrived or not, the object is there once;
- the bucket is opened at the first write and after each failure: a renewed Secret needs no restart;
- a failure is told once, not at every try, and how long nothing could be written is a number for an alert;
- the thread is one of its own: one that hangs in the network must not keep the loop's threads, nor the process, from
  ending.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from tuneyard.systems.artifacts.folder import ArtifactError

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds before the second try; doubled each time up to this."""

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Where objects go."""

    def put(self, name: str, body: bytes) -> None:
        """Write one object; raises ArtifactError. Called in a thread of its own."""

    def close(self) -> None:
        """Give connections back."""


class BucketWriting:
    """Writes one object after the other."""

    def __init__(self, what: str, open_writer: Callable[[], Writer]) -> None:
        """`what` is exported, for the log; `open_writer` is called in a thread."""
        self._what = what
        self._open = open_writer
        self._clock = asyncio.get_running_loop().time
        self._writer: Writer | None = None
        self._failing_since: float | None = None
        self._told = ""
        self._thread = ThreadPoolExecutor(1, what)

    async def put(self, name: str, body: bytes) -> None:
        """Write one object; returns when it is there."""
        delay = FIRST_DELAY
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._put, name, body)
            except ArtifactError as error:
                self._failed(str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                break
        if self._failing_since is not None:
            _log.info("%s is written again", self._what)
        self._failing_since, self._told = None, ""

    def failing(self) -> float:
        """For how many seconds nothing could be written, 0 while it works."""
        since = self._failing_since
        return 0.0 if since is None else self._clock() - since

    def close(self) -> None:
        """Nothing is written any more."""
        self._thread.shutdown(wait=False)

    def _put(self, name: str, body: bytes) -> None:
        """In the thread."""
        if self._writer is None:
            self._writer = self._open()
        try:
            self._writer.put(name, body)
        except ArtifactError:
            writer, self._writer = self._writer, None
            writer.close()
            raise

    def _failed(self, words: str) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()
        if words != self._told:  # once, not at every try
            self._told = words
            _log.error("%s cannot be written, and is tried again: %s", self._what, words)
