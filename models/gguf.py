"""A reader for the part of GGUF that SmolLM2's package uses: metadata, and F32, Q8_0 and Q4_1 tensors.

A file is `GGUF`, version, counts, then key-value pairs, then tensor entries (name, dimensions with the
fastest first, type, offset), then data aligned to 32 bytes. Quantised tensors are runs of blocks of 32
values:

    Q8_0  f16 scale d, 32 x i8 q                       value = d * q
    Q4_1  f16 scale d, f16 minimum m, 16 bytes q       value = d * q + m, low nibbles first, then high

Everything is plain elementwise float32 arithmetic, so the values are the same on every machine.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.tensors import Float32

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUF:
    """Metadata and tensors of one file held in memory."""

    metadata: dict[str, Any]

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        if raw[:4] != b"GGUF":
            raise ValueError("not a GGUF file")
        self._at = 4
        version = self._scalar(4)
        if version != 3:
            raise ValueError(f"GGUF version {version}, this reader knows 3")
        tensors, pairs = self._scalar(10), self._scalar(10)
        self.metadata = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._scalar(4))
        self._entries = dict(self._entry() for _ in range(tensors))
        align = self.metadata.get("general.alignment", 32)
        self._data = self._at + -self._at % align

    def names(self) -> list[str]:
        """Return the names of all tensors in the file's order."""
        return list(self._entries)

    def tensor(self, name: str) -> Float32:
        """Return one tensor, dequantised, in torch's order of dimensions (rows first)."""
        entry = self._entries[name]
        count = int(np.prod(entry.shape))
        start = self._data + entry.offset
        return _DEQUANTISE[entry.kind](self._raw, start, count).reshape(entry.shape)

    def _entry(self) -> tuple[str, _Entry]:
        name = self._string()
        dims = [self._scalar(10) for _ in range(self._scalar(4))]
        kind, offset = self._scalar(4), self._scalar(10)
        if kind not in _DEQUANTISE:
            raise ValueError(f"{name}: tensor type {kind} is not one of {sorted(_DEQUANTISE)}")
        return name, _Entry(tuple(reversed(dims)), kind, offset)

    def _scalar(self, kind: int) -> Any:
        (value,) = struct.unpack_from(_SCALARS[kind], self._raw, self._at)
        self._at += struct.calcsize(_SCALARS[kind])
        return value

    def _string(self) -> str:
        length = self._scalar(10)
        text = self._raw[self._at : self._at + length].decode()
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar(4), self._scalar(10)
            return [self._value(inner) for _ in range(count)]
        return self._scalar(kind)


def _f32(raw: bytes, start: int, count: int) -> Float32:
    return np.frombuffer(raw, "<f4", count, start).astype(np.float32)


def _q8_0(raw: bytes, start: int, count: int) -> Float32:
    layout = np.dtype([("d", "<f2"), ("q", "i1", (_BLOCK,))])
    blocks = np.frombuffer(raw, layout, count // _BLOCK, start)
    scaled: Float32 = blocks["d"].astype(np.float32)[:, None] * blocks["q"].astype(np.float32)
    return scaled


def _q4_1(raw: bytes, start: int, count: int) -> Float32:
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", (_BLOCK // 2,))])
    blocks = np.frombuffer(raw, layout, count // _BLOCK, start)
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    value: Float32 = blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]
    return value


_DEQUANTISE = {_F32: _f32, _Q4_1: _q4_1, _Q8_0: _q8_0}
