"""JSON that outlives its process on a volume that may be full at any time.

Rules:
- there are two files, written in turn and in place. What is read is the newer one that is whole: a process that is
  killed within a write leaves the one that was written before;
- their room is taken beforehand (`reserve`) and never given back, so that a write needs none. A text that has outgrown
  it takes twice its size first, and while that fails both files stay as they are;
- a node that is lost takes such a volume with it: nothing waits for a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple


class _Kept(NamedTuple):
    """What one file holds."""

    number: int
    """It grows with each write."""
    text: bytes


class KeptState:
    """One JSON value."""

    def __init__(self, path: Path, room: int) -> None:
        """`room`: bytes that each file has from the start."""
        self._paths = [path.with_suffix(f".{n}{path.suffix}") for n in (0, 1)]
        self._room = room
        found = [_read(path) for path in self._paths]
        self._newest = max((kept for kept in found if kept is not None), default=None)
        self._next = 0 if found[0] is None or (found[1] is not None and found[1] > found[0]) else 1
        self.spoiled = self._newest is None and any(map(_holds_something, self._paths))
        """Whether there is something, and none of it can be read."""

    def read(self) -> Any:
        """What was written last; None where nothing was, or nothing of it can be read. Raises ValueError."""
        return None if self._newest is None else json.loads(self._newest.text)

    def reserve(self) -> None:
        """Take the room; raises OSError where there is none."""
        for path in self._paths:
            _grow(path, self._room, self._room)

    def write(self, value: object) -> None:
        """Replace what is there; raises OSError, and what was there before stays."""
        text = json.dumps(value, separators=(",", ":")).encode()
        kept = _Kept(self._newest.number + 1 if self._newest else 1, text)
        whole = json.dumps([kept.number, len(text), _digest(kept.number, text)]).encode() + b"\n" + text
        path = self._paths[self._next]
        _grow(path, len(whole), max(self._room, 2 * len(whole)))
        with path.open("r+b") as file:
            file.write(whole)
        self._newest, self._next = kept, 1 - self._next


def _grow(path: Path, needed: int, room: int) -> None:
    """Have the file take so much room, unless it has what is needed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < needed:
            os.posix_fallocate(descriptor, 0, room)
    finally:
        os.close(descriptor)


def _read(path: Path) -> _Kept | None:
    """What the file holds, if that is whole."""
    with suppress(OSError, ValueError, TypeError):
        head, _, rest = path.read_bytes().partition(b"\n")
        number, length, digest = json.loads(head)
        text = rest[:length]
        if digest == _digest(number, text):
            return _Kept(int(number), text)
    return None


def _holds_something(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(1) not in (b"", b"\0")  # room that was taken and never written is zeros
    return False


def _digest(number: int, text: bytes) -> str:
    """Of both: half of a write may be a new number before the old text."""
    return hashlib.blake2b(b"%d\n" % number + text, digest_size=8).hexdigest()
