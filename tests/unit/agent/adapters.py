"""A base, adapters that fit it, and what the checks say of them. Shared by the tests here."""

from __future__ import annotations

from typing import Any

from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import Tensor, violations
from tuneyard.planning.basefacts import base_facts

BASE_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
}
SHAPES = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
BASE_TENSORS = [
    ("model.embed_tokens.weight", "BF16", (1000, 64)),
    ("model.norm.weight", "BF16", (64,)),
    *(
        (f"model.layers.{layer}.self_attn.{module}.weight", "BF16", shape)
        for layer in range(2)
        for module, shape in SHAPES.items()
    ),
    *((f"model.layers.{layer}.mlp.down_proj.weight", "BF16", (64, 128)) for layer in range(2)),
    *((f"model.layers.{layer}.input_layernorm.weight", "BF16", (64,)) for layer in range(2)),
]
BASE = base_facts(BASE_CONFIG, BASE_TENSORS)
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def pair(module: str, outputs: int, inputs: int, rank: int = 8, *, dtype: str = "BF16", layer: int = 0) -> list[Tensor]:
    prefix = f"base_model.model.model.layers.{layer}.{module}"
    return [
        Tensor(f"{prefix}.lora_A.weight", dtype, (rank, inputs)),
        Tensor(f"{prefix}.lora_B.weight", dtype, (outputs, rank)),
    ]


def good(rank: int = 8, dtype: str = "BF16") -> list[Tensor]:
    return [
        *(t for layer in (0, 1) for t in pair("self_attn.q_proj", 64, 64, rank, dtype=dtype, layer=layer)),
        *(t for layer in (0, 1) for t in pair("self_attn.v_proj", 32, 64, rank, dtype=dtype, layer=layer)),
    ]


def found(config: object = None, tensors: list[Tensor] | None = None, max_rank: int = 16) -> list[Reason]:
    told = violations(CONFIG if config is None else config, good() if tensors is None else tensors, BASE, max_rank)
    for _, message in told:
        assert len(message) > 30, "a message says what to do"
    return [reason for reason, _ in told]


def with_(**config: Any) -> dict[str, Any]:
    return {**CONFIG, **config}
