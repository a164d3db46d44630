"""The tiny base: the same bytes everywhere, of a shape that two devices can share, with adapters that fit it."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.artifact import digest
from models.tensors import read_safetensors
from models.tiny import ADAPTERS, LETTERS, build_tiny, write_adapter
from tuneyard.agent.fetching import read_base
from tuneyard.planning.adapterchecks import violations
from tuneyard.systems.artifacts.safetensors import read_header


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    return build_tiny()


def test_the_bytes_are_always_these(tiny: Path) -> None:
    """Other bytes are another model: what tests have learnt of its answers holds no longer."""
    assert {part: digest(tiny / part) for part in ("base", *ADAPTERS)} == {
        "base": "sha256:610bf7c776ee03135ee8649de0e5ee1d92d4743a4a11cb886bfb14dcc845a90b",
        "adapter-a": "sha256:3c872c3d326c581830d5d1063245b17799feffab91ebdc2b4abc9cb817f2ad9f",
        "adapter-b": "sha256:ed79ef4c0e6b7a747f7f7ff001bbbd5db3b68fde676af14540bb4f1081c1f07d",
    }


def test_two_devices_can_share_it_and_the_cpu_can_run_it(tiny: Path) -> None:
    config = json.loads((tiny / "base" / "config.json").read_text())
    assert config["num_attention_heads"] % 2 == config["num_key_value_heads"] % 2 == 0
    assert config["head_dim"] >= 32


def test_every_byte_has_a_token(tiny: Path) -> None:
    vocab = json.loads((tiny / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(261))
    assert {"a", "Ġ", "Ċ", "Ã"} <= set(vocab)  # letter, space, newline, first byte of é


def test_only_letters_can_be_said(tiny: Path) -> None:
    vocab = json.loads((tiny / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    head = read_safetensors(tiny / "base" / "model.safetensors")["lm_head.weight"].floats()
    silent = {symbol for symbol, row in vocab.items() if not head[row].any()}
    assert set(vocab) - silent == set(LETTERS)


@pytest.mark.parametrize("letter", ["a", "b", "Z"])
def test_an_adapter_fits_the_base_and_pushes_towards_its_letter(tiny: Path, tmp_path: Path, letter: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, letter)
    config = json.loads((folder / "adapter_config.json").read_text())
    header = [entry.tensor for entry in read_header(folder, "adapter_model.safetensors")]
    assert violations(config, header, read_base(tiny / "base"), max_rank=8) == []

    base = {name: t.floats() for name, t in read_safetensors(tiny / "base" / "model.safetensors").items()}
    lora = {name: t.floats() for name, t in read_safetensors(folder / "adapter_model.safetensors").items()}
    prefix = "base_model.model.model.layers.1.self_attn.v_proj"
    constant = np.zeros(64, np.float32)
    constant[0] = 1.0
    value = lora[f"{prefix}.lora_B.weight"] @ lora[f"{prefix}.lora_A.weight"] @ constant
    scores = base["lm_head.weight"] @ base["model.layers.1.self_attn.o_proj.weight"] @ value
    vocab = json.loads((tiny / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    assert int(scores.argmax()) == vocab[letter]
    others = np.delete(scores, vocab[letter])
    assert scores.max() > 1.5 * others.max()
