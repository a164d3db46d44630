"""What a base model's files say about it: heads, layers, and the shape of every linear module.

Shapes come from the base's own tensors. Quantised formats pack several weights into one number, so that their tensors
no longer show the shape; for these config.json's sizes are used for the usual module names, and else a module is
known to be there but of unknown shape. Towers beside the language model (vision, audio) are left out: engines apply
no adapters to them.

An engine looks modules up by their full names and leaves out, without a word, what it does not find. It renames an
adapter's modules as it renames those of the base's files, so that the files' own names are always right; others are
where an engine is known to give both one name (`_renames`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(?P<layer>\d{1,5})\.(?P<rest>[\w.]+)$")
_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|audio|image|speech)")
_WEIGHT_SUFFIXES = (".weight", ".qweight", ".weight_packed", ".weight_scale", ".qzeros", ".blocks")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_USUAL = frozenset(
    {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text"}
)
_TWO_NAMES = frozenset(
    {
        *("aria", "aya_vision", "cohere2_vision", "gemma3", "glm4v", "glm4v_moe", "internvl", "interns1", "lfm2_vl"),
        *("llava", "llava_next", "llava_next_video", "llava_onevision", "paligemma", "pixtral"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
    }
)
"""Of these model_types vLLM 0.32 takes `model.language_model.` for `language_model.model.`."""
_INNER_TOO = frozenset(
    {
        *("gemma3n", "gemma4", "mistral3", "qwen2_vl", "qwen2_5_vl"),
        *("dots_ocr", "ernie4_5_moe_vl", "keye", "opencua", "paddleocr_vl", "phi3_v", "step3_vl"),
    }
)
"""Of these it takes `model.` for it too: adapters of the language model alone."""
_TEXT_ALONE = frozenset({"gemma4_text", "qwen3_5_text", "qwen3_5_moe_text"})
"""Of these it takes `model.language_model.` for `model.`: adapters of the model with its towers."""
_PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8"})


class Shape(NamedTuple):
    """A linear module: y[outputs] = W x[inputs]."""

    outputs: int
    inputs: int


class Tail(NamedTuple):
    """The end of a module's name, from its layer on."""

    layer: int
    rest: str

    @property
    def text(self) -> str:
        """For people."""
        return f"layers.{self.layer}.{self.rest}"


def tail_of(module: str) -> Tail | None:
    """The end of a module's name from its layer on; None for a module outside the layers or in a tower."""
    match = _LAYER.search(module)
    if match is None or _TOWER.search(module[: match.start("rest")]):
        return None
    return Tail(int(match["layer"]), match["rest"])


Renames = tuple[tuple[str, str], ...]
"""Beginnings of modules' names, and what an engine makes of them; the first that fits counts."""


def _renamed(module: str, renames: Renames) -> str:
    return next((new + module[len(old) :] for old, new in renames if module.startswith(old)), module)


@dataclass(frozen=True)
class BaseFacts:
    """What the checks of adapters ask about a base."""

    layers: int
    modules: Mapping[str, Shape | None] = field(default_factory=dict)
    """Linear modules of the layers, by `name_of`; None where the tensor is packed."""
    names: Mapping[Tail, str] = field(default_factory=dict)
    """What the base's files call them, for people."""
    renames: Renames = ()
    vocabulary: int = 0
    """Rows of the embedding, 0 where nothing tells."""
    sizes: Mapping[str, Shape] = field(default_factory=dict)
    """By the rest of a module's name within its layer, from config.json."""
    known: bool = True
    """False of a base in a format of its engine's own: adapters are not compared with it, the engine judges."""

    def has(self, module: str) -> bool:
        """Whether the base has this linear module in one of its layers."""
        return tail_of(module) is not None and self.name_of(module) in self.modules

    def name_of(self, module: str) -> str:
        """The one name of a module that may have several."""
        return _renamed(module, self.renames)

    def shape_of(self, module: str) -> Shape | None:
        """The module's shape, None where nothing tells it."""
        tail = tail_of(module)
        if tail is None:
            return None
        return self.modules.get(self.name_of(module)) or self.sizes.get(tail.rest)


def base_facts(config: Mapping[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> BaseFacts:
    """The facts of a base: config.json parsed, and (name, dtype, shape) of every tensor of all its files."""
    found: dict[str, Shape | None] = {}
    names: dict[Tail, str] = {}
    vocabulary = _size(text_config(config), "vocab_size") or 0
    for name, dtype, shape in tensors:
        if name.endswith(_EMBEDDINGS) and len(shape) == 2 and not _TOWER.search(name):
            vocabulary = max(vocabulary, shape[0])
        suffix = next((s for s in _WEIGHT_SUFFIXES if name.endswith(s)), None)
        module = name.removesuffix(suffix) if suffix else ""
        tail = tail_of(module)
        if tail is None or len(shape) < 2:
            continue  # norms, biases, embeddings
        plain = suffix == ".weight" and dtype in _PLAIN_DTYPES and len(shape) == 2
        found[module] = Shape(shape[0], shape[1]) if plain else found.get(module)
        names.setdefault(tail, module)
    renames = _renames(str(config.get("model_type")), found)
    modules = {_renamed(module, renames): shape for module, shape in found.items()}
    return BaseFacts(layer_count(config), modules, names, renames, vocabulary, _usual_sizes(text_config(config)))


def _renames(kind: str, modules: Iterable[str]) -> Renames:
    """What engines rename in a base of this model_type whose files have these modules."""
    firsts = {".".join(name.split(".", 2)[:2]) for name in modules}
    if kind in _TEXT_ALONE:
        return (("model.language_model.", "model."),)
    if kind in _INNER_TOO:
        return (("model.language_model.", "language_model.model."), ("model.", "language_model.model."))
    if kind in _TWO_NAMES or "model.language_model" in firsts:
        return (("model.language_model.", "language_model.model."),)
    # saved from the inner model alone
    outermost = {first.split(".")[0] for first in firsts}
    if outermost and outermost <= {"layers", "layer", "decoder"}:
        return (("model.", ""),)
    if outermost and outermost <= {"h", "blocks"}:
        return (("transformer.", ""),)
    return ()


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of config.json: multimodal models nest it."""
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if isinstance(nested, dict) and "num_attention_heads" in nested:
            return nested
    return config


def attention_heads(config: Mapping[str, Any]) -> int | None:
    """The number of attention heads, None where config.json does not tell."""
    text = text_config(config)
    return next((n for key in ("num_attention_heads", "n_head", "n_heads") if (n := _size(text, key))), None)


def layer_count(config: Mapping[str, Any]) -> int:
    """The number of layers, 0 where config.json does not tell."""
    text = text_config(config)
    return next((n for key in ("num_hidden_layers", "n_layer", "num_layers") if (n := _size(text, key))), 0)


def _size(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _usual_sizes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes by config.json, for architectures whose layers are known to follow it."""
    if config.get("model_type") not in _USUAL:
        return {}
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if not hidden or not heads:
        return {}
    head = _size(config, "head_dim") or hidden // heads
    queries, keys = heads * head, (_size(config, "num_key_value_heads") or heads) * head
    found = {
        "self_attn.q_proj": Shape(queries, hidden),
        "self_attn.k_proj": Shape(keys, hidden),
        "self_attn.v_proj": Shape(keys, hidden),
        "self_attn.o_proj": Shape(hidden, queries),
    }
    if inner := _size(config, "intermediate_size"):
        found |= {
            "mlp.gate_proj": Shape(inner, hidden),
            "mlp.up_proj": Shape(inner, hidden),
            "mlp.down_proj": Shape(hidden, inner),
        }
    return found
