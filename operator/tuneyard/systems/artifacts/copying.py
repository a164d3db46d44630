"""Copying an adapter's files from where others may change them to where only this pod writes.

Rules:
- A copy appears under its name only when it is complete, and its digest is of the very bytes that were copied.
- What it cannot read is the artifact's fault, what it cannot write the pod's disk's: the errors are told apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuneyard.api.digests import FileDigest
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.arriving import unwritable
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest, hashed, list_files, opened, summed

MOST_FILES = 1000
_DISK, _REMEDY = "the pod's disk", "remove adapters, or give the node more ephemeral storage"


def copy_checked(
    folder: Path,
    names: Sequence[str],
    target: Path,
    check: Callable[[Path, FolderDigest], None],
    *,
    most: int,
    going_on: Callable[[], None] = lambda: None,
) -> None:
    """Copy the files `names` to `target`, hashing the whole folder on the way; all or nothing.

    `check(copy, digest)` looks at the copy before it appears under its name; whatever it raises leaves nothing
    behind. A target that is there already is kept: names carry the digest, so its contents are the same.
    `going_on` is called again and again and raises if it is to end. Raises ArtifactError, also for a folder of more
    than `most` bytes or MOST_FILES files, and DiskFull where the copy has no room.
    """
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    paths = list_files(folder, MOST_FILES)
    sizes = {path: _size(folder, path) for path in paths}
    if sum(sizes.values()) > most:
        raise _too_large(folder, most)
    heard = _bounded(folder, most, going_on)
    left = sum(sizes[path] for path in paths if path in names)
    files: list[FileDigest] = []
    try:
        with writing(scratch, left):
            scratch.mkdir(parents=True, mode=0o755)
        for path in paths:
            if path in names:
                files.append(_copied(folder, path, scratch, left, heard))
                left -= files[-1].size
            else:
                files.append(hashed(folder, path, heard))
        check(scratch, summed(files))
        with writing(target, 0):
            if not target.exists():
                scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def writing(place: Path, left: int) -> Iterator[None]:
    """Raise ArtifactError for what the pod's disk refuses at `place`; `left` bytes are still to come."""
    try:
        yield
    except OSError as error:
        raise unwritable(place.parent, place.name, left, error, disk=_DISK, remedy=_REMEDY) from error


def _copied(folder: Path, path: str, scratch: Path, left: int, heard: Callable[[memoryview], None]) -> FileDigest:
    """Write a file's bytes to the copy, and hash the same bytes."""
    copy = scratch / path
    with writing(copy, left):
        copy.parent.mkdir(parents=True, exist_ok=True)
        target = copy.open("wb", buffering=0)

    def write(piece: memoryview) -> None:
        nonlocal left
        heard(piece)
        while piece:
            with writing(copy, left):
                count = target.write(piece)
            piece = piece[count:]
            left -= count

    with target:
        found = hashed(folder, path, write)
    copy.chmod(0o444)
    return found


def _bounded(folder: Path, most: int, going_on: Callable[[], None]) -> Callable[[memoryview], None]:
    """Hears every piece that is read; files may grow for as long as they are read, and are given up then."""
    read = 0

    def heard(piece: memoryview) -> None:
        nonlocal read
        going_on()
        read += len(piece)
        if read > most:
            raise _too_large(folder, most)

    return heard


def _too_large(folder: Path, most: int) -> ArtifactError:
    return ArtifactError(
        Reason.ARTIFACT_UNREADABLE,
        f"{folder.name} holds more than {most} bytes, as no adapter does: name the adapter's own folder",
    )


def _size(folder: Path, path: str) -> int:
    with opened(folder, path) as file:
        return file.seek(0, 2)
