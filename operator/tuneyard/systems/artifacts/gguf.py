"""GGUF files: the header of a base, and LoRA adapters written for llama.cpp.

A header is input of strangers: lengths and counts are bounded before anything is read, arrays (the vocabulary is one)
are passed over, and nothing of the file is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterconfig import LoRAConfig
from tuneyard.planning.gguf import ARCHITECTURES, GgufBase, GgufTensor, LoraPart, lora_part
from tuneyard.systems.artifacts.folder import ArtifactError, opened
from tuneyard.systems.artifacts.safetensors import Entry

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
_MOST_KEYS, _MOST_TENSORS, _MOST_ELEMENTS, _MOST_TEXT = 4096, 1 << 17, 1 << 22, 1 << 24
_F32 = 0
_DTYPES: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_HALVES = {"lora_A": "A", "lora_B": "B"}


class _Written(NamedTuple):
    """A tensor that is to be written."""

    entry: Entry
    part: LoraPart


def gguf_base(folder: Path, path: str) -> GgufBase:
    """The header of a base; raises ArtifactError (CorruptWeights)."""
    with opened(folder, path) as file:
        try:
            return _Header(file).base()
        except (ValueError, struct.error, EOFError) as error:
            raise ArtifactError(
                Reason.CORRUPT_WEIGHTS, f"{path} is not a GGUF file ({error}): copy it again"
            ) from error


class _Header:
    """A reader that goes once through a header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def base(self) -> GgufBase:
        if self._bytes(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not known")
        tensors, keys = self._count("tensors", _MOST_TENSORS), self._count("keys", _MOST_KEYS)
        told: dict[str, Any] = {}
        for _ in range(keys):
            name, kind = self._text(), self._number("I")
            told[name] = self._value(kind)
        architecture = str(told.get("general.architecture") or "")
        if not architecture:
            raise ValueError("it names no architecture")
        start = f"{architecture}."
        numbers = {k.removeprefix(start): v for k, v in told.items() if k.startswith(start) and isinstance(v, int)}
        return GgufBase(architecture, numbers, tuple(self._tensor() for _ in range(tensors)))

    def _tensor(self) -> GgufTensor:
        name, dimensions = self._text(), self._number("I")
        if dimensions > 4:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        self._bytes(12)  # its type and its place
        return GgufTensor(name, shape[::-1])

    def _value(self, kind: int) -> Any:
        """A whole number or a text; None for what is passed over."""
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._number("I"), self._count("elements", _MOST_ELEMENTS)
            if inner == _STRING:
                for _ in range(count):
                    self._text()
            elif inner in _SIZES:
                self._skip(count * _SIZES[inner])
            else:
                raise ValueError(f"an array of type {inner} is not known")
            return None
        if kind in _FORMATS:
            return self._number(_FORMATS[kind])
        if kind not in _SIZES:
            raise ValueError(f"a value of type {kind} is not known")
        self._bytes(_SIZES[kind])
        return None

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MOST_TEXT:
            raise ValueError(f"a text has {length} bytes")
        return self._bytes(length).decode(errors="replace")

    def _count(self, what: str, most: int) -> int:
        found = self._number("Q")
        if found > most:
            raise ValueError(f"it has {found} {what}")
        return found

    def _number(self, format_: str) -> int:
        size = struct.calcsize(f"<{format_}")
        found: int = struct.unpack(f"<{format_}", self._bytes(size))[0]
        return found

    def _skip(self, size: int) -> None:
        while size > 0:
            size -= len(self._bytes(min(size, 1 << 20)))

    def _bytes(self, size: int) -> bytes:
        found = self._file.read(size)
        if len(found) != size:
            raise EOFError("it ends too early")
        return found


def write_lora(folder: Path, weights: str, entries: Sequence[Entry], config: LoRAConfig, base: GgufBase) -> Path:
    """The adapter as `adapter.gguf` in its folder, beside the checked safetensors it is made of.

    Raises ArtifactError (ModulesNotSupported) for a module that has no name in GGUF, or a base of another architecture.
    """
    if base.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ArtifactError(
            Reason.ENGINE_UNSUITABLE,
            f"adapters for GGUF bases of architecture {base.architecture} are not converted (known: {known}): merge "
            "the adapter into the base and convert the result, or serve them with vLLM",
        )
    written = [_Written(entry, _part(entry, config, base)) for entry in entries]
    target = folder / "adapter.gguf"
    with target.open("wb") as out, opened(folder, weights) as source:
        out.write(_lora_header(base.architecture, written))
        for item in written:
            out.write(_values(source, item).tobytes())
            out.write(b"\0" * (-out.tell() % _ALIGNMENT))
    return target


def _part(entry: Entry, config: LoRAConfig, base: GgufBase) -> LoraPart:
    module, _, half = entry.tensor.name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    rank = entry.tensor.shape[0 if half == "lora_A" else 1]
    part = lora_part(base, module, _HALVES[half], config.scale_of(module))
    if part is None:
        raise ArtifactError(
            Reason.ENGINE_UNSUITABLE,
            f"llama.cpp has no place for an adapter of {module:.90}: train without it, or merge it into the base",
        )
    # the file's alpha is 1, by which llama.cpp divides the rank
    return part._replace(factor=part.factor * rank) if half == "lora_B" else part


def _values(source: BinaryIO, item: _Written) -> npt.NDArray[np.float32]:
    """A tensor's values as they are written."""
    entry, part = item
    source.seek(entry.begin)
    raw = np.frombuffer(source.read(entry.end - entry.begin), dtype=_DTYPES[entry.tensor.dtype])
    brain = entry.tensor.dtype == "BF16"
    values = (raw.astype(np.uint32) << 16).view(np.float32) if brain else raw.astype(np.float32)
    values = values.reshape(entry.tensor.shape)
    if part.heads is not None:
        rows, rank = values.shape
        values = values.reshape(part.heads, 2, rows // part.heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)
    return np.ascontiguousarray(values if part.factor == 1.0 else values * np.float32(part.factor), dtype=np.float32)


def _lora_header(architecture: str, written: Sequence[_Written]) -> bytes:
    texts = {"general.architecture": architecture, "general.type": "adapter", "adapter.type": "lora"}
    found = bytearray(_MAGIC + struct.pack("<IQQ", 3, len(written), len(texts) + 1))
    for key, text in texts.items():
        found += _packed(key) + struct.pack("<I", _STRING) + _packed(text)
    found += _packed("adapter.lora.alpha") + struct.pack("<If", 6, 1.0)
    at = 0
    for entry, part in written:
        shape = entry.tensor.shape[::-1]
        found += _packed(part.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        found += struct.pack("<IQ", _F32, at)
        at += _aligned(4 * shape[0] * shape[1])
    return bytes(found) + b"\0" * (-len(found) % _ALIGNMENT)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
