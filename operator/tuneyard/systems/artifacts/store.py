"""The node cache: artifacts by their digest on a volume that the pods of one namespace share.

Rules:
- An artifact is fetched once, however many pods start: who wants one that is being fetched waits, says so, and finds
  it; if the one that fetched died, he goes on where it was.
- Whoever has an artifact holds a shared lock on it, which the kernel frees when the process dies; nothing that is
  held is ever evicted, by any pod.
- What is handed out is right: its files are those of the digest, by sizes and stamps at every opening, by every byte
  when a stamp does not fit, or when that was last done too long ago. What is wrong is fetched again, and told.
- A process may be killed anywhere: what it leaves is used, gone on with, or cleared by the next one.

The parts: storefolders.py (no link is followed), storelocks.py, manifest.py, blobs.py, room.py (limit, eviction).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api.digests import is_digest
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.blobs import USED, Blobs, CorruptError
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.manifest import Manifest
from tuneyard.systems.artifacts.room import Room
from tuneyard.systems.artifacts.storefolders import (
    BLOBS,
    FILES,
    PARTIALS,
    SOURCES,
    Folders,
    read_file,
    touch,
    write_file,
)
from tuneyard.systems.artifacts.storelocks import Lock, Locks

_log = logging.getLogger(__name__)

RESERVE = 64 << 20
"""Bytes of the disk that are left free: for manifests, and for whatever else lies there."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PREFIX = "sha256:"
_SOURCE_MAJOR = "1"

Fetch = Callable[[Path], FolderDigest]
"""Brings an artifact's files to the folder it is given, which may hold files of an earlier try; beside that folder it
may keep what it needs to go on. Returns what the folder holds now; raises ArtifactError."""

OnWait = Callable[[int, int | None], None]
"""Hears, again and again, of the download that is waited for: bytes that have come, and of how many if that is known.
What it raises ends the waiting."""

OnCorrupt = Callable[[str, str], None]
"""Hears the digest of a corrupt artifact, and what is wrong with it."""


class OtherBytesError(ArtifactError):
    """A source has other bytes than the pinned ones (DigestMismatch); `found` is their digest."""

    def __init__(self, pinned: str, found: str) -> None:
        super().__init__(
            Reason.DIGEST_MISMATCH,
            f"the files' digest is {found}, pinned is {pinned}: restore the files, or create a new object for the new "
            "ones",
        )
        self.found = found


@dataclass(frozen=True)
class Entry:
    """An artifact in the cache, for reports."""

    digest: str
    size_bytes: int
    """On the disk."""
    last_used: float
    """Seconds since 1970."""
    in_use: bool
    """By this or another process, on this or another node."""


class Held:
    """An artifact that stays where it is until `release`, or the end of the process."""

    def __init__(self, blobs: Blobs, path: Path, manifest: Manifest, lock: Lock) -> None:
        self.path = path
        self.digest = manifest.digest
        self.size_bytes = manifest.size_bytes
        self.files = manifest.files
        self._blobs = blobs
        self._lock = lock
        self.touch()

    def touch(self) -> None:
        """Say that it is used now, for the order of eviction once it is released."""
        self._blobs.touch(self.digest.removeprefix(_PREFIX))

    def release(self) -> None:
        """It may go from now on; again is no other thing."""
        self._lock.release()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Held({self.digest})"


