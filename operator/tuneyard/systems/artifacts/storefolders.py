"""The folders of the node cache, as descriptors: no path is walked twice, and no link is ever followed.

All pods of a namespace write here, so what was a folder a moment ago may be a link to another place of this pod now.
Hence every step opens one name below an open folder with O_NOFOLLOW, and what is done is done below the descriptor.

```
<root>/blobs/<hex>/            an artifact: files/ (read-only), manifest.json, used (its time is the last use), marks/
<root>/partials/<hex>/         an artifact that is coming: files/, and what its download keeps; need (its whole size)
<root>/sources/<hex>           which digest a source had
<root>/locks/<what>-<hex>      empty files, for flock
<root>/trash/<anything>        to be deleted
```
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError

BLOBS, PARTIALS, SOURCES, LOCKS, TRASH = AREAS = ("blobs", "partials", "sources", "locks", "trash")

FILES = "files"

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_BACKDATED = 10_000_000_000
_HEX = re.compile(r"[0-9a-f]{64}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Stamp(NamedTuple):
    """What changes when a file is written or replaced."""

    size: int
    mtime_ns: int
    inode: int


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def is_key(name: str) -> bool:
    """Whether a name is one of ours: 64 hex digits."""
    return _HEX.fullmatch(name) is not None


class Folders:
    """The cache's folders below `root`; they are made when they are missing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        """The path of something in the cache, for who has to have one."""
        return self.root.joinpath(*parts)

    @contextmanager
    def opened(self, area: str, *parts: str, create: bool = False) -> Iterator[int]:
        """A folder of an area; `create` makes what is missing of it. FileNotFoundError where it is not there."""
        self.root.mkdir(parents=True, exist_ok=True)
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _below(root, [area], create=True) as folder, _below(folder, parts, create) as handle:
                yield handle
        finally:
            os.close(root)

    def names(self, area: str) -> list[str]:
        """The entries of an area that are named like ours, sorted; in the trash and among locks any."""
        with self.opened(area) as handle:
            found = listed(handle)
        return sorted(name for name in found if is_key(name) or area in (TRASH, LOCKS))

    def move(self, area: str, name: str, to_area: str, to_name: str) -> None:
        """Rename an entry; OSError (ENOTEMPTY, EEXIST) where a folder is there already."""
        with self.opened(area) as source, self.opened(to_area) as target:
            os.rename(name, to_name, src_dir_fd=source, dst_dir_fd=target)

    def trash(self, area: str, name: str) -> str | None:
        """Take an entry away by one rename, to be deleted then; its name in the trash, None if it was not there."""
        doomed = f"{name[:12]}.{secrets.token_hex(8)}"
        try:
            self.move(area, name, TRASH, doomed)
        except FileNotFoundError:
            return None
        return doomed

    def delete(self, doomed: str | None) -> None:
        """Delete something in the trash; what cannot be deleted now stays for the next who cleans."""
        if doomed is not None:
            with self.opened(TRASH) as handle:
                remove(handle, doomed)

    def free(self) -> int:
        """Bytes that may still be written to the cache's file system."""
        with self.opened(BLOBS) as handle:
            status = os.fstatvfs(handle)
        return status.f_bavail * status.f_frsize


def listed(folder: int) -> list[str]:
    """The names in a folder."""
    return os.listdir(folder)


def open_folder(parent: int, name: str, create: bool = False) -> int:
    """The folder `name` directly below `parent`; ArtifactError (UnsafePath) if that is a link or no folder."""
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except (NotADirectoryError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError) or not _is_there(parent, name):
            raise
        raise ArtifactError(
            Reason.UNSAFE_PATH, f"{name} in the cache is a link or not a folder: remove it from the cache's volume"
        ) from error


def open_file(folder: int, path: str) -> int:
    """The regular file at a relative path below a folder, to read; ArtifactError (UnsafePath) for anything else."""
    *parents, name = checked(path).split("/")
    with _below(folder, parents) as handle:
        try:
            file = os.open(name, _FILE, dir_fd=handle)
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError) or not _is_there(handle, name):
                raise
            raise _not_regular(path) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_regular(path)
    return file


def checked(path: str) -> str:
    """A path of a manifest, which is input: relative, without '..'; ArtifactError (UnsafePath) else."""
    if not path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ArtifactError(Reason.UNSAFE_PATH, f"{path!r} is not the path of a file in an artifact")
    return path


def scan(folder: int) -> dict[str, Stamp]:
    """All files below a folder by relative path; ArtifactError (UnsafePath) for links and what is no file."""
    found: dict[str, Stamp] = {}
    for here, names, files, handle in os.fwalk(".", dir_fd=folder, onerror=_raise):
        prefix = "" if here == "." else here.removeprefix("./") + "/"
        for name in names + files:
            status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                found[prefix + name] = stamp_of(status)
            elif not stat.S_ISDIR(status.st_mode):
                raise _not_regular(prefix + name)
    return found


