"""Names of models in mergekit configurations, and folders in their place."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tuneyard.planning.mergekitnames import ConfigError, named_models, with_folders

TIES = """
merge_method: ties
base_model: base
models:
  - model: support
    parameters: {weight: 0.5, density: [0.2, {filter: mlp, value: 0.4}]}
  - model: sales
parameters: {normalize: true, model: left alone}
tokenizer_source: union
dtype: float32
"""
SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: support, layer_range: [0, 1]}]
  - sources: [{model: sales, layer_range: [1, 2]}]
    base_model: base
tokenizer:
  source: base
  tokens:
    <|user|>: {source: {kind: model_token, model: sales, token: model}}
    source: {source: support, force: true}
"""
FOLDERS = {"base": "/m/base", "support": "/m/support", "sales": "/m/sales"}


def test_every_place_that_names_a_model_gets_its_folder() -> None:
    assert with_folders(yaml.safe_load(TIES), FOLDERS) == {
        "merge_method": "ties",
        "base_model": "/m/base",
        "models": [
            {
                "model": "/m/support",
                "parameters": {"weight": 0.5, "density": [0.2, {"filter": "mlp", "value": 0.4}]},
            },
            {"model": "/m/sales"},
        ],
        "parameters": {"normalize": True, "model": "left alone"},
        "tokenizer_source": "union",
        "dtype": "float32",
    }


def test_slices_and_tokens_name_models_too() -> None:
    found = with_folders(yaml.safe_load(SLICES), FOLDERS)
    assert found["slices"][1] == {"sources": [{"model": "/m/sales", "layer_range": [1, 2]}], "base_model": "/m/base"}
    assert found["tokenizer"] == {
        "source": "base",
        "tokens": {
            "<|user|>": {"source": {"kind": "model_token", "model": "/m/sales", "token": "model"}},
            "source": {"source": "/m/support", "force": True},
        },
    }


def test_names_are_those_of_models_in_long_form_too() -> None:
    config = {"merge_method": "linear", "models": [{"model": {"model": {"path": "a"}, "override_architecture": "X"}}]}
    assert named_models(config) == {"a"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("text", "no YAML mapping"),
        ({"models": []}, "no merge_method"),
        (
            {"merge_method": "linear", "models": [{"model": "/etc"}, {"model": "base"}]},
            "names /etc, which .* not by path",
        ),
        ({"merge_method": "linear", "models": [{"model": "base+support"}]}, r"names base\+support, which"),
        (
            {"merge_method": "linear", "models": [{"model": "base"}]},
            "has sales, support, which mergekit.config does not",
        ),
        ({"merge_method": "linear", "models": [{"model": {"model": "base", "lora": "x"}}]}, "names a lora"),
        ({"merge_method": "linear", "base_model": {"path": 5}}, "no text"),
    ],
)
def test_what_was_not_declared_is_refused(config: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_folders(config, FOLDERS)