class Store:
    """The cache in the folder `root`, of at most `limit` bytes (None: as the disk allows).

    Raises ArtifactError (CacheUnusable) where the volume cannot be a cache. All methods block.
    """

    def __init__(
        self, root: Path, limit: int | None = None, *, reserve: int = RESERVE, on_corrupt: OnCorrupt | None = None
    ) -> None:
        self._folders = Folders(root)
        self._locks = Locks(self._folders)
        self._blobs = Blobs(self._folders, self._locks)
        self._room = Room(self._folders, self._locks, limit, reserve)
        self._on_corrupt = on_corrupt or _warn
        self._told: set[str] = set()
        with _in_words():
            self._locks.prove()
            self._room.sweep()

    def find(
        self, digest: str, *, hashed_within: float | None = None, going_on: Callable[[], None] = lambda: None
    ) -> Held | None:
        """The artifact if it is here and right; a corrupt one is told of, and is not here.

        `hashed_within`: every byte is hashed if that was last done more seconds ago; `going_on` is called meanwhile,
        and raises if it is to end.
        """
        with _in_words():
            return self._find(_key(digest), _Trust(hashed_within, going_on))

    def obtain(
        self,
        fingerprint: str,
        pinned: str | None,
        fetch: Fetch,
        *,
        size: Callable[[], int | None] | int | None = None,
        on_wait: OnWait | None = None,
        hashed_within: float | None = None,
        going_on: Callable[[], None] = lambda: None,
    ) -> Held:
        """The artifact of a source: from the cache, from another process that is fetching it, or fetched.

        `fingerprint` names the source and the state of it that is meant, and is the same for all who mean the same.
        `size` is what will come, in bytes; it is asked only if something has to come. For `hashed_within` and
        `going_on` see `find`. Raises OtherBytesError, NoRoomError, and what `fetch` raises.
        """
        trust = _Trust(hashed_within, going_on)
        source = hashlib.sha256(fingerprint.encode()).hexdigest()

        def waiting() -> None:
            if on_wait is not None:
                on_wait(*self._room.coming(source))

        if (held := self._known(source, pinned, trust)) is not None:
            return held
        with ExitStack() as locks:
            with _in_words():
                locks.enter_context(self._locks.wait(f"source-{source}", waiting))
                if pinned is not None:  # other sources may have the same
                    locks.enter_context(self._locks.wait(f"fetch-{_key(pinned)}", waiting))
            if (held := self._known(source, pinned, trust)) is not None:
                return held
            return self._fetched(source, pinned, fetch, size)

    def verify(self, digest: str) -> str | None:
        """What is wrong with an artifact, after hashing every byte of it; None for nothing.

        A wrong one is told of, and is gone or mended when it is obtained the next time. Raises ArtifactError
        (ArtifactNotFound) where it is not here.
        """
        key = _key(digest)
        with _in_words():
            try:
                with self._locks.shared(f"blob-{key}"):
                    found = self._blobs.open(key, math.inf)
            except CorruptError as wrong:
                self._give_up(key, wrong)
                return str(wrong)
        if found is None:
            raise _absent(digest)
        return None

    def mark(self, digest: str, name: str, value: str) -> None:
        """Remember what was found out of an artifact's bytes, for all pods; while it is held."""
        with _in_words():
            self._blobs.mark(_key(digest), name, value)

    def marked(self, digest: str, name: str) -> str | None:
        """What was found out of an artifact's bytes, None for nothing yet."""
        with _in_words():
            return self._blobs.marked(_key(digest), name)

    def entries(self) -> list[Entry]:
        """What is in the cache, most recently used first; downloads under way are not."""
        with _in_words():
            stored = [s for s in self._room.stored() if s.name.startswith(f"{BLOBS}/")]
        found = [Entry(_PREFIX + s.name.removeprefix(f"{BLOBS}/"), s.size_bytes, s.last_used, s.in_use) for s in stored]
        return sorted(found, key=lambda entry: (-entry.last_used, entry.digest))

    def _find(self, key: str, trust: _Trust) -> Held | None:
        lock = self._locks.shared(f"blob-{key}")
        try:
            manifest = self._blobs.open(key, trust.since(), trust.going_on)
        except CorruptError as wrong:
            lock.release()
            self._give_up(key, wrong)
            return None
        except BaseException:
            lock.release()
            raise
        if manifest is None:
            lock.release()
            return None
        return self._held(manifest, lock)

    def _held(self, manifest: Manifest, lock: Lock) -> Held:
        key = _key(manifest.digest)
        self._told.discard(key)
        path = self._folders.path(BLOBS, key, FILES)
        return Held(self._blobs, path, manifest, lock)

    def _known(self, source: str, pinned: str | None, trust: _Trust) -> Held | None:
        with _in_words():
            digest = pinned or self._digest_of(source)
            return self._find(_key(digest), trust) if digest else None

    def _fetched(
        self, source: str, pinned: str | None, fetch: Fetch, size: Callable[[], int | None] | int | None
    ) -> Held:
        """Fetch an artifact; the source's lock is held."""
        with _in_words(), self._folders.opened(PARTIALS, source, create=True):
            manifest = self._blobs.sealed(source)
        if manifest is None:
            expected = size() if callable(size) else size
            with _in_words():
                if expected is not None:
                    self._room.reserve(source, expected)
            found = self._fetch(source, fetch, expected)
            with _in_words():
                manifest = self._sealed(source, found)
        with _in_words():
            if pinned not in (None, manifest.digest):
                self._folders.delete(self._folders.trash(PARTIALS, source))
                raise OtherBytesError(str(pinned), manifest.digest)
            self._remember(source, manifest.digest)  # before it has its place: else a death between costs a download
            return self._placed(source, manifest)

    def _sealed(self, source: str, found: FolderDigest) -> Manifest:
        try:
            return self._blobs.seal(source, found)
        except ArtifactError:
            self._folders.delete(self._folders.trash(PARTIALS, source))  # going on with these would end here again
            raise

    def _placed(self, source: str, manifest: Manifest) -> Held:
        held = self._held(*self._blobs.place(source, manifest, self._tell))
        try:
            self._room.settle()
        except ArtifactError:
            # it was larger than was said, and what is in use leaves no room for it
            held.release()
            self._blobs.withdraw(_key(held.digest))
            raise
        return held

    def _fetch(self, source: str, fetch: Fetch, expected: int | None) -> FolderDigest:
        with _in_words(), self._folders.opened(PARTIALS, source) as partial:
            touch(partial, USED)
        target = self._folders.path(PARTIALS, source, FILES)
        while True:
            try:
                return fetch(target)
            except (ArtifactError, OSError) as error:
                if not _is_full(error):
                    raise
                # somebody else fills the disk, or the size was not known
                if not self._room.give_way():
                    raise self._room.shortage(source, expected) from error

    def _give_up(self, key: str, wrong: CorruptError) -> None:
        self._tell(key, wrong)
        if not self._blobs.drop(key, wrong):
            self._blobs.distrust(key)

    def _tell(self, key: str, wrong: CorruptError) -> None:
        """Once until it is right again: one obtain may look at it three times."""
        if key not in self._told:
            self._told.add(key)
            self._on_corrupt(_PREFIX + key, str(wrong))

    def _digest_of(self, source: str) -> str | None:
        """The digest that a source had."""
        try:
            with self._folders.opened(SOURCES) as sources:
                text = read_file(sources, source, 4096)
                known = json.loads(text) if text else {}
                if str(known.get("version")).partition(".")[0] != _SOURCE_MAJOR:
                    return None
                touch(sources, source)
            digest = known.get("digest")
            return digest if isinstance(digest, str) and is_digest(digest) else None
        except (ValueError, AttributeError):
            return None

    def _remember(self, source: str, digest: str) -> None:
        with self._folders.opened(SOURCES) as sources:
            write_file(sources, source, json.dumps({"version": f"{_SOURCE_MAJOR}.0", "digest": digest}))


