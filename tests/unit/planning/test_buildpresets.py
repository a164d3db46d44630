"""What schemes mean, and which groups fit a model."""

from __future__ import annotations

import pytest

from tuneyard.planning.buildpresets import (
    PRESETS,
    Preset,
    UnfitError,
    fitting_group_size,
    layer_inputs,
    preset,
)

SMOL = {"hidden_size": 576, "num_attention_heads": 9, "intermediate_size": 1536}
LLAMA = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336}
ODD = {"hidden_size": 100, "num_attention_heads": 2, "intermediate_size": 300}
EXPERTS = {"hidden_size": 2048, "num_attention_heads": 32, "head_dim": 128, "moe_intermediate_size": 768}


def test_presets() -> None:
    assert dict(PRESETS) == {
        "AWQ": Preset("awq", 4, "int", None, grouped=True),
        "GPTQ": Preset("gptq", 4, "int", None, grouped=True),
        "INT8": Preset("rtn", 8, "int", "dynamic"),
        "FP8": Preset("rtn", 8, "float", "dynamic"),
    }
    assert [name for name, found in PRESETS.items() if found.calibrated] == ["AWQ", "GPTQ"]


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("bitsandbytes", "use AWQ or GPTQ (4 bits), INT8 or FP8"),
        ("W3", "there is no scheme W3: use AWQ, GPTQ, INT8, FP8"),
    ],
)
def test_a_scheme_that_cannot_be_built_names_those_that_can(scheme: str, said: str) -> None:
    with pytest.raises(UnfitError, match=said.replace("(", r"\(").replace(")", r"\)")):
        preset(scheme)


@pytest.mark.parametrize(
    ("config", "wanted", "parallel", "found"),
    [
        (LLAMA, None, 1, 128),
        (LLAMA, 64, 1, 64),
        (SMOL, None, 1, 64),  # 128 does not divide 576
        (SMOL, 32, 1, 32),
        (LLAMA, None, 4, 128),
        ({**LLAMA, "intermediate_size": 11008}, None, 8, 32),  # 1376 a part
        (EXPERTS, None, 1, 128),
        ({"text_config": LLAMA}, None, 1, 128),
    ],
)
def test_the_group_fits_every_layer(config: dict[str, object], wanted: int | None, parallel: int, found: int) -> None:
    assert fitting_group_size(config, wanted, tensor_parallel=parallel) == found


@pytest.mark.parametrize(
    ("config", "wanted", "said"),
    [
        (SMOL, 128, r"a group of 128 does not divide .*hidden_size 576.*: use groupSize 64 or 32"),
        (ODD, None, r"none of the groups 128, 64, 32 divides .*hidden_size 100.*: use INT8 or FP8"),
        ({"model_type": "mamba"}, None, r"config.json has no hidden_size"),
    ],
)
def test_a_group_that_does_not_fit_is_refused(config: dict[str, object], wanted: int | None, said: str) -> None:
    with pytest.raises(UnfitError, match=said):
        fitting_group_size(config, wanted)


def test_parts_of_tensor_parallelism_are_looked_at() -> None:
    assert layer_inputs(LLAMA, 4) == {"hidden_size": 4096, "attention output": 1024, "intermediate_size": 3584}
