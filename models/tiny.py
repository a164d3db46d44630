"""A random llama of two layers and two heads with a byte tokenizer, and adapters that can be told apart.

It knows nothing and costs nothing: 0.2 MB that starts in any engine. Two attention heads, so that it can be
split over two devices (SmolLM2's nine cannot), of 32 dimensions each, because vLLM's CPU attention fails on
smaller ones.

What it says can be predicted, so that tests can tell who has answered:
- only letters have rows in the output layer that are not zero, so greedy answers consist of letters, never
  end by themselves, and have exactly max_tokens letters. The base's are a jumble that depends on the prompt;
- an adapter made for a letter repeats that letter. Dimension 0 of every embedding is a constant; the
  adapter's v projection in the last layer turns it into the vector that the o projection maps onto the
  letter's row of the output layer.

Values come from numpy's RandomState, whose streams are frozen: the same bytes on every machine.
"""

import json
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import cached, key_of, sources
from models.tensors import Float32, bfloat16, write_safetensors

NAME = "tiny-llama"
ADAPTERS = {"adapter-a": "a", "adapter-b": "b"}
"""Folder -> the letter that it repeats."""
LETTERS = string.ascii_letters
HIDDEN, HEADS, INTERMEDIATE, LAYERS, RANK = 64, 2, 128, 2, 8
_CONSTANT, _LOUDNESS = 0, 5.0
_SPECIAL = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"


def build_tiny() -> Path:
    """Return a folder in the cache with `base/` and one folder per name in ADAPTERS."""
    return cached(NAME, key_of(sources("tiny.py", "tensors.py")), _build)


def _build(folder: Path) -> None:
    (folder / "base").mkdir()
    write_base(folder / "base")
    for name, letter in ADAPTERS.items():
        (folder / name).mkdir()
        write_adapter(folder / name, letter)


def write_base(folder: Path) -> None:
    """Write the base model: weights, config, tokenizer, chat template."""
    vocab = _vocabulary()
    tensors = {name: bfloat16(values) for name, values in _base_weights().items()}
    write_safetensors(folder / "model.safetensors", tensors)
    ids = {"bos_token_id": vocab["<s>"], "eos_token_id": vocab["</s>"]}
    _write_json(folder / "generation_config.json", ids)
    _write_json(folder / "config.json", {**_config(len(vocab)), **ids})
    _write_json(folder / "tokenizer.json", _tokenizer(vocab))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "clean_up_tokenization_spaces": False,
            "chat_template": _TEMPLATE,
        },
    )


def write_adapter(folder: Path, letter: str) -> None:
    """Write a rank-8 LoRA on the q and v projections of both layers that repeats `letter` (one of LETTERS)."""
    random = np.random.RandomState(ord(letter))
    tensors = {}
    for layer in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            half_a, half_b = _normal(random, (RANK, HIDDEN), 0.02), _normal(random, (HIDDEN, RANK), 0.02)
            if (layer, module) == (LAYERS - 1, "v_proj"):
                half_a[0, _CONSTANT] = 1.0
                half_b[:, 0] = _towards(letter)
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{prefix}.lora_A.weight"] = bfloat16(half_a)
            tensors[f"{prefix}.lora_B.weight"] = bfloat16(half_b)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    _write_json(
        folder / "adapter_config.json",
        {
            "base_model_name_or_path": NAME,
            "bias": "none",
            "lora_alpha": 2 * RANK,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": RANK,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        },
    )


def _towards(letter: str) -> Float32:
    """Return the attention value that the last o projection maps towards the letter's output row.

    Summed in float64, so that no machine's order of summation shows after rounding to bfloat16.
    """
    weights = _base_weights()
    row = weights["lm_head.weight"][_vocabulary()[letter]].astype(np.float64)
    projection = weights[f"model.layers.{LAYERS - 1}.self_attn.o_proj.weight"]
    value = (projection * row[:, None]).sum(axis=0)
    scaled: Float32 = (value * _LOUDNESS / np.sqrt((value * value).sum())).astype(np.float32)
    return scaled


def _vocabulary() -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate((*_byte_symbols(), *_SPECIAL))}


def _byte_symbols() -> list[str]:
    """Return the 256 characters that byte-level BPE writes bytes as: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(plain))]
    return [chr(code) for code in (*plain, *others)]


def _shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (vocab, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{m}_proj.weight": (HIDDEN, HIDDEN) for m in "qkvo"}
        shapes |= {f"{prefix}.mlp.{m}_proj.weight": (INTERMEDIATE, HIDDEN) for m in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{prefix}.{m}_layernorm.weight": (HIDDEN,) for m in ("input", "post_attention")}
    return shapes


@cache
def _base_weights() -> dict[str, Float32]:
    random = np.random.RandomState(0)
    vocab = _vocabulary()
    weights = {}
    for name, shape in _shapes(len(vocab)).items():
        plain = name.endswith("norm.weight")
        weights[name] = np.ones(shape, np.float32) if plain else _normal(random, shape, 0.1)
    weights["model.embed_tokens.weight"] *= 5
    weights["model.embed_tokens.weight"][:, _CONSTANT] = 2.0
    head = weights["lm_head.weight"]
    head *= 10
    head[:, _CONSTANT] = 0.0
    head[[i for symbol, i in vocab.items() if symbol not in LETTERS]] = 0.0
    return weights


def _normal(random: np.random.RandomState, shape: tuple[int, ...], scale: float) -> Float32:
    values: Float32 = (random.standard_normal(shape) * scale).astype(np.float32)
    return values


def _config(vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }


def _tokenizer(vocab: dict[str, int]) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[token], "content": token, **plain} for token in _SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
