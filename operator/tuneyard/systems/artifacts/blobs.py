"""Artifacts in the cache: looking whether they are still what they were, giving them their place, mending them.

Rules:
- An artifact has its place by one rename of a folder that is complete, checked and on the disk; it loses it by one.
- Every opening compares the files with the manifest: which there are, their sizes, and the stamps of when their bytes
  were last hashed. Where a stamp does not fit the bytes are hashed again, by one process at a time.
- A corrupt artifact that nobody uses goes to the trash. One that is in use stays where it is, because an engine whose
  files vanish dies; its files are replaced one by one, by renames, when they have been fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from tuneyard.api.digests import FileDigest
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.manifest import (
    MANIFEST,
    MOST_MANIFEST,
    Manifest,
    ManifestError,
    manifest_of,
    read_manifest,
    write_manifest,
)
from tuneyard.systems.artifacts.storefolders import (
    BLOBS,
    FILES,
    PARTIALS,
    Folders,
    Stamp,
    backdate,
    keep_only,
    listed,
    open_file,
    open_folder,
    read_file,
    remove,
    replace_file,
    scan,
    seal,
    stamp_of,
    touch,
    unseal,
    write_file,
)
from tuneyard.systems.artifacts.storelocks import Lock, Locks

USED = "used"
_MARKS = "marks"
_MARK = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_MOST_MARK = 16 << 20
_PIECE = 1 << 20
_AHEAD = 60.0
"""Seconds that nodes' clocks may differ by; a time further ahead is not believed, or it would put hashing off."""
_WORKERS = 2
_THERE_ALREADY = frozenset({errno.ENOTEMPTY, errno.EEXIST})

Identity = tuple[int, int]


class CorruptError(Exception):
    """An artifact's files are not what its manifest says; `seen` tells whether it is still the same one later."""

    def __init__(self, why: str, seen: Identity) -> None:
        super().__init__(why)
        self.seen = seen


