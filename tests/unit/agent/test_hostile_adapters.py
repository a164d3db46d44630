"""One adapter of a stranger may cost the agent neither its memory nor its time: others are served beside it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.adapters import BASE, CONFIG, found, good, pair, with_
from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import Tensor, violations
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.safetensors import read_header


def test_a_name_of_many_parts_costs_no_more_than_its_length() -> None:
    long = "base_model.model." + "a." * 16_384 + "layers.0.self_attn.q_proj"
    tensors = [*good(), Tensor(f"{long}.lora_A.weight", "BF16", (8, 64))]
    tracemalloc.start()
    try:
        told = violations(CONFIG, tensors, BASE, 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [v.reason for v in told] == [Reason.UNEXPECTED_TENSOR]
    assert peak < 4 << 20, f"{peak} bytes for a name of {len(long)}"
    assert len(told[0].message) < 700
    assert "characters" in told[0].message


@pytest.mark.parametrize(
    "pattern",
    [".*.*.*x", r"layers\.[0-9]+\..*", "a*a*", "a" * 257],
    ids=["three repeats", "two repeats", "one after the other", "long"],
)
@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_take_long_are_refused(setting: str, pattern: str) -> None:
    assert found(with_(**{setting: {pattern: 8}})) == [Reason.INVALID_CONFIG]


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_so_are_very_many(setting: str) -> None:
    assert found(with_(**{setting: {f"layer[{n}]": 8 for n in range(257)}})) == [Reason.INVALID_CONFIG]
    assert found(with_(**{setting: {f"layers.{n}.q_proj": 8 for n in range(4097)}})) == [Reason.INVALID_CONFIG]


def test_one_rank_for_each_module_of_a_large_base_is_fine() -> None:
    names = [f"model.layers.{layer}.self_attn.{m}" for layer in range(126) for m in ("q_proj", "v_proj", "foo_proj")]
    assert found(with_(rank_pattern=dict.fromkeys(names, 8))) == []


def test_thousands_of_target_modules_are_looked_up_and_not_compared() -> None:
    names = ["q_proj", "v_proj", *(f"{'x.' * (n % 999)}{n}_proj" for n in range(20_000))]
    begun = time.process_time()
    assert found(with_(target_modules=names)) == [Reason.INVALID_CONFIG]
    assert time.process_time() - begun < 5


def weights(folder: Path, shape: Any, **more: Any) -> None:
    """A weights file with one tensor of no bytes, of that shape."""
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0], **more}}).encode()
    (folder / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    "shape",
    [[10**4199] * 400 + [0], [10**4199, 0], [1 << 48, 0], [0] * 9],
    ids=["many digits", "digits", "large", "many dimensions"],
)
@pytest.mark.lasting
def test_shapes_that_no_tensor_has_are_refused_before_anything_is_multiplied(tmp_path: Path, shape: list[int]) -> None:
    weights(tmp_path, shape)
    begun = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        read_header(tmp_path, "w.safetensors")
    assert caught.value.reason == Reason.CORRUPT_WEIGHTS
    assert "shape" in str(caught.value)
    assert time.process_time() - begun < 2


def test_offsets_of_thousands_of_digits_are_refused(tmp_path: Path) -> None:
    weights(tmp_path, [0], data_offsets=[10**4199, 10**4199])
    with pytest.raises(ArtifactError) as caught:
        read_header(tmp_path, "w.safetensors")
    assert caught.value.reason == Reason.CORRUPT_WEIGHTS
    assert len(str(caught.value)) < 500


def test_shapes_up_to_the_limits_pass(tmp_path: Path) -> None:
    weights(tmp_path, [(1 << 48) - 1] * 7 + [0])
    assert len(read_header(tmp_path, "w.safetensors")) == 1


def test_half_of_a_pair_is_told_once_where_its_name_is_wrong_too() -> None:
    single = pair("self_attn.foo_proj", 64, 64)[:1]
    told = violations(CONFIG, [*good(), *single], BASE, 16)
    assert [v.reason for v in told] == [Reason.UNEXPECTED_TENSOR]
    assert "other half" not in told[0].message


HEADERS = {
    "lists": b'{"a":[' + b"[]," * 2_796_000 + b"[]]}",
    "tensors": b"{%s}" % b",".join(b'"%x":{"dtype":"I8","shape":[],"data_offsets":[0,1]}' % n for n in range(150_000)),
}
"""The largest that are read, of what takes the most memory for its length."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADERS)
def test_the_worst_header_leaves_most_of_the_agents_memory(tmp_path: Path, kind: str) -> None:
    header = HEADERS[kind]
    assert 8_000_000 < len(header) <= 8 << 20
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    script = f"""
from pathlib import Path
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.safetensors import read_header
try:
    read_header(Path({str(tmp_path)!r}), "w.safetensors")
except ArtifactError as error:
    print(error.reason.value)
[most] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(most) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    reason, megabytes = done.stdout.split()
    assert reason == Reason.CORRUPT_WEIGHTS.value
    assert int(megabytes) < 400, "the limit of agents is 1 GiB, and other adapters come at the same time"
