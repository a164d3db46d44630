"""Parts that tensor parallelism cuts layers into, against the groups of quantised weights."""

from __future__ import annotations

from typing import Any

import pytest

from tuneyard.planning.enginepresets import Engine
from tuneyard.planning.groupchecks import uneven_groups

VLLM = Engine("vllm", "0.32", "CUDA")
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}


def config(size: int | None = 128, *, ignore: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """As llmcompressor writes it."""
    weights = {"num_bits": 4, "strategy": "group", "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    written = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"] if ignore is None else ignore,
    }
    return {**LLAMA_7B, "quantization_config": written, **more}


def test_parts_that_are_no_whole_groups_are_refused_with_what_helps() -> None:
    found = uneven_groups(VLLM, config(), 4)
    assert found is not None
    assert found.reason == "UnsupportedSetting"
    assert "groups of 128" in found.message
    assert "intermediate_size 11008 in parts of 2752" in found.message
    assert "quantize.tensorParallelSize: 4" in found.message


def test_where_no_group_fits_it_says_so() -> None:
    found = uneven_groups(VLLM, config(), 32)
    assert found is not None
    assert "as INT8 or FP8" in found.message


@pytest.mark.parametrize(
    ("found", "tensor_parallel"),
    [
        (config(), 1),
        (config(), 2),  # 11008 / 2 = 43 groups
        (config(64), 4),
        (config(None), 4),
        (config(num_experts=8), 4),
        (config(kv_lora_rank=512), 4),
        (config(ignore=["lm_head", "re:.*down_proj"]), 4),
        (LLAMA_7B, 4),
        ({**LLAMA_7B, "quantization_config": {"quant_method": "fp8"}}, 4),
        ({**LLAMA_7B, "quantization_config": "no mapping"}, 4),
    ],
)
def test_what_fits_or_is_not_certain_is_left_to_the_engine(found: dict[str, Any], tensor_parallel: int) -> None:
    assert uneven_groups(VLLM, found, tensor_parallel) is None


def test_it_is_about_vllm() -> None:
    assert uneven_groups(Engine("sglang", "", "CUDA"), config(), 4) is None
