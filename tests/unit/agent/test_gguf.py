"""GGUF: what is read of a base, and adapters as llama.cpp reads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.tiny import build_tiny
from tests.fakes.llamaserver import fake_gguf
from tuneyard.agent.basefiles import gguf_base_of, gguf_name_of
from tuneyard.agent.fetching import read_base
from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterconfig import read_config
from tuneyard.planning.basefacts import Shape
from tuneyard.planning.gguf import GgufBase, LoraPart, lora_part
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.gguf import gguf_base, write_lora
from tuneyard.systems.artifacts.safetensors import read_header

LLAMA = GgufBase("llama", {"attention.head_count": 2, "attention.head_count_kv": 1})
QWEN = GgufBase("qwen2", {"attention.head_count": 2})
LAYER = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("base", "module", "half", "part"),
    [
        (LLAMA, f"{LAYER}.q_proj", "A", LoraPart("blk.0.attn_q.weight.lora_a", 1.0, None)),
        (LLAMA, f"{LAYER}.q_proj", "B", LoraPart("blk.0.attn_q.weight.lora_b", 2.0, 2)),
        (LLAMA, f"{LAYER}.k_proj", "B", LoraPart("blk.0.attn_k.weight.lora_b", 2.0, 1)),
        (LLAMA, f"{LAYER}.v_proj", "B", LoraPart("blk.0.attn_v.weight.lora_b", 2.0, None)),
        (LLAMA, "model.layers.7.mlp.down_proj", "B", LoraPart("blk.7.ffn_down.weight.lora_b", 2.0, None)),
        (QWEN, f"{LAYER}.q_proj", "B", LoraPart("blk.0.attn_q.weight.lora_b", 2.0, None)),
        (LLAMA, "model.layers.0.block_sparse_moe.gate", "B", None),
        (LLAMA, "lm_head", "B", None),
    ],
)
def test_what_each_half_is_called_and_how_it_is_ordered(
    base: GgufBase, module: str, half: str, part: LoraPart | None
) -> None:
    assert lora_part(base, module, half, 2.0) == part


def test_a_base_s_facts_are_those_that_its_safetensors_would_tell(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(fake_gguf())
    found, known = read_base(tmp_path), read_base(build_tiny() / "base")
    assert found.layers == known.layers == 2
    for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert found.shape_of(f"{LAYER}.{module}") == known.shape_of(f"{LAYER}.{module}") == Shape(64, 64)
    assert found.shape_of("model.layers.1.mlp.down_proj") == known.shape_of("model.layers.1.mlp.down_proj")
    assert not found.has("model.layers.2.self_attn.q_proj")


def test_which_file_is_the_base(tmp_path: Path) -> None:
    assert gguf_name_of(tmp_path) is None
    (tmp_path / "model-00001-of-00002.gguf").write_bytes(fake_gguf())
    (tmp_path / "model-00002-of-00002.gguf").write_bytes(fake_gguf())
    assert gguf_name_of(tmp_path) == "model-00001-of-00002.gguf"
    (tmp_path / "other.gguf").write_bytes(fake_gguf())
    with pytest.raises(ArtifactError) as caught:
        gguf_name_of(tmp_path)
    assert "give each a folder of its own" in str(caught.value)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_base_of(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + b"\0" * 64,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 3),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99),
        fake_gguf()[:-5],
    ],
)
def test_a_header_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        gguf_base(tmp_path, "model.gguf")
    assert caught.value.reason is Reason.CORRUPT_WEIGHTS


def adapter(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    header, body = {}, b""
    for name, values in tensors.items():
        full = f"base_model.model.{name}"
        kind = {"float32": "F32", "float16": "F16"}[str(values.dtype)]
        header[full] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + values.nbytes],
        }
        body += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return read_header(folder, "a.safetensors")


def values_in(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a written file, as llama.cpp would find them."""
    raw = path.read_bytes()
    at = 24

    def text() -> str:
        nonlocal at
        (length,) = struct.unpack_from("<Q", raw, at)
        found = raw[at + 8 : at + 8 + length].decode()
        at += 8 + length
        return found

    tensors, keys = struct.unpack_from("<QQ", raw, 8)
    for _ in range(keys):
        text()
        (kind,) = struct.unpack_from("<I", raw, at)
        at += 4
        if kind == 8:
            text()
        else:
            assert struct.unpack_from("<f", raw, at) == (1.0,)
            at += 4
    infos = []
    for _ in range(tensors):
        name = text()
        _, first, second, kind, offset = struct.unpack_from("<IQQIQ", raw, at)
        at += 32
        infos.append((name, (second, first), kind, offset))
    start = at + -at % 32
    return {
        name: np.frombuffer(raw, "<f4", shape[0] * shape[1], start + offset).reshape(shape)
        for name, shape, _, offset in infos
    }


def test_an_adapter_is_scaled_and_ordered_for_llama(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(4, 6)).astype(np.float32), random.normal(size=(8, 4)).astype(np.float16)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": True}
    halves: dict[str, np.ndarray[Any, Any]] = {"A": a, "B": b}
    entries = adapter(tmp_path, {f"{LAYER}.q_proj.lora_{half}.weight": values for half, values in halves.items()})
    written = values_in(write_lora(tmp_path, "a.safetensors", entries, read_config(config), LLAMA))
    scale = 8 / 4**0.5
    # two heads of four rows: the halves of each head are interleaved
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    # llama.cpp multiplies by alpha / rank = 1 / 4
    product = written["blk.0.attn_q.weight.lora_b"] @ written["blk.0.attn_q.weight.lora_a"] / 4
    np.testing.assert_allclose(product, (b.astype(np.float32) @ a * scale)[order], rtol=1e-3)


def test_what_has_no_place_in_llama_cpp_is_refused(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["gate"]}
    one = np.ones((1, 1), np.float32)
    entries = adapter(tmp_path, {"model.layers.0.moe.gate.lora_A.weight": one})
    for base, words in ((LLAMA, "no place for an adapter of model.layers.0.moe.gate"), (GgufBase("mamba"), "mamba")):
        with pytest.raises(ArtifactError) as caught:
            write_lora(tmp_path, "a.safetensors", entries, read_config(config), base)
        assert caught.value.reason is Reason.ENGINE_UNSUITABLE
        assert words in str(caught.value)
