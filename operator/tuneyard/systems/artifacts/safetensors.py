"""Safetensors files: a length (8 bytes, little-endian), a JSON header, then the tensors' bytes without gaps.

Rules:
- The header is input of strangers: it is bounded in size, its offsets must cover the file exactly and each tensor's
  bytes must be as many as its shape and type say. Nothing of the file is executed, ever.
- Values are looked at by their bit patterns, a few MiB at a time: a float is finite and within float16's range exactly
  when its bits without the sign are at most those of 65504, because such bits are ordered like the numbers. Larger
  weights belong to no adapter that was trained well, and become infinite in an engine that computes in float16. What
  an engine multiplies when it loads it must be within that range afterwards too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import Tensor
from tuneyard.systems.artifacts.folder import ArtifactError, opened

_MOST_HEADER = 8 << 20
_CHUNK = 4 << 20
_LARGEST = 65504.0
"""The largest number of float16."""
_MOST_DIMENSIONS = 8
_MOST_NUMBER = 1 << 48
"""Above every size and offset of a file. JSON has numbers of thousands of digits, and to multiply a few hundred of them
holds up all threads for seconds."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "BOOL": 8}
_BITS |= {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)} | {"C64": 64, "F6_E2M3": 6, "F6_E3M2": 6}
_PATTERNS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int, int]] = {
    # type of the bits, mask without the sign, largest allowed, infinity
    "F32": (np.uint32, 0x7FFFFFFF, 0x477FE000, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7BFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x477F, 0x7F80),
}


class Entry(NamedTuple):
    """A tensor and where its bytes are in the file."""

    tensor: Tensor
    begin: int
    end: int


def read_header(folder: Path, path: str, most: int = _MOST_HEADER) -> list[Entry]:
    """The tensors of a file, by place; raises ArtifactError (CorruptWeights) where header and bytes do not fit."""
    with opened(folder, path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = header_length(path, _read(file, 8), size, most)
        raw = _read(file, length)
    return entries_of(path, raw, size)


def header_length(path: str, first: bytes, size: int, most: int = _MOST_HEADER) -> int:
    """How long the header is, by a file's first 8 bytes; raises ArtifactError (CorruptWeights) as read_header does."""
    length = int.from_bytes(first, "little")
    if size < 8 or length > size - 8:
        raise _corrupt(path, "it is shorter than its header says")
    if length > most:
        raise _corrupt(path, f"its header has {length} bytes, at most {most} are read")
    return length


def entries_of(path: str, raw: bytes, size: int) -> list[Entry]:
    """The tensors that a header names, of a file of this size; raises ArtifactError (CorruptWeights)."""
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "its header is not valid JSON") from error
    return _entries(path, header, 8 + len(raw), size)


def _entries(path: str, header: object, start: int, size: int) -> list[Entry]:
    """The header's tensors in order of their bytes, which must follow each other up to the end of the file."""
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    entries = sorted(
        (_entry(path, name, item, start) for name, item in header.items() if name != "__metadata__"),
        key=lambda entry: (entry.begin, entry.end),
    )
    at = start
    for entry in entries:
        if entry.begin != at:
            raise _corrupt(path, f"tensor {entry.tensor.name:.80} does not begin where the one before ends")
        at = entry.end
    if at != size:
        raise _corrupt(
            path, f"it has {size} bytes, its header speaks of {at}: it is truncated or has something behind it"
        )
    return entries


def _entry(path: str, name: str, item: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        numbers = (*shape[: _MOST_DIMENSIONS + 1], begin, end)
        fits = all(type(n) is int and 0 <= n < _MOST_NUMBER for n in numbers) and begin <= end
        fits = fits and len(shape) <= _MOST_DIMENSIONS
        bits = _BITS.get(dtype)
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(path, f"the entry of tensor {name:.80} is incomplete") from error
    if not fits or (bits is not None and (end - begin) * 8 != math.prod(shape) * bits):
        raise _corrupt(path, f"the bytes of tensor {name:.80} do not fit its shape and type")
    return Entry(Tensor(name, str(dtype), shape), start + begin, start + end)


def check_finite(folder: Path, path: str, entries: Sequence[Entry], factors: Mapping[str, float]) -> None:
    """Raise ArtifactError (NonFiniteValues) if a value is NaN, infinite or beyond float16's range.

    `factors`: by how much an engine multiplies some of the tensors, by name.

    Tensors of other types than F32, F16 and BF16 are skipped: the checks of the header refuse them.
    """
    buffer = bytearray(_CHUNK)
    with opened(folder, path) as file:
        for entry in entries:
            pattern = _PATTERNS.get(entry.tensor.dtype)
            if pattern is None:
                continue
            file.seek(entry.begin)
            highest = 0
            left = entry.end - entry.begin
            while left:
                count = min(left, _CHUNK)
                if _fill(file, memoryview(buffer)[:count]) < count:
                    raise _corrupt(path, "it became shorter while it was read")
                left -= count
                highest = max(highest, _highest(buffer, count, pattern))
            if highest > pattern[2]:
                raise _not_finite(entry.tensor.name, highest, pattern[3])
            _check_scaled(entry.tensor, highest, factors.get(entry.tensor.name, 1.0))


def _read(file: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes; fewer only at the end of the file."""
    buffer = bytearray(count)
    return bytes(buffer[: _fill(file, memoryview(buffer))])


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Fill the view, a short read after the other; returns fewer bytes only at the end of the file."""
    done = 0
    while done < len(view) and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def _highest(buffer: bytearray, count: int, pattern: tuple[type[np.unsignedinteger[Any]], int, int, int]) -> int:
    """The largest magnitude's bits among the first `count` bytes."""
    bits: npt.NDArray[np.unsignedinteger[Any]] = np.frombuffer(
        buffer, dtype=pattern[0], count=count // pattern[0](0).itemsize
    )
    np.bitwise_and(bits, pattern[0](pattern[1]), out=bits)
    return int(bits.max())


def _not_finite(name: str, bits: int, infinity: int) -> ArtifactError:
    what = "NaN" if bits > infinity else "infinite" if bits == infinity else "above 65504, which is infinite in float16"
    return ArtifactError(
        Reason.NON_FINITE_VALUES,
        f"{name} has a value that is {what}; it would silence every other model on the same engine: train again with a "
        "lower learning rate, or take an earlier checkpoint",
    )


def _check_scaled(tensor: Tensor, bits: int, factor: float) -> None:
    """Raise ArtifactError if the tensor's largest magnitude is beyond float16's range once it is multiplied."""
    whole = bits << 16 if tensor.dtype == "BF16" else bits
    code = "<e" if tensor.dtype == "F16" else "<f"
    (largest,) = struct.unpack(code, whole.to_bytes(struct.calcsize(code), "little"))
    if largest * factor > _LARGEST:
        raise ArtifactError(
            Reason.NON_FINITE_VALUES,
            f"{tensor.name} has the value {largest:.4g}, and {largest:.4g} times its scale of {factor:.4g} (lora_alpha "
            f"over rank) is above {_LARGEST:g}, infinite in float16: correct lora_alpha, or train again with a lower "
            "learning rate",
        )


def _corrupt(path: str, why: str) -> ArtifactError:
    return ArtifactError(Reason.CORRUPT_WEIGHTS, f"{path} cannot be used, {why}: copy or save it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(text)
