"""The safetensors format, read and written with numpy alone.

A file is `<u64 little endian: header length> <header JSON> <data>`; the header names each tensor's dtype,
shape and byte range in the data. Rules of this file:

- Bytes are a function of the tensors: names are written in sorted order, without gaps, so the same tensors
  always give the same file and the same digest.
- A `Tensor` holds raw bytes and its dtype by name. numpy has no bfloat16 and the broken adapters need
  dtypes and values that no library would write, so nothing here depends on an array type.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes per element of each dtype that this file knows."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype by its safetensors name, shape, and row-major little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> Float32:
        """Values as float32 in the tensor's shape. ValueError for a dtype that is not a float."""
        if self.dtype == "BF16":
            wide = np.frombuffer(self.data, "<u2").astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32).reshape(self.shape)
        if self.dtype not in ("F16", "F32"):
            raise ValueError(f"{self.dtype} is not a float dtype that this file reads")
        raw = np.frombuffer(self.data, "<f2" if self.dtype == "F16" else "<f4")
        return raw.astype(np.float32).reshape(self.shape)


def bfloat16(values: Float32) -> Tensor:
    """Round float32 values to bfloat16, to nearest and ties to even as torch does; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # rounding could carry a NaN's mantissa over into the sign: keep it a quiet NaN
    short = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")
    return Tensor("BF16", values.shape, short.tobytes())


def float32(values: Float32) -> Tensor:
    """Keep float32 values as they are."""
    return Tensor("F32", values.shape, np.ascontiguousarray(values, "<f4").tobytes())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], note: str | None = None) -> None:
    """Write `tensors` in sorted order of their names.

    The metadata says `format: pt`: transformers and peft refuse a file that does not say which framework's
    layout it holds. A `note` stands there too and changes nothing but the file's bytes.
    """
    metadata = {"format": "pt"} if note is None else {"format": "pt", "note": note}
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name in sorted(tensors):
        end = offset + len(tensors[name].data)
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data must begin on an 8-byte boundary
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a well-formed file; struct.error, ValueError or KeyError if it is not."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    body = memoryview(raw)[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), bytes(body[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
    }