class Blobs:
    """The artifacts of one cache, by the 64 hex digits of their digest; whoever calls holds the lock `blob-<hex>`."""

    def __init__(self, folders: Folders, locks: Locks) -> None:
        self._folders = folders
        self._locks = locks

    def open(self, key: str, hashed_since: float = 0.0, going_on: Callable[[], None] = lambda: None) -> Manifest | None:
        """The manifest of an artifact whose files are right, None if there is none.

        They are hashed unless every byte of them was since then. `going_on` is called meanwhile, from other threads,
        and raises if it is to end. Raises CorruptError, and ArtifactError (CacheUnusable) for a newer format.
        """
        return self._open(BLOBS, key, f"sha256:{key}", hashed_since, going_on)

    def drop(self, key: str, wrong: CorruptError) -> bool:
        """Trash a corrupt artifact; False if somebody uses it, or has put it right. The caller's lock is free."""
        lock = self._locks.attempt(f"blob-{key}")
        if lock is None:
            return False
        with lock:
            try:
                with self._folders.opened(BLOBS, key) as blob:
                    if _identity(blob) != wrong.seen:
                        return False
            except FileNotFoundError:
                return False
            doomed = self._folders.trash(BLOBS, key)
        self._folders.delete(doomed)
        return True

    def withdraw(self, key: str) -> None:
        """Trash an artifact that has no room, unless somebody uses it. The caller's lock is free."""
        lock = self._locks.attempt(f"blob-{key}")
        if lock is not None:
            with lock:
                doomed = self._folders.trash(BLOBS, key)
            self._folders.delete(doomed)

    def distrust(self, key: str) -> None:
        """Have everyone who opens the artifact hash it again."""
        with suppress(FileNotFoundError, ManifestError, ValueError), self._folders.opened(BLOBS, key) as blob:
            manifest = _manifest(blob, f"sha256:{key}")
            write_file(blob, MANIFEST, write_manifest(manifest.distrusted()))

    def seal(self, partial: str, found: FolderDigest) -> Manifest:
        """Make fetched files an artifact that lacks only its place; ArtifactError where they are not as `found`."""
        with self._folders.opened(PARTIALS, partial) as folder:
            for name in listed(folder):
                if name != FILES:
                    remove(folder, name)
            with _files(folder) as files:
                keep_only(files, [file.path for file in found.files])
                seal(files)
                manifest = manifest_of(found, scan(files), time.time())
            touch(folder, USED)
            os.mkdir(_MARKS, 0o755, dir_fd=folder)
            write_file(folder, MANIFEST, write_manifest(manifest))  # last: who finds it finds the rest complete
            os.fsync(folder)
        return manifest

    def sealed(self, partial: str) -> Manifest | None:
        """What was sealed by a process that died before it gave it a place; else the files are ready to be written."""
        with self._folders.opened(PARTIALS, partial) as folder:
            with suppress(ManifestError, ValueError, LookupError, TypeError, CorruptError):
                text = read_file(folder, MANIFEST, MOST_MANIFEST)
                if text is None:
                    self._reopen(folder)
                    return None
                return self._open(PARTIALS, partial, _digest_in(text), 0.0, lambda: None)
            # They were whole and are not any more: nobody may go on with them. The manifest, which says so, goes last.
            remove(folder, FILES)
            remove(folder, MANIFEST)
        return None

    def place(
        self, partial: str, manifest: Manifest, tell: Callable[[str, CorruptError], None]
    ) -> tuple[Manifest, Lock]:
        """Give a sealed artifact its place, or leave it to the one that has it; with the shared lock on it.

        `tell` hears of a corrupt one that had the place.
        """
        key = manifest.digest.removeprefix("sha256:")
        while True:
            lock = self._locks.shared(f"blob-{key}")
            try:
                there = self.open(key)
                if there is None:
                    self._folders.move(PARTIALS, partial, BLOBS, key)
                    with self._folders.opened(BLOBS) as blobs:
                        os.fsync(blobs)
                    return manifest, lock
            except CorruptError as wrong:
                lock.release()
                tell(key, wrong)
                if self.drop(key, wrong):
                    continue
                lock = self._locks.shared(f"blob-{key}")
                there = self._mend(key, partial, manifest)
            except OSError as error:
                lock.release()
                if error.errno in _THERE_ALREADY:
                    continue  # the same artifact came from another source at the same time
                raise
            except BaseException:
                lock.release()
                raise
            if there is not None:
                self._folders.delete(self._folders.trash(PARTIALS, partial))
                return there, lock
            lock.release()

    def touch(self, key: str) -> None:
        """It is used now."""
        with suppress(FileNotFoundError), self._folders.opened(BLOBS, key) as blob:
            touch(blob, USED)

    def mark(self, key: str, name: str, value: str) -> None:
        """Remember something of the artifact's bytes, for as long as it lies here; ArtifactError if it does not."""
        try:
            with self._folders.opened(BLOBS, key, _MARKS, create=False) as marks:
                write_file(marks, _mark_name(name), value)
        except FileNotFoundError as error:
            raise ArtifactError(
                Reason.ARTIFACT_NOT_FOUND, f"sha256:{key} is not in the cache: obtain it before marking it"
            ) from error

    def marked(self, key: str, name: str) -> str | None:
        """What was remembered under that name."""
        try:
            with self._folders.opened(BLOBS, key, _MARKS) as marks:
                return read_file(marks, _mark_name(name), _MOST_MARK)
        except (FileNotFoundError, ValueError):
            return None

    def _open(
        self, area: str, name: str, digest: str, hashed_since: float, going_on: Callable[[], None]
    ) -> Manifest | None:
        try:
            with self._folders.opened(area, name) as folder:
                if (manifest := _unchanged(folder, digest, hashed_since)) is not None:
                    return manifest
                with self._locks.alone(f"check-{name}"):
                    if (manifest := _unchanged(folder, digest, hashed_since)) is not None:
                        return manifest  # another process has just hashed it
                    return _rehashed(folder, digest, going_on)
        except FileNotFoundError:
            return None

    def _mend(self, key: str, partial: str, manifest: Manifest) -> Manifest | None:
        """Put right files in the place of a corrupt artifact that others use; None if it is gone meanwhile."""
        try:
            with (
                self._locks.alone(f"check-{key}"),
                self._folders.opened(PARTIALS, partial) as source,
                self._folders.opened(BLOBS, key) as target,
                _files(source) as fresh,
                _files(target, create=True) as files,
            ):
                unseal(fresh)
                unseal(files)
                keep_only(files, [file.path for file in manifest.files])
                for file in manifest.files:
                    replace_file(fresh, files, file.path)
                seal(files)
                mended = manifest.rechecked(scan(files), manifest.hashed_at)
                write_file(target, MANIFEST, write_manifest(mended))
        except FileNotFoundError:
            return None
        return mended

    def _reopen(self, partial: int) -> None:
        with suppress(FileNotFoundError), _files(partial) as files:
            unseal(files)
            for path in scan(files):
                handle = open_file(files, path)
                try:
                    os.fchmod(handle, 0o644)
                finally:
                    os.close(handle)


