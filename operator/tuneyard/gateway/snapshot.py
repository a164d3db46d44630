"""What a gateway knows, kept on the pod's memory-backed volume for the process that comes after this one.

Rules: written as soon as something changes, and again at most every SHORTEST seconds, or so seldom that writing takes
a SHARE of the time; in a thread, into another file that then takes the name, so that a reader never sees half of it.
One JSON text per line, the first one the version. The world's holds no keys: those are derived. That of tenants does
(tenancy.py), which is why only this process's user may read either.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from tuneyard.gateway.metrics import Metrics

SHORTEST = 0.1
"""Seconds between two writes, at least."""
SHARE = 0.05
"""Of the time, at most, is spent writing."""
_HEADER = json.dumps({"tuneyard-gateway-snapshot": 1})

_log = logging.getLogger(__name__)


def write(path: Path, lines: list[str]) -> None:
    """Replace the snapshot; raises OSError."""
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join([_HEADER, *lines]) + "\n")
    beside.replace(path)


def read(path: Path) -> list[str] | None:
    """The lines of a snapshot, None where there is none of this version."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return lines if header == _HEADER else None


class SnapshotWriter:
    """Writes when something changed, not more often than it must."""

    def __init__(self, path: Path, lines: Callable[[], list[str]], metrics: Metrics) -> None:
        """`lines` is called in the event loop's thread."""
        self._path = path
        self._lines = lines
        self._metrics = metrics
        self._changed = asyncio.Event()

    def mark(self) -> None:
        """Something changed."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            begin = asyncio.get_running_loop().time()
            try:
                await asyncio.to_thread(write, self._path, self._lines())
                self._metrics.snapshots.inc()
            except OSError as error:
                # serving goes on without it; only a restart during an outage would notice
                self._metrics.snapshot_failures.inc()
                _log.error("cannot write the snapshot: %s", error)
            took = asyncio.get_running_loop().time() - begin
            await asyncio.sleep(max(SHORTEST, took / SHARE - took))
