"""An artifact is a folder: finding it on a volume, listing it, hashing it. Nothing else is ever followed.

Rules:
- The folder lies on a declared volume, and every file in the folder, also when it is reached through a link. What a
  tenant can write may change while it is read, so a path is judged by the file that was really opened
  (/proc/self/fd), not by a look beforehand.
- Only regular files count. Opening never blocks (a FIFO in the folder would hold the reader for ever).
- Errors are ArtifactError, with a Reason and what to do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tuneyard.api.digests import FileDigest, artifact_digest, is_ignored_folder, matters_for_serving
from tuneyard.api.reasons import Reason

_CHUNK = 1 << 20


class ArtifactError(Exception):
    """An artifact cannot be used; `reason` and the text say why and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class FolderDigest:
    """What a folder holds: its digest, the bytes of all its files together, and the files."""

    digest: str
    size_bytes: int
    files: tuple[FileDigest, ...]


def find_folder(volumes: Path, volume: str, path: str) -> Path:
    """The folder `path` on the volume mounted at `volumes/volume`; raises ArtifactError if it is missing or outside."""
    if not volume or volume in (".", "..") or "/" in volume:
        raise ArtifactError(Reason.UNSAFE_PATH, f"{volume!r} is not the name of a volume")
    if path.startswith("/") or ".." in path.split("/"):
        raise ArtifactError(Reason.UNSAFE_PATH, f"source.volume.path {path!r} leaves the volume: remove '..' and '/'")
    root = volumes / volume
    if not root.is_dir():
        raise ArtifactError(
            Reason.VOLUME_NOT_DECLARED,
            f"the pods have no volume {volume}: declare it in serving.artifactVolumes of the base model (pods restart)",
        )
    folder = root / path
    try:
        real = folder.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            Reason.ARTIFACT_NOT_FOUND, f"{path} is not on volume {volume}: correct source.volume.path or copy the files"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except RuntimeError as error:  # what Python 3.11 and 3.12 make of a loop of links
        raise ArtifactError(Reason.ARTIFACT_UNREADABLE, f"{path} is a loop of links: copy the files there") from error
    if not real.is_relative_to(root.resolve()):
        raise ArtifactError(
            Reason.UNSAFE_PATH, f"{path} is a link out of volume {volume}: copy the files to the volume"
        )
    if not real.is_dir():
        raise ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{path} on volume {volume} is a file: name the folder")
    return real


def list_files(folder: Path, most: int = 100_000) -> list[str]:
    """Relative paths of the files that matter for serving, sorted.

    Raises ArtifactError where there are none, more than `most`, or links to folders.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise _unreadable(folder.name, error)

    for here, folders, files in os.walk(folder, onerror=refuse):
        prefix = "" if Path(here) == folder else Path(here).relative_to(folder).as_posix() + "/"
        folders[:] = sorted(name for name in folders if not is_ignored_folder(name))
        for name in folders:
            if (Path(here) / name).is_symlink():
                raise ArtifactError(Reason.UNSAFE_PATH, f"{prefix}{name} is a link to a folder: copy with cp -rL")
        found += [_told_apart(prefix + name) for name in files if matters_for_serving(prefix + name)]
        if len(found) > most:
            raise ArtifactError(
                Reason.ARTIFACT_UNREADABLE, f"more than {most} files: the path names a parent folder of the artifact"
            )
    if not found:
        raise ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{folder.name} holds no files: copy the artifact there")
    return sorted(found)


def _told_apart(path: str) -> str:
    """The path, if a digest can name it; raises ArtifactError."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise ArtifactError(Reason.UNSAFE_PATH, f"the name {shown} is not UTF-8: rename or remove it") from error
    return path


@contextmanager
def opened(folder: Path, path: str) -> Iterator[BinaryIO]:
    """The file `path` of a folder, unbuffered, to be read from its beginning; it is surely inside the folder."""
    try:
        handle = os.open(folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactError(Reason.FILES_MISSING, f"{path} is missing: copy the whole artifact") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    with os.fdopen(handle, "rb", buffering=0) as file:
        where = Path(f"/proc/self/fd/{handle}").readlink()
        if not where.is_relative_to(folder.resolve()):
            raise ArtifactError(Reason.UNSAFE_PATH, f"{path} is a link out of the artifact: copy with cp -rL")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ArtifactError(Reason.UNSAFE_PATH, f"{path} is not a regular file: remove it")
        yield file


def digest_of(
    folder: Path, workers: int = 2, most: int = 100_000, on_bytes: Callable[[int], None] | None = None
) -> FolderDigest:
    """The digest of a folder, hashing `workers` files at a time; `on_bytes` hears of progress (from other threads)."""
    folder = folder.resolve()
    paths = list_files(folder, most)

    def heard(piece: memoryview) -> None:
        if on_bytes is not None:
            on_bytes(len(piece))

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return summed(list(pool.map(lambda path: hashed(folder, path, heard), paths)))


def hashed(folder: Path, path: str, on_piece: Callable[[memoryview], None] | None = None) -> FileDigest:
    """Hash one file; `on_piece` hears its bytes, before they are overwritten by those that follow."""
    state = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_CHUNK))
    with opened(folder, path) as source:
        while count := _read_into(source, buffer, path):
            state.update(buffer[:count])
            size += count
            if on_piece is not None:
                on_piece(buffer[:count])
    return FileDigest(path, size, state.hexdigest())


def summed(files: Sequence[FileDigest]) -> FolderDigest:
    """The digest of a folder of these files."""
    return FolderDigest(artifact_digest(files), sum(f.size for f in files), tuple(files))


def _read_into(source: BinaryIO, buffer: memoryview, path: str) -> int:
    try:
        count: int = source.readinto(buffer)  # type: ignore[attr-defined]
    except OSError as error:
        raise _unreadable(path, error) from error
    return count


def _unreadable(path: str, error: OSError) -> ArtifactError:
    if error.errno in (errno.EACCES, errno.EPERM):
        text = f"{path} may not be read by user {os.getuid()}: chmod -R a+rX the artifact"
    else:
        text = f"{path} cannot be read: {error.strerror or error}"
    return ArtifactError(Reason.ARTIFACT_UNREADABLE, text)