@contextmanager
def _files(folder: int, create: bool = False) -> Iterator[int]:
    handle = open_folder(folder, FILES, create)
    try:
        yield handle
    finally:
        os.close(handle)


def _identity(folder: int) -> Identity:
    status = os.fstat(folder)
    return status.st_ino, status.st_mtime_ns


def _manifest(folder: int, digest: str) -> Manifest:
    text = read_file(folder, MANIFEST, MOST_MANIFEST)
    if text is None:
        raise ManifestError("its manifest is missing")
    return read_manifest(text, digest)


def _digest_in(text: str) -> str:
    """Which artifact a manifest says to be of; whether that is true is seen when it is read."""
    return str(json.loads(text)["digest"])


def _unchanged(folder: int, digest: str, hashed_since: float) -> Manifest | None:
    """The manifest, if all the files have the stamps and sizes that it has of them, and were hashed since then."""
    try:
        manifest = _manifest(folder, digest)
        with _files(folder) as files:
            stamps = scan(files)
    except (ManifestError, ValueError, OSError):
        return None
    except ArtifactError as error:
        if error.reason is Reason.CACHE_UNUSABLE:
            raise
        return None
    sizes = {path: stamp.size for path, stamp in stamps.items()}
    fits = stamps == manifest.checked and sizes == {f.path: f.size for f in manifest.files}
    trusted = not hashed_since or hashed_since <= manifest.hashed_at <= time.time() + _AHEAD
    return manifest if fits and trusted else None


def _rehashed(folder: int, digest: str, going_on: Callable[[], None]) -> Manifest:
    """The manifest after hashing every file."""
    seen, begun = _identity(folder), time.time()
    try:
        manifest = _manifest(folder, digest)
        with _files(folder) as files:
            _same_names(manifest, scan(files))
            with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
                stamps = dict(pool.map(lambda file: (file.path, _hashed(files, file, going_on)), manifest.files))
    except ArtifactError as error:
        if error.reason is Reason.CACHE_UNUSABLE:
            raise
        raise CorruptError(str(error), seen) from error
    except FileNotFoundError as error:
        raise CorruptError("its files are missing", seen) from error
    except ValueError as error:
        raise CorruptError(str(error), seen) from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptError("the disk cannot read it", seen) from error
    manifest = manifest.rechecked(stamps, begun)
    write_file(folder, MANIFEST, write_manifest(manifest))
    return manifest


def _same_names(manifest: Manifest, stamps: Mapping[str, Stamp]) -> None:
    wanted = {file.path: file.size for file in manifest.files}
    if missing := sorted(wanted.keys() - stamps.keys()):
        raise ValueError(f"{missing[0]} is missing")
    if others := sorted(stamps.keys() - wanted.keys()):
        raise ValueError(f"{others[0]} does not belong to it")
    for path, size in wanted.items():
        if stamps[path].size != size:
            raise ValueError(f"{path} has {stamps[path].size} bytes instead of {size}")


def _hashed(files: int, wanted: FileDigest, going_on: Callable[[], None]) -> Stamp:
    """The stamp of a file whose bytes are right; of the very file that was read, whatever is renamed over it."""
    with os.fdopen(open_file(files, wanted.path), "rb", buffering=0) as file:
        backdate(file.fileno())
        before = stamp_of(os.fstat(file.fileno()))
        state, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
        while count := file.readinto(buffer):
            going_on()
            state.update(buffer[:count])
        found = state.hexdigest()
        if stamp_of(os.fstat(file.fileno())) != before:
            raise ValueError(f"{wanted.path} changed while it was read")
    if found != wanted.sha256:
        raise ValueError(f"{wanted.path} has SHA-256 {found} instead of {wanted.sha256}")
    return before


def _mark_name(name: str) -> str:
    if not _MARK.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a mark")
    return name
