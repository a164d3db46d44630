"""What a base's files say of themselves: config.json and the headers of the weights, in a folder or over the network.

Rule: only these are read. Of a remote base that is a few kilobytes of each file, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuneyard.api.reasons import Reason
from tuneyard.planning.modelsize import ModelSize, model_size
from tuneyard.systems.artifacts.folder import ArtifactError, opened
from tuneyard.systems.artifacts.remote import Remote, RemoteFile
from tuneyard.systems.artifacts.safetensors import Entry, entries_of, header_length, read_header

CONFIG = "config.json"
_MOST_CONFIG = 1 << 20
_HEADER = 64 << 20

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def base_config(folder: Path) -> dict[str, Any]:
    """config.json of a base; raises ArtifactError."""
    with opened(folder, CONFIG) as file:
        raw = file.read(_MOST_CONFIG + 1)
    return _config(raw)


def base_tensors(folder: Path) -> Tensors:
    """(name, dtype, shape) of every tensor of a base's files; raises ArtifactError."""
    for path in sorted(folder.glob("*.safetensors")):
        yield from _told(read_header(folder, path.name, _HEADER))


def read_size(folder: Path) -> ModelSize:
    """The size of the base in a folder; raises ArtifactError."""
    return model_size(base_config(folder), base_tensors(folder))


def read_remote(remote: Remote) -> ModelSize:
    """The size of a remote base; raises ArtifactError."""
    files = {file.path: file for file in remote.files()}
    if CONFIG not in files:
        raise ArtifactError(Reason.FILES_MISSING, f"{remote.what} has no {CONFIG}: it is no base model")
    if files[CONFIG].size > _MOST_CONFIG:
        raise ArtifactError(Reason.INVALID_CONFIG, f"{CONFIG} is larger than {_MOST_CONFIG} bytes: no base's is")
    config = _config(_bytes(remote, files[CONFIG], 0, files[CONFIG].size))
    return model_size(config, _remote_tensors(remote, files.values()))


def _remote_tensors(remote: Remote, files: Iterable[RemoteFile]) -> Tensors:
    for file in files:
        if file.path.endswith(".safetensors") and "/" not in file.path:
            length = header_length(file.path, _bytes(remote, file, 0, min(8, file.size)), file.size, _HEADER)
            yield from _told(entries_of(file.path, _bytes(remote, file, 8, 8 + length), file.size))


def _bytes(remote: Remote, file: RemoteFile, begin: int, end: int) -> bytes:
    return b"".join(remote.read(file, begin, end)) if begin < end else b""


def _told(entries: list[Entry]) -> Tensors:
    for entry in entries:
        yield entry.tensor.name, entry.tensor.dtype, entry.tensor.shape


def _config(raw: bytes) -> dict[str, Any]:
    try:
        if len(raw) > _MOST_CONFIG:
            raise ValueError("it is too large")
        found: object = json.loads(raw.decode())
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters, which no status can hold
    except (ValueError, RecursionError) as error:
        raise ArtifactError(Reason.INVALID_CONFIG, f"{CONFIG} is not valid JSON ({error}): save it again") from error
    if not isinstance(found, dict):
        raise ArtifactError(Reason.INVALID_CONFIG, f"{CONFIG} is not a JSON object: copy the model again")
    return found
