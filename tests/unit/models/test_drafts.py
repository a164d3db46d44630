"""The tiny base's drafts: the same bytes everywhere, of the shapes and names that engines read."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.artifact import digest
from models.drafts import EAGLE, EAGLE3, build_drafts
from models.tensors import read_safetensors
from models.tiny import LETTERS, build_tiny


@pytest.fixture
def drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    return build_drafts()


def test_the_bytes_are_always_these(drafts: Path) -> None:
    assert {head: digest(drafts / head) for head in (EAGLE, EAGLE3)} == {
        EAGLE: "sha256:1c8c87f38329eef16b0087ec3ef7a253baf82c5de64098dd540598b9d2fd785e",
        EAGLE3: "sha256:38f8dd35986a470ad4042ef7a4b163a99deaa0fbd95477cdbe33845d5fe5fdd3",
    }


def test_the_head_s_words_are_the_base_s_letters(drafts: Path) -> None:
    vocabulary = json.loads((build_tiny() / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    tensors = read_safetensors(drafts / EAGLE3 / "model.safetensors")
    offsets = np.frombuffer(tensors["d2t"].data, "<i8")
    assert [int(place + offset) for place, offset in enumerate(offsets)] == [vocabulary[letter] for letter in LETTERS]
    known = np.flatnonzero(np.frombuffer(tensors["t2d"].data, np.bool_))
    assert {int(token) for token in known} == {vocabulary[letter] for letter in LETTERS}
    words = read_safetensors(build_tiny() / "base" / "model.safetensors")["lm_head.weight"].floats()
    assert np.array_equal(tensors["lm_head.weight"].floats(), words[offsets + np.arange(len(offsets))])