@dataclass(frozen=True)
class _Trust:
    """How long stamps are enough to know that bytes are right."""

    hashed_within: float | None
    going_on: Callable[[], None]

    def since(self) -> float:
        return 0.0 if self.hashed_within is None else time.time() - self.hashed_within


def _key(digest: str) -> str:
    if not is_digest(digest):
        raise ArtifactError(Reason.INVALID_SPEC, f"{digest!r} is not a digest: it is sha256: and 64 hex digits")
    return digest.removeprefix(_PREFIX)


def _absent(digest: str) -> ArtifactError:
    return ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{digest} is not in the cache")


def _is_full(error: ArtifactError | OSError) -> bool:
    return error.reason is Reason.DISK_FULL if isinstance(error, ArtifactError) else error.errno in _FULL


def _warn(digest: str, wrong: str) -> None:
    _log.warning("%s in the cache is corrupt, %s: it is fetched again", digest, wrong)


@contextmanager
def _in_words() -> Iterator[None]:
    """Errors of the volume, as people need them."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in _FULL:
            raise ArtifactError(
                Reason.DISK_FULL, f"the cache's volume is full ({words}): give serving.cache more room"
            ) from error
        raise ArtifactError(
            Reason.CACHE_UNUSABLE,
            f"the cache cannot be used, {words}: its volume must be there and writable by user {os.getuid()}",
        ) from error
