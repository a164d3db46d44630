"""A source of artifacts for the node cache: it goes on where an earlier try ended, and counts what it hands out."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.systems.artifacts.folder import FolderDigest
from tuneyard.systems.artifacts.remote import RemoteFile

CHUNK = 4096


def contents(seed: str, size: int = 5 * CHUNK) -> dict[str, bytes]:
    """An artifact of three files, one in a folder; other bytes for another seed."""
    weights = random.Random(seed).randbytes(size)
    return {
        "adapter_config.json": f'{{"seed": "{seed}"}}'.encode(),
        "adapter_model.safetensors": weights,
        "more/tokens.txt": weights[:CHUNK] + b"end",
    }


def folder_digest(files: Mapping[str, bytes]) -> FolderDigest:
    listed = tuple(
        FileDigest(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())
    )
    return FolderDigest(artifact_digest(listed), sum(len(data) for data in files.values()), listed)


@dataclass(frozen=True)
class Source:
    """Hands out `files`; what it hands out is noted in `log`, which processes share."""

    files: Mapping[str, bytes]
    log: Path
    before_chunk: Callable[[], None] = lambda: None

    @property
    def digest(self) -> str:
        return folder_digest(self.files).digest

    @property
    def size(self) -> int:
        return folder_digest(self.files).size_bytes

    def fetch(self, target: Path) -> FolderDigest:
        for path, data in self.files.items():
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab", buffering=0) as writing:
                here = writing.tell()
                assert file.read_bytes() == data[:here], "what an earlier try left is a beginning"
                for at in range(here, len(data), CHUNK):
                    self.before_chunk()
                    chunk = data[at : at + CHUNK]
                    self.note(len(chunk))
                    sys.audit("tuneyard.tests.write")
                    writing.write(chunk)
        return folder_digest(self.files)

    def handed_out(self) -> int:
        """Bytes, over all processes."""
        return sum(int(line.split()[1]) for line in self._lines())

    def fetchers(self) -> set[int]:
        """The processes that fetched a byte."""
        return {int(line.split()[0]) for line in self._lines()}

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def note(self, count: int) -> None:
        """So many bytes are handed out."""
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{os.getpid()} {count}\n".encode())
        finally:
            os.close(handle)


def read_all(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(entry.name for entry in folder.iterdir())


class SourceRemote:
    """A source as something that comes over the network, of whose files no checksum is known: S3, mostly."""

    identity = "nobody"
    commit = None

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def what(self) -> str:
        return f"source {self.source.log}"

    def fingerprint(self) -> str:
        return self.what

    def files(self) -> list[RemoteFile]:
        found = folder_digest(self.source.files).files
        return [RemoteFile(file.path, file.size, None, f"etag-{file.sha256}") for file in found]

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        data = self.source.files[file.path]
        for at in range(begin, end, CHUNK):
            piece = data[at : min(at + CHUNK, end)]
            self.source.note(len(piece))
            sys.audit("tuneyard.tests.write")
            yield piece

    def close(self) -> None:
        """Nothing is open."""
