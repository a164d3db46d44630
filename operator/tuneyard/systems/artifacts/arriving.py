"""One file that comes over the network: its chunks arrive in any order, and are hashed and kept in order.

Rules:
- What lies on the disk is always a prefix of the file, so that after a kill its length alone says where to go on.
- A file counts as there once it is whole, its checksums fit, it is on the disk (fsync), and it has its own name: in
  that order. Until then it is called `<name>.part`.
- After `shut` nothing is written any more, whatever threads still hold chunks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from tuneyard.api.digests import FileDigest
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import RemoteFile

_CHUNK = 1 << 20
_CACHE_REMEDY = "give serving.cache more room or delete objects that nobody uses"
_SLICE = 1 << 18
"""Written at once: 1 MiB and more took eight times as long in the page cache, which looks for as large a folio."""


class MismatchError(ArtifactError):
    """A file is not what its source says it is; `recovered` if part of it was there from before."""

    def __init__(self, message: str, recovered: bool) -> None:
        super().__init__(Reason.DIGEST_MISMATCH, message)
        self.recovered = recovered


class Arriving:
    """One remote file. `whole` is where it will be (with `.part` while it comes); None: it is hashed and not kept."""

    def __init__(self, file: RemoteFile, whole: Path | None) -> None:
        self.file = file
        self.at = 0
        """So many bytes from the beginning are hashed and kept."""
        self.recovered = 0
        """So many of them were there before."""
        self._whole = whole
        self._handle: int | None = None
        self._waiting: dict[int, memoryview] = {}
        self._order = threading.Lock()
        self._shut = False
        self._finished = False
        self._sha256 = hashlib.sha256()
        self._blob = _blob_hash(file)

    @property
    def part(self) -> Path | None:
        """Where the file is while it comes."""
        return None if self._whole is None else self._whole.with_name(self._whole.name + ".part")

    def recover(self, there: Path | None, going_on: Callable[[], None]) -> int:
        """Take over what an earlier process left: the whole file at `there`, or a part. Returns how many bytes.

        A file at `there` that is not the whole one is removed. `going_on` is called now and then and raises if it is to
        end. Raises ArtifactError.
        """
        with self._order:
            if there is not None:
                if self._take(there, going_on) and self.at == self.file.size and self._wrong() is None:
                    self._finished = True
                    self.recovered = self.at
                    return self.at
                there.unlink()
                self._forget()  # what was hashed of it is not on the disk any more
            part = self.part
            if part is not None and part.exists() and not self._take(part, going_on):
                part.unlink()
            self.recovered = self.at
            self._finish_if_whole()
            return self.at

    def put(self, begin: int, chunk: memoryview) -> list[memoryview]:
        """A chunk has come. Returns the chunks that were dealt with meanwhile: none if an earlier one is missing."""
        self._waiting[begin] = chunk
        dealt: list[memoryview] = []
        # Whoever holds the lock takes what others put; one who put while it was being let go is not left behind.
        while self.at in self._waiting and self._order.acquire(blocking=False):
            try:
                while not self._shut and (following := self._waiting.pop(self.at, None)) is not None:
                    self._keep(following)
                    dealt.append(following)
                self._finish_if_whole()
            finally:
                self._order.release()
            if self._shut:
                break
        return dealt

    def digest(self) -> FileDigest:
        """Of a file that is whole."""
        assert self._finished, "asked only after every chunk was put"  # noqa: S101
        return FileDigest(self.file.path, self.file.size, self._sha256.hexdigest())

    def shut(self) -> None:
        """Write nothing any more; returns when nobody does."""
        with self._order:
            self._shut = True
            self._close()

    def _take(self, path: Path, going_on: Callable[[], None]) -> bool:
        """Hash a file of an earlier process; False, and nothing hashed, if it is longer than it can be."""
        self._forget()
        if path.stat().st_size > self.file.size:
            return False
        with path.open("rb", buffering=0) as old:
            while piece := old.read(_CHUNK):
                going_on()
                self._hash(piece)
        return True

    def _forget(self) -> None:
        self.at, self._sha256, self._blob = 0, hashlib.sha256(), _blob_hash(self.file)

    def _hash(self, piece: bytes | memoryview) -> None:
        self._sha256.update(piece)
        if self._blob is not None:
            self._blob.update(piece)
        self.at += len(piece)

    def _keep(self, chunk: memoryview) -> None:
        self._open()
        for begin in range(0, len(chunk), _SLICE):
            piece = chunk[begin : begin + _SLICE]
            if self._handle is not None:
                self._write(piece)
            self._sha256.update(piece)
            if self._blob is not None:
                self._blob.update(piece)
        self.at += len(chunk)  # only now: `put` looks for the next chunk by it

    def _open(self) -> None:
        """Open the part, no earlier than needed: artifacts have more files than a process may have open."""
        part = self.part
        if part is not None and self._handle is None:
            try:
                self._handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise self._unwritable(error) from error

    def _write(self, view: memoryview) -> None:
        assert self._handle is not None  # noqa: S101
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _finish_if_whole(self) -> None:
        if self.at < self.file.size or self._finished or self._shut:
            return
        wrong = self._wrong()
        if wrong is not None:
            self._close()
            if self.part is not None:
                self.part.unlink(missing_ok=True)
            raise MismatchError(wrong, self.recovered > 0)
        self._open()
        if self._handle is not None and self._whole is not None and self.part is not None:
            try:
                os.fsync(self._handle)
            except OSError as error:
                raise self._unwritable(error) from error
            self._close()
            self.part.rename(self._whole)
        self._finished = True

    def _unwritable(self, error: OSError) -> ArtifactError:
        part = self.part
        assert part is not None  # noqa: S101 -- only what is kept is written
        there = part.stat().st_size if part.exists() else 0
        return unwritable(part.parent, self.file.path, self.file.size - there, error)

    def _wrong(self) -> str | None:
        """What is wrong with the bytes of a whole file."""
        pairs = [("SHA-256", self.file.sha256, self._sha256.hexdigest())]
        if self._blob is not None:
            pairs.append(("Git object", self.file.git_blob, self._blob.hexdigest()))
        for kind, wanted, found in pairs:
            if wanted is not None and wanted != found:
                return (
                    f"{self.file.path} came with {kind} {found}, its source says {wanted}: it was damaged there or on "
                    "the way; upload it again, or ask another mirror"
                )
        return None

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def disk_full(folder: Path, needed: int, *, disk: str = "the disk", remedy: str = _CACHE_REMEDY) -> ArtifactError:
    """The error of a disk that has no room for `needed` more bytes."""
    return ArtifactError(
        Reason.DISK_FULL,
        f"{disk} is full: {needed} bytes are needed, {free_bytes(folder)} are free; {remedy}",
    )


def free_bytes(folder: Path) -> int:
    """What may still be written on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def unwritable(
    folder: Path, name: str, left: int, error: OSError, *, disk: str = "the disk", remedy: str = _CACHE_REMEDY
) -> ArtifactError:
    """The error of a file or folder `name` that cannot be written; `left` bytes of it are still to come."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder, left, disk=disk, remedy=remedy)
    return ArtifactError(Reason.ARTIFACT_UNREADABLE, f"{name} cannot be written: {error.strerror or error}")


def _blob_hash(file: RemoteFile) -> hashlib._Hash | None:
    """What Git names a file by: SHA-1 over its size and bytes. No protection, but a checksum of all of it."""
    if file.git_blob is None:
        return None
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