def disk_usage(folder: int) -> int:
    """Bytes that the files below a folder take on the disk: of a file with holes, only what is written."""
    total = 0
    for _, _, files, handle in os.fwalk(".", dir_fd=folder):
        for name in files:
            with suppress(FileNotFoundError):  # a download goes on meanwhile
                total += os.stat(name, dir_fd=handle, follow_symlinks=False).st_blocks * 512
    return total


def seal(folder: int) -> None:
    """Make everything below a folder read-only, and see to it that a crash of the machine finds it on the disk."""
    for _, _, files, handle in os.fwalk(".", topdown=False, dir_fd=folder):
        for name in files:
            file = open_file(handle, name)
            try:
                backdate(file)
                os.fchmod(file, 0o444)
                os.fsync(file)
            finally:
                os.close(file)
        os.fchmod(handle, 0o555)
        os.fsync(handle)


def backdate(file: int) -> None:
    """Give a file that was just written an older time.

    Clocks of file systems tick every few milliseconds, and whoever writes to the file within the tick of the last
    write would leave its stamp as it was.
    """
    before = time.time_ns() - _BACKDATED
    if os.fstat(file).st_mtime_ns > before:
        os.utime(file, ns=(before, before))


def unseal(folder: int) -> None:
    """Make folders writable again, so that files in them can be replaced or deleted."""
    for _, _, _, handle in os.fwalk(".", dir_fd=folder):
        os.fchmod(handle, 0o755)


def write_file(folder: int, name: str, text: str) -> None:
    """Write a small file so that readers see the old or the new text, never a part."""
    scratch = f".{name}.{secrets.token_hex(8)}"
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        raise


def read_file(folder: int, name: str, most: int) -> str | None:
    """A small file's text; None if it is not there; ValueError if it is longer than `most` bytes or no text."""
    try:
        handle = open_file(folder, name)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"{name} is longer than {most} bytes")
    return raw.decode()


def touch(folder: int, name: str) -> None:
    """Set a file's time to now, by the file system's clock, which all nodes share; make it if it is missing."""
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        os.utime(handle)
    finally:
        os.close(handle)


def remove(parent: int, name: str) -> None:
    """Delete a file, a link or a whole folder; what somebody else deletes at the same time is fine."""
    try:
        folder = open_folder(parent, name)
    except FileNotFoundError:
        return
    except (ArtifactError, PermissionError):
        with suppress(OSError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        with suppress(FileNotFoundError):
            unseal(folder)
    finally:
        os.close(folder)
    shutil.rmtree(name, ignore_errors=True, dir_fd=parent)


def keep_only(files: int, paths: Collection[str]) -> None:
    """Remove everything below a folder that is neither one of the files nor a folder on the way to one."""
    wanted = set(paths)
    parents = {path[:at] for path in wanted for at in range(len(path)) if path[at] == "/"}
    for here, folders, names, handle in os.fwalk(".", dir_fd=files):
        prefix = "" if here == "." else here.removeprefix("./") + "/"
        for name in folders + names:
            is_folder = name in folders and not _is_link(handle, name)
            if prefix + name not in (parents if is_folder else wanted):
                remove(handle, name)
        folders[:] = [name for name in folders if prefix + name in parents and not _is_link(handle, name)]


def replace_file(source: int, target: int, path: str) -> None:
    """Put a file in the place of the one of the same path below another folder; it stays where it is too.

    Where the file system has no links it does not stay: a process that dies among the files then leaves a partial that
    is not whole, which is thrown away.
    """
    *parents, name = path.split("/")
    with _below(source, parents) as old, _below(target, parents, create=True) as new:
        link = f".{secrets.token_hex(8)}"
        try:
            os.link(name, link, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
            return
        os.rename(link, name, src_dir_fd=new, dst_dir_fd=new)
        with suppress(FileNotFoundError):  # a rename between two names of one file does nothing
            os.unlink(link, dir_fd=new)


@contextmanager
def _below(folder: int, parts: Sequence[str], create: bool = False) -> Iterator[int]:
    """The folder that the names lead to from a folder, one step at a time; see `open_folder`."""
    handle = os.dup(folder)
    try:
        for part in parts:
            following = open_folder(handle, part, create)
            os.close(handle)
            handle = following
        yield handle
    finally:
        os.close(handle)


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def _is_link(folder: int, name: str) -> bool:
    try:
        os.readlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _not_regular(path: str) -> ArtifactError:
    return ArtifactError(Reason.UNSAFE_PATH, f"{path} in the cache is a link or not a regular file")


def _raise(error: OSError) -> None:
    raise error
