"""How large a base is, told apart by what an engine does with each part when it divides the model over GPUs.

Rules:
- sizes come from the headers of the files, never from a model's name; config.json says how they are used;
- a tensor of a plain number format is counted in numbers, because the engine loads it in the format that it serves; a
  packed one (AWQ, GPTQ, FP8 …) in bytes, because it stays as it is;
- what one tensor is, is read off the usual names of modules. A name that is not usual counts as divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from tuneyard.planning.basefacts import base_facts, layer_count, text_config

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F4": 0.5,
}
_ROWS = ("o_proj", "down_proj", "w2", "out_proj", "c_proj", "dense_4h_to_h", "wo", "dense")
_KEYS = ("k_proj", "v_proj")
_WHOLE = ("gate", "router", "q_a_proj", "kv_a_proj_with_mqa", "shared_expert_gate")
_TOWERS = ("vision", "visual", "audio", "image", "speech", "multi_modal")
_VOCABULARY_PADDING = 64
_ADAPTERS_TO_OUTPUT = frozenset(
    {
        *("apertus", "cohere", "cohere2", "exaone", "exaone4", "exaone_moe", "falcon_h1", "granite", "granitemoe"),
        *("granitemoehybrid", "granitemoeshared", "hyperclovax", "jamba", "lfm2", "lfm2_moe", "llama", "minicpm"),
        *("mixtral", "nemotron", "nemotron_h", "phimoe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "solar"),
    }
)
"""Of these model_types vLLM 0.32 keeps room for adapters of the embedding and of the output layer, too."""


class Division(Enum):
    """What an engine does with a part when it divides the model over tensor-parallel GPUs."""

    COLUMNS = "columns"
    """Divided by outputs."""
    ROWS = "rows"
    """Divided by inputs."""
    KEYS = "keys"
    """By heads of keys and values, of which there may be fewer than GPUs: then each GPU has a whole one."""
    EXPERTS = "experts"
    """Over the data-parallel copies, too."""
    WHOLE = "whole"
    """On each GPU."""


@dataclass(frozen=True)
class Part:
    """All tensors of the layers that are divided alike."""

    linear: int = 0
    """Numbers in plain weights of linear modules."""
    other: int = 0
    """Numbers in other plain tensors: norms, biases, scales."""
    packed: int = 0
    """Bytes that stay as they are stored."""
    inputs: int = 0
    """Sums over the linear modules that adapters may change."""
    outputs: int = 0


@dataclass(frozen=True)
class ModelSize:
    """A base's size and the numbers of its config.json that decide about memory."""

    dtype: str
    """The number format that it is served in unless another one is asked for."""
    layers: int
    parts: Mapping[Division, Part] = field(default_factory=dict)
    """Of the layers; of expert modules, ROWS and COLUMNS of adapters are in `experts_rows`."""
    expert_rows: Part = Part()
    """Modules of experts that are divided by inputs: only for adapters."""
    vocabulary: int = 0
    hidden: int = 0
    tied: bool = False
    """Whether the output layer is the embedding."""
    embeddings: int = 0
    """Numbers in the embedding and the output layer, as stored."""
    towers: int = 0
    """Bytes of what is beside the language model, as stored."""
    adapters_to_output: bool = False
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    kv_layers: int = 0
    latent: int = 0
    """Numbers that a layer keeps of a token where keys and values are compressed into one (MLA); else 0."""
    intermediate: int = 0
    positions: int = 0
    """The longest context that the model was made for."""
    experts: int = 0
    quantized: bool = False
    """Whether config.json says that the files are quantised."""
    unknown_modules: int = 0
    """Linear modules of unknown shape: adapters of them are not counted."""


