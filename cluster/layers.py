"""Image layers: tar files that come out the same for the same inputs, kept in the cache under a key over these inputs.

Invariants:
- A layer's bytes depend on names, modes, links and contents alone: entries are sorted, owned by root, dated to one
  moment; sockets, devices and set-id bits are left out (nothing in our pods may gain rights).
- `<name>-<key>.tar` in the cache is complete whenever its `.json` is there: the tar is renamed into place first.
- A key that is found is never built again, so a caller must put all that decides the content into it.
- Old layers of the same name go when newer ones push them out; one in use by two checkouts stays, use renews it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from typing_extensions import Buffer

from cluster.paths import cache_root, locked
from cluster.progress import Progress
from cluster.pythons import scratch

# 2020-01-01. Byte code in our layers does not look at it.
_MOMENT = 1577836800
_KEPT = 4
_COPY = 1 << 20


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer: its file, `sha256:` digest, size in bytes, and facts its builder learnt."""

    name: str
    path: Path
    digest: str
    size: int
    facts: dict[str, str] = field(default_factory=dict)


class _Hashing(io.BufferedIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: Buffer, /) -> int:
        """Write and hash."""
        written = self._file.write(data)
        self.sha256.update(data)
        self._position += written
        return written

    def tell(self) -> int:
        """Bytes written."""
        return self._position


class LayerWriter:
    """Writes one layer. Paths are relative to the image's root; parents are made as needed."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._folders: set[PurePosixPath] = {PurePosixPath()}

    def folder(self, path: PurePosixPath, mode: int = 0o755) -> None:
        """A folder, and those above it; one that is there already is left as it is."""
        if path in self._folders:
            return
        self.folder(path.parent)
        self._folders.add(path)
        entry = self._entry(path, mode)
        entry.type = tarfile.DIRTYPE
        self._tar.addfile(entry)

    def content(self, path: PurePosixPath, data: bytes, mode: int = 0o644) -> None:
        """A file with these bytes."""
        self.folder(path.parent)
        entry = self._entry(path, mode)
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))

    def file(self, path: PurePosixPath, source: Path, *, keep_time: bool = False) -> None:
        """A file, link or folder like `source`; anything else is left out."""
        found = source.lstat()
        mode = stat.S_IMODE(found.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_ISDIR(found.st_mode):
            self.folder(path, mode)
            return
        self.folder(path.parent)
        entry = self._entry(path, mode, int(found.st_mtime) if keep_time else _MOMENT)
        if stat.S_ISLNK(found.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, str(source.readlink())
            self._tar.addfile(entry)
        elif stat.S_ISREG(found.st_mode):
            entry.size = found.st_size
            with source.open("rb") as content:
                self._tar.addfile(entry, content)

    def tree(
        self,
        top: PurePosixPath,
        source: Path,
        wanted: Callable[[PurePosixPath], bool],
        keep_time: Callable[[PurePosixPath], bool] = lambda _path: False,
        *,
        empty_folders: bool = False,
    ) -> None:
        """Everything below `source`, placed below `top`.

        `wanted` and `keep_time` get paths relative to `source`; a folder that is not wanted is not entered. With
        `empty_folders` each folder is there with its mode, without it only folders that something is in.
        """
        for path in _walk(source, PurePosixPath(), wanted):
            if not empty_folders and (source / path).is_dir() and not (source / path).is_symlink():
                continue
            self.file(top / path, source / path, keep_time=keep_time(path))

    @staticmethod
    def _entry(path: PurePosixPath, mode: int, moment: int = _MOMENT) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(str(path))
        entry.mode, entry.mtime = mode, moment
        return entry


def _walk(source: Path, below: PurePosixPath, wanted: Callable[[PurePosixPath], bool]) -> Iterator[PurePosixPath]:
    for found in sorted(os.scandir(source / below), key=lambda entry: entry.name):
        path = below / found.name
        if wanted(path):
            yield path
            if found.is_dir(follow_symlinks=False):
                yield from _walk(source, path, wanted)


def cached(name: str, key: str, write: Callable[[LayerWriter], dict[str, str] | None], progress: Progress) -> Layer:
    """The layer `name` for `key`, written by `write` (which returns the layer's facts) when it is not there."""
    folder = cache_root() / "layers"
    stem = f"{name}-{key}"
    with locked(f"layer-{stem}"):
        if found := _read(folder, name, stem):
            return found
        with scratch(folder) as temporary, progress.step(f"layer {name}"):
            tar_path = temporary / "layer.tar"
            with tar_path.open("wb", buffering=_COPY) as file:
                hashing = _Hashing(file)
                with tarfile.TarFile(fileobj=hashing, mode="w", format=tarfile.GNU_FORMAT, copybufsize=_COPY) as tar:
                    facts = write(LayerWriter(tar)) or {}
            described = {"digest": f"sha256:{hashing.sha256.hexdigest()}", "size": hashing.tell(), "facts": facts}
            tar_path.rename(folder / f"{stem}.tar")
            (temporary / "layer.json").write_text(json.dumps(described))
            (temporary / "layer.json").rename(folder / f"{stem}.json")
        _forget_old(folder, name)
        found = _read(folder, name, stem)
        assert found is not None
        return found


def _read(folder: Path, name: str, stem: str) -> Layer | None:
    described, tar = folder / f"{stem}.json", folder / f"{stem}.tar"
    if not (described.exists() and tar.exists()):
        return None
    described.touch()
    found = json.loads(described.read_text())
    return Layer(name, tar, found["digest"], found["size"], found["facts"])


def _forget_old(folder: Path, name: str) -> None:
    """Remove all but the layers of this name that were used last."""
    same = [path for path in folder.glob(f"{name}-*.json") if path.stem.rsplit("-", 1)[0] == name]
    for described in sorted(same, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        described.unlink()
        described.with_suffix(".tar").unlink(missing_ok=True)
