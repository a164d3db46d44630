"""Names and order of weights in GGUF files, against those of Hugging Face's: what it takes to read a base's shapes from
its GGUF file, and to write a LoRA adapter as llama.cpp reads it.

Rules:
- only architectures whose names and order are known to be these; of others adapters are refused, never guessed;
- `llama` (Mistral too) has the rows of queries and keys in another order (llama.cpp's conversion/llama.py `permute`):
  an adapter for it has its B matrices in that order, or it says nonsense without an error;
- llama.cpp multiplies by alpha / rank with one alpha for the file, while PEFT knows patterns of ranks and alphas, and
  rsLoRA: so the file's alpha is 1, and what a pair is to be multiplied by stands in B, times its rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

ARCHITECTURES: Mapping[str, bool] = MappingProxyType({"llama": True, "qwen2": False, "qwen3": False})
"""Those that adapters are converted for, and whether rows of queries and keys are in another order."""
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {module: name for name, module in _MODULES.items()}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.weight")
_LAYER = re.compile(r"model\.layers\.(\d{1,5})\.([\w.]+)")


class GgufTensor(NamedTuple):
    """A tensor as a header names it; `shape` as PyTorch writes it, the first number the slowest."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GgufBase:
    """What a GGUF file of a base says of itself."""

    architecture: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Its whole numbers, by key without the architecture (`block_count`)."""
    tensors: tuple[GgufTensor, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The same as config.json would say it."""
        told = {
            "num_hidden_layers": self.numbers.get("block_count"),
            "hidden_size": self.numbers.get("embedding_length"),
            "intermediate_size": self.numbers.get("feed_forward_length"),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.numbers.get("vocab_size"),
            "head_dim": self.numbers.get("attention.key_length"),
        }
        return {"model_type": self.architecture, **{k: v for k, v in told.items() if v is not None}}

    @property
    def heads(self) -> int | None:
        """Attention heads."""
        return self.numbers.get("attention.head_count")

    @property
    def key_heads(self) -> int | None:
        """Heads of keys and values."""
        return self.numbers.get("attention.head_count_kv", self.heads)

    def named_as_files(self) -> Iterable[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of its tensors as safetensors files of the base would name them.

        The dtype says only that the shape is the true one: GGUF's quantised types do not change it.
        """
        for tensor in self.tensors:
            if tensor.name == "token_embd.weight":
                yield "model.embed_tokens.weight", "F16", tensor.shape
            match = _BLOCK.fullmatch(tensor.name)
            module = _MODULES.get(match[2]) if match else None
            if match and module:
                yield f"model.layers.{match[1]}.{module}.weight", "F16", tensor.shape


class LoraPart(NamedTuple):
    """How one half of an adapter's pair is written."""

    name: str
    factor: float
    """By how much it is multiplied when it is written."""
    heads: int | None
    """Of how many heads its rows are put into llama.cpp's order; None: they stay."""


def lora_part(base: GgufBase, module: str, half: str, scale: float) -> LoraPart | None:
    """How the half (A or B) of the pair for a module is written; None for a module that GGUF has no name for here.

    `scale`: what the product of the pair is multiplied by.
    """
    match = _LAYER.fullmatch(module)
    name = _NAMES.get(match[2]) if match else None
    if match is None or name is None:
        return None
    tensor = f"blk.{match[1]}.{name}.weight"
    if half == "A":
        return LoraPart(f"{tensor}.lora_a", 1.0, None)
    heads = {"attn_q": base.heads, "attn_k": base.key_heads}.get(name)
    return LoraPart(f"{tensor}.lora_b", scale, heads if ARCHITECTURES.get(base.architecture) else None)