def model_size(config: Mapping[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> ModelSize:
    """The size of a base: config.json parsed, and (name, dtype, shape) of every tensor of all its files."""
    listed = list(tensors)
    parts, totals = _counted(listed)
    shapes = _adapter_shapes(config, listed)
    for division, (inputs, outputs) in shapes.sums.items():
        if division is not Division.EXPERTS:
            part = parts.get(division, Part())
            parts[division] = replace(part, inputs=inputs, outputs=outputs)
    columns = shapes.sums.get(Division.EXPERTS, (0, 0))
    experts = parts.get(Division.EXPERTS, Part())
    if experts != Part() or columns != (0, 0):
        parts[Division.EXPERTS] = replace(experts, inputs=columns[0], outputs=columns[1])
    text = text_config(config)
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    return ModelSize(
        dtype=_dtype(config, totals.formats),
        layers=layer_count(config),
        parts=parts,
        expert_rows=Part(inputs=shapes.expert_rows[0], outputs=shapes.expert_rows[1]),
        vocabulary=totals.vocabulary or _number(text, "vocab_size"),
        hidden=hidden,
        tied=not totals.has_head,
        embeddings=totals.embeddings,
        towers=totals.towers,
        adapters_to_output=str(config.get("model_type")) in _ADAPTERS_TO_OUTPUT,
        heads=heads,
        kv_heads=_number(text, "num_key_value_heads", "num_kv_heads") or heads,
        head_size=_number(text, "head_dim") or (hidden // heads if heads else 0),
        kv_layers=_kv_layers(config),
        latent=_number(text, "kv_lora_rank") and _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim"),
        intermediate=_number(text, "intermediate_size", "n_inner", "ffn_dim"),
        positions=_number(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        experts=_number(text, "num_experts", "num_local_experts", "n_routed_experts"),
        quantized=isinstance(config.get("quantization_config"), dict),
        unknown_modules=shapes.unknown,
    )


@dataclass
class _Totals:
    """What is counted of tensors outside the layers."""

    formats: dict[str, int] = field(default_factory=dict)
    vocabulary: int = 0
    embeddings: int = 0
    towers: int = 0
    has_head: bool = False


def _counted(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[dict[Division, Part], _Totals]:
    parts: dict[Division, Part] = {}
    totals = _Totals()
    for name, dtype, shape in tensors:
        numbers = _product(shape)
        if dtype in _FLOATS:
            totals.formats[dtype] = totals.formats.get(dtype, 0) + numbers
        if _is_tower(name):
            totals.towers += int(numbers * _BYTES.get(dtype, 1))
        elif _is_vocabulary(name) and len(shape) == 2:
            totals.embeddings += _padded(shape[0]) * shape[1]
            totals.vocabulary = max(totals.vocabulary, shape[0])
            totals.has_head |= _is_head(name)
        else:
            division = _division(name, shape)
            parts[division] = _with(parts.get(division, Part()), dtype, shape, numbers)
    return parts, totals


def _with(part: Part, dtype: str, shape: tuple[int, ...], numbers: int) -> Part:
    if dtype not in _FLOATS:
        return replace(part, packed=part.packed + int(numbers * _BYTES.get(dtype, 1)))
    if len(shape) > 1:
        return replace(part, linear=part.linear + numbers)
    return replace(part, other=part.other + numbers)


@dataclass
class _Shapes:
    sums: dict[Division, tuple[int, int]] = field(default_factory=dict)
    expert_rows: tuple[int, int] = (0, 0)
    unknown: int = 0


def _adapter_shapes(config: Mapping[str, Any], tensors: list[tuple[str, str, tuple[int, ...]]]) -> _Shapes:
    """Inputs and outputs of the linear modules, summed by how they are divided."""
    facts, found = base_facts(config, tensors), _Shapes()
    for name in facts.modules:
        shape = facts.shape_of(name)
        if shape is None:
            found.unknown += 1
            continue
        division = _division(f"{name}.weight", shape)
        if division is Division.EXPERTS and name.rpartition(".")[2] in _ROWS:
            found.expert_rows = (found.expert_rows[0] + shape.inputs, found.expert_rows[1] + shape.outputs)
            continue
        inputs, outputs = found.sums.get(division, (0, 0))
        found.sums[division] = (inputs + shape.inputs, outputs + shape.outputs)
    return found


def _division(name: str, shape: tuple[int, ...]) -> Division:
    words = name.split(".")
    if "experts" in words:
        return Division.EXPERTS
    module = words[-2] if len(words) > 1 else ""
    if module in _KEYS:
        return Division.KEYS
    if module in _ROWS:
        # a bias of it is added once, on each GPU that may have to
        return Division.ROWS if len(shape) > 1 else Division.WHOLE
    if module in _WHOLE or "norm" in module or (len(shape) < 2 and not module.endswith("proj")):
        return Division.WHOLE
    return Division.COLUMNS


def _is_tower(name: str) -> bool:
    return any(word.startswith(_TOWERS) for word in name.split(".")[:3])


def _is_head(name: str) -> bool:
    return name.endswith(("lm_head.weight", "embed_out.weight")) or name == "output.weight"


def _is_vocabulary(name: str) -> bool:
    return _is_head(name) or name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight"))


def _kv_layers(config: Mapping[str, Any]) -> int:
    """Layers that keep keys and values of every token; those with a state of fixed size do not."""
    kinds = text_config(config).get("layer_types") or text_config(config).get("layers_block_type")
    if not isinstance(kinds, list):
        return layer_count(config)
    return sum(1 for kind in kinds if "attention" in str(kind) and "linear" not in str(kind))


def _dtype(config: Mapping[str, Any], formats: Mapping[str, int]) -> str:
    """The format that vLLM serves: config.json's, where it is none of 32 or 64 bits."""
    text = text_config(config)
    named = next((str(v) for c in (text, config) for k in ("dtype", "torch_dtype") if (v := c.get(k))), "")
    if not named and formats:
        named = _FLOATS[max(formats, key=lambda f: formats[f])]
    named = named.removeprefix("torch.")
    return named if named in ("float16", "bfloat16") else "bfloat16"


def _number(config: Mapping[str, Any], *keys: str) -> int:
    found = (config.get(key) for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)


def _padded(rows: int) -> int:
    return -(-rows // _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def _product(shape: tuple[int, ...]) -> int:
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers
