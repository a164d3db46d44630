"""The files that Envoy writes its request log into, and how far somebody has read them.

Rules:
- `requests.log` is what Envoy writes now. It is rotated by renaming it to `requests.<n>.log`, after which Envoy is
  asked to open the name anew (POST /reopen_logs): until that file exists, the renamed one may still grow;
- a place is (number, offset): the file of that number, or the current one, whose number is one more than the newest
  renamed one's. A rename changes no place;
- only whole lines are read. What stands after the last line feed of a file that grows no more is half a line, of an
  Envoy that was killed while it wrote;
- a file goes when everybody has read it, or when all together are over a limit: the volume is memory. One that goes
  before it was counted is emptied, which gives its room back even where Envoy still writes into it, and its name stays
  as `requests.<n>.gone` until everybody is past it: numbers must go on after it, and Envoy be asked to open the name
  anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

CURRENT = "requests.log"
VOLUME_BYTES = 96 << 20
"""What the volume with these files has room for, and so what they can ever take of the memory of Envoy's container."""
UNCOUNTED_BYTES = 32 << 20
"""What they take at most where nobody counts usage: then no file waits for anybody but the reader of answers."""
ROTATE_BYTES = 4 << 20
_LONGEST = 64 << 10
"""Bytes that no line is longer than."""
_ROTATED = re.compile(r"requests\.(\d+)\.(log|gone)")


class Place(NamedTuple):
    """Up to where somebody has read."""

    number: int = 0
    offset: int = 0


NOWHERE = Place()


class Piece(NamedTuple):
    """Whole lines, and where the next ones begin."""

    begin: Place
    lines: list[bytes]
    end: Place
    broken: int = 0
    """Bytes of half a line that is skipped."""
    lost: int = 0
    """Files that were removed before they were read."""


class RequestFiles:
    """The files of one folder. Only one process rotates and removes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.current = folder / CURRENT
        self._least = 0

    def rotated(self) -> dict[int, Path]:
        """The renamed files by number, the oldest first, without those that are gone."""
        return {number: path for number, path in self._renamed().items() if path.suffix == ".log"}

    def _renamed(self) -> dict[int, Path]:
        found = {}
        for path in self._folder.iterdir():
            match = _ROTATED.fullmatch(path.name)
            if match:
                found[int(match.group(1))] = path
        return dict(sorted(found.items()))

    def know(self, place: Place) -> None:
        """Numbers up to this one have been given, though those files may be gone."""
        self._least = max(self._least, place.number)

    def newest(self) -> int:
        """Number of the current file."""
        return max([self._least, *(number + 1 for number in self._renamed())])

    def rotate(self) -> None:
        """Rename the current file; Envoy has to be asked to open it anew."""
        if self.current.exists():
            self.current.rename(self._folder / f"requests.{self.newest()}.log")

    def reopened(self) -> bool:
        """Whether Envoy writes under the current name, as far as it has written at all."""
        return self.current.exists() or not self._renamed()

    async def renew(self, reopen: Callable[[], Awaitable[object]]) -> None:
        """Have Envoy begin a new file where the current one is large; `reopen` asks it to open the name anew."""
        if not self.reopened():
            await reopen()
        elif self.size() >= ROTATE_BYTES:
            self.rotate()
            await reopen()

    def end(self) -> Place:
        """Where the next line begins that Envoy has not written yet, or has written by half."""
        number, size = self.newest(), self.size()
        if not size:
            return Place(number, 0)
        with self.current.open("rb") as file:
            begin = file.seek(max(0, size - _LONGEST))
            return Place(number, begin + file.read(size - begin).rfind(b"\n") + 1)

    def size(self) -> int:
        """Bytes of the current file."""
        try:
            return self.current.stat().st_size
        except FileNotFoundError:
            return 0

    def after(self, place: Place) -> int:
        """Bytes that stand after a place."""
        files = {**self.rotated(), self.newest(): self.current}
        sizes = {number: path.stat().st_size for number, path in files.items() if path.exists()}
        return sum(size - (place.offset if n == place.number else 0) for n, size in sizes.items() if n >= place.number)

    def _path(self, number: int) -> Path | None:
        return self.rotated().get(number, self.current if number == self.newest() else None)

    def read(self, begin: Place, most: int) -> Piece:
        """The lines after a place, of one file, at most so many bytes (or one line)."""
        newest = self.newest()
        path = self._path(begin.number)
        if path is None or not path.exists():
            if begin.number >= newest:
                return Piece(begin, [], begin)
            later = min([n for n in self.rotated() if n > begin.number], default=newest)
            return Piece(begin, [], Place(later, 0), lost=later - begin.number)
        # before it is read: Envoy may write its last lines into it meanwhile
        ended = begin.number < newest and self.reopened()
        text = b""
        with path.open("rb") as file:
            file.seek(begin.offset)
            while more := file.read(most):
                text += more
                if b"\n" in more:
                    break
        whole = text.rfind(b"\n") + 1
        if whole:
            return Piece(begin, text[: whole - 1].split(b"\n"), Place(begin.number, begin.offset + whole))
        if ended:
            return Piece(begin, [], Place(begin.number + 1, 0), broken=len(text))
        return Piece(begin, [], begin)

    def remove_before(self, place: Place) -> None:
        """Remove the files that everybody has read, but never the one that Envoy may still write into."""
        kept = None if self.current.exists() else self.newest() - 1
        for number, path in self._renamed().items():
            if number < place.number and number != kept:
                path.unlink(missing_ok=True)

    def drop(self, number: int, place: Place) -> int:
        """Give a file up; returns how much of it stands after that place, which is how far it was read."""
        path = self.rotated()[number]
        rest = path.stat().st_size - (place.offset if place.number == number else 0)
        os.truncate(path, 0)
        path.rename(path.with_suffix(".gone"))
        return rest

    def over(self, most: int) -> list[int]:
        """Numbers of the oldest renamed files that would have to go for all of them to have at most so many bytes."""
        sizes = {number: path.stat().st_size for number, path in self.rotated().items()}
        total, found = sum(sizes.values()), []
        for number, size in sizes.items():
            if total <= most:
                break
            total -= size
            found.append(number)
        return found
