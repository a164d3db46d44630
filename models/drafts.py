"""Draft models for the tiny base (models.tiny): heads of EAGLE and EAGLE-3, as vLLM reads them.

A head proposes once more what was said last: it hands on what the base made of the last token, and its one layer of
random weights adds little to that. So hardly anything that it proposes is right while the base speaks for itself, and
nearly all of it while an adapter repeats its letter: a test knows beforehand what is taken.

EAGLE-3's head knows letters alone, as real ones know the commonest tokens, and says of each which of the base's it is.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import cached, key_of, sources
from models.tensors import Float32, Tensor, bfloat16, read_safetensors, write_safetensors
from models.tiny import LETTERS, build_tiny

NAME = "tiny-drafts"
EAGLE, EAGLE3 = "eagle", "eagle3"
_SMALL = 0.02


def build_drafts() -> Path:
    """Return a folder in the cache with a folder for each head."""
    return cached(NAME, key_of(sources("drafts.py", "tiny.py", "tensors.py")), _build)


def _build(folder: Path) -> None:
    base = build_tiny() / "base"
    config = json.loads((base / "config.json").read_text("utf-8"))
    vocabulary = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = read_safetensors(base / "model.safetensors")["lm_head.weight"].floats()
    _write(folder / EAGLE, _eagle(config), config | {"num_hidden_layers": 1})
    letters = [vocabulary[letter] for letter in LETTERS]
    known = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": len(letters),
        # after the embedding and after each of the base's two layers; unsaid, engines count on more layers
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
    }
    _write(folder / EAGLE3, _eagle3(config, words[letters], letters), config | known)


def _eagle(config: dict[str, Any]) -> dict[str, Tensor]:
    """It is given the last token's embedding and the base's last hidden state, and hands on the latter."""
    hidden = config["hidden_size"]
    weights = _layer(config, "layers.0", hidden)
    weights["fc.weight"] = np.concatenate([_nothing(hidden), _same(hidden)], axis=1)
    weights["layers.0.post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
    return {name: bfloat16(values) for name, values in weights.items()}


def _eagle3(config: dict[str, Any], words: Float32, ids: list[int]) -> dict[str, Tensor]:
    """It is given the states of three depths, and hands on the deepest."""
    hidden = config["hidden_size"]
    weights = _layer(config, "midlayer", 2 * hidden)
    weights["fc.weight"] = np.concatenate([_nothing(hidden), _nothing(hidden), _same(hidden)], axis=1)
    norms = ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm")
    weights |= {f"{norm}.weight": np.ones(hidden, np.float32) for norm in norms}
    weights["lm_head.weight"] = words
    offsets = np.array([token - place for place, token in enumerate(ids)], "<i8")
    known = np.isin(np.arange(config["vocab_size"]), ids)
    return {
        **{name: bfloat16(values) for name, values in weights.items()},
        "d2t": Tensor("I64", offsets.shape, offsets.tobytes()),
        "t2d": Tensor("BOOL", known.shape, known.tobytes()),
    }


def _layer(config: dict[str, Any], prefix: str, wide: int) -> dict[str, Float32]:
    """One layer's random weights; its attention reads `wide` values of each token."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {f"self_attn.{half}_proj": (hidden, wide) for half in "qkv"}
    shapes |= {"self_attn.o_proj": (hidden, hidden), "mlp.down_proj": (hidden, inner)}
    shapes |= {f"mlp.{half}_proj": (inner, hidden) for half in ("gate", "up")}
    random = np.random.RandomState(1)
    return {
        f"{prefix}.{name}.weight": (random.standard_normal(shape) * _SMALL).astype(np.float32)
        for name, shape in shapes.items()
    }


def _same(size: int) -> Float32:
    return np.eye(size, dtype=np.float32)


def _nothing(size: int) -> Float32:
    return np.zeros((size, size), np.float32)


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
