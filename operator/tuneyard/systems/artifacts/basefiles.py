"""What a base's files say of themselves: config.json and the headers of the weights, in a folder or over the network.

Rule: only these are read. Of a remote base that is a few kilobytes of each file, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneyard.api.reasons import Reason
from tuneyard.planning.engines import Weights
from tuneyard.planning.modelsize import ModelSize, model_size
from tuneyard.systems.artifacts.folder import ArtifactError, opened
from tuneyard.systems.artifacts.remote import Remote, RemoteFile
from tuneyard.systems.artifacts.safetensors import Entry, entries_of, header_length, read_header

CONFIG = "config.json"
MOST_CONFIG = 1 << 20
"""Bytes of the largest configuration that is read."""
_HEADER = 64 << 20

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]


def base_config(folder: Path) -> dict[str, Any]:
    """config.json of a base; raises ArtifactError."""
    return _config(read_json(folder, CONFIG))


def read_json(folder: Path, name: str) -> object:
    """The JSON of a small file; raises ArtifactError (InvalidConfig)."""
    with opened(folder, name) as file:
        return _json(file.read(MOST_CONFIG + 1), name)


def weights_in(names: Iterable[str]) -> list[str]:
    """Those of a base's files that are its weights in safetensors."""
    return [name for name in names if name.endswith(".safetensors") and "/" not in name]


def gguf_in(names: Iterable[str]) -> list[str]:
    """The parts of a base in GGUF among its files, sorted; none where it has safetensors, or neither.

    Raises ArtifactError where there are several models: one in several quantisations is several bases.
    """
    files = sorted(name for name in names if "/" not in name)
    found = [] if weights_in(files) else [name for name in files if name.endswith(".gguf")]
    if len(found) > 1 and not all("-of-" in name for name in found):
        raise ArtifactError(
            Reason.FILES_MISSING, f"there are {len(found)} GGUF files, {found[0]} first: give each a folder of its own"
        )
    return found


def base_tensors(folder: Path) -> Tensors:
    """(name, dtype, shape) of every tensor of a base's files; raises ArtifactError."""
    for path in sorted(folder.glob("*.safetensors")):
        yield from _told(read_header(folder, path.name, _HEADER))


@dataclass(frozen=True)
class BaseRead:
    """What a base's files say."""

    config: Mapping[str, Any]
    """config.json; empty of a base in GGUF, which needs none."""
    size: ModelSize | None
    """None of a base in GGUF, whose header is none of safetensors."""
    weights: Weights | None = None
    """Their format; None where they are in none that a digest covers, or in a custom engine's own."""


_GGUF = BaseRead({}, None, "gguf")


def read_folder(folder: Path) -> BaseRead:
    """The base in a folder; raises ArtifactError."""
    names = [path.name for path in folder.iterdir()]
    if gguf_in(names):
        return _GGUF
    config = base_config(folder)
    return BaseRead(config, model_size(config, base_tensors(folder)), _format_of(names))


def _format_of(names: Iterable[str]) -> Weights | None:
    return "safetensors" if weights_in(names) else None


def read_size(folder: Path) -> ModelSize:
    """The size of the base in safetensors in a folder; raises ArtifactError."""
    return model_size(base_config(folder), base_tensors(folder))


def read_remote(remote: Remote) -> BaseRead:
    """A remote base; raises ArtifactError."""
    files = {file.path: file for file in remote.files()}
    if gguf_in(files):
        return _GGUF
    if CONFIG not in files:
        raise ArtifactError(Reason.FILES_MISSING, f"{remote.what} has no {CONFIG}: it is no base model")
    if files[CONFIG].size > MOST_CONFIG:
        raise ArtifactError(Reason.INVALID_CONFIG, f"{CONFIG} is larger than {MOST_CONFIG} bytes: no base's is")
    config = _config(_json(_bytes(remote, files[CONFIG], 0, files[CONFIG].size), CONFIG))
    return BaseRead(config, model_size(config, _remote_tensors(remote, files)), _format_of(files))


def _remote_tensors(remote: Remote, files: Mapping[str, RemoteFile]) -> Tensors:
    for name in weights_in(files):
        file = files[name]
        length = header_length(name, _bytes(remote, file, 0, min(8, file.size)), file.size, _HEADER)
        yield from _told(entries_of(name, _bytes(remote, file, 8, 8 + length), file.size))


def _bytes(remote: Remote, file: RemoteFile, begin: int, end: int) -> bytes:
    return b"".join(remote.read(file, begin, end)) if begin < end else b""


def _told(entries: list[Entry]) -> Tensors:
    for entry in entries:
        yield entry.tensor.name, entry.tensor.dtype, entry.tensor.shape


def _json(raw: bytes, name: str) -> object:
    try:
        if len(raw) > MOST_CONFIG:
            raise ValueError("it is too large")
        found: object = json.loads(raw.decode())
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters, which no status can hold
    except (ValueError, RecursionError) as error:
        raise ArtifactError(Reason.INVALID_CONFIG, f"{name} is not valid JSON ({error}): save it again") from error
    return found


def _config(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ArtifactError(Reason.INVALID_CONFIG, f"{CONFIG} is not a JSON object: copy the model again")
    return found
