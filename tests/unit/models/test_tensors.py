"""The safetensors writer and reader, and rounding to bfloat16."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from models.tensors import Tensor, bfloat16, float32, read_safetensors, write_safetensors
from tuneyard.systems.artifacts.safetensors import read_header


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0.0, 0x0000),
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1.00390625, 0x3F80),  # half way between two: to the even one, below
        (1.01171875, 0x3F82),  # half way between two: to the even one, above
        (1.0039063692092896, 0x3F81),  # just over half way
        (float("inf"), 0x7F80),
        (float("-inf"), 0xFF80),
        (3.4e38, 0x7F80),  # rounds up past the largest
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert np.frombuffer(bfloat16(np.array([value], np.float32)).data, "<u2").tolist() == [bits]


def test_every_nan_stays_nan() -> None:
    patterns = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(bfloat16(patterns).floats()).all()


def test_bfloat16_values_survive_both_ways() -> None:
    values = np.array([[1.5, -0.25], [1024.0, 3.0]], np.float32)
    assert (bfloat16(values).floats() == values).all()


def test_written_tensors_are_read_again_by_both_readers(tmp_path: Path) -> None:
    tensors = {
        "b": bfloat16(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "a": float32(np.ones((4,), np.float32)),
        "c": Tensor("I8", (3,), b"\x01\x02\x03"),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert read_safetensors(tmp_path / "x.safetensors") == tensors
    assert {e.tensor.name: e.tensor.shape for e in read_header(tmp_path, "x.safetensors")} == {
        "a": (4,),
        "b": (2, 3),
        "c": (3,),
    }


def test_bytes_do_not_depend_on_the_order_of_the_tensors(tmp_path: Path) -> None:
    one, two = float32(np.zeros(3, np.float32)), bfloat16(np.ones(5, np.float32))
    write_safetensors(tmp_path / "x", {"one": one, "two": two})
    write_safetensors(tmp_path / "y", {"two": two, "one": one})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_note_changes_the_bytes_and_not_the_tensors(tmp_path: Path) -> None:
    tensors = {"one": float32(np.zeros(3, np.float32))}
    write_safetensors(tmp_path / "x", tensors)
    write_safetensors(tmp_path / "y", tensors, note="second")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "xy"}
    assert len(digests) == 2
    assert read_safetensors(tmp_path / "y") == tensors


def test_integers_are_not_read_as_floats() -> None:
    with pytest.raises(ValueError, match="I8"):
        Tensor("I8", (1,), b"\x01").floats()
