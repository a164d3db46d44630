"""Every violated fact of an adapter is found, named and told with a remedy; what is right passes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.agent.adapters import BASE, BASE_CONFIG, BASE_TENSORS, CONFIG, found, good, pair, with_
from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import Tensor, multiplied, violations
from tuneyard.planning.adapterconfig import names_another_base, read_config
from tuneyard.planning.basefacts import base_facts
from tuneyard.planning.vocabulary import added_tokens


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_good_adapter_passes(dtype: str) -> None:
    assert found(tensors=good(dtype=dtype)) == []


@pytest.mark.parametrize(
    "config",
    [
        with_(use_rslora=True),
        with_(bias="none", use_dora=False, modules_to_save=None, rank_pattern={}, alpha_pattern=None),
        with_(target_modules=".*_proj"),
        with_(target_modules=["self_attn.q_proj", "model.layers.0.self_attn.v_proj"]),
        with_(init_lora_weights="gaussian"),
        with_(lora_alpha=-3.5),
        with_(peft_type="lora"),
    ],
)
def test_settings_that_engines_know_pass(config: Any) -> None:
    assert found(config) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ([], Reason.INVALID_CONFIG),
        ("text", Reason.INVALID_CONFIG),
        ({}, Reason.INVALID_CONFIG),
        ({k: v for k, v in CONFIG.items() if k != "r"}, Reason.INVALID_CONFIG),
        ({k: v for k, v in CONFIG.items() if k != "lora_alpha"}, Reason.INVALID_CONFIG),
        ({k: v for k, v in CONFIG.items() if k != "peft_type"}, Reason.INVALID_CONFIG),
        (with_(r=True), Reason.INVALID_CONFIG),
        (with_(r=0), Reason.INVALID_CONFIG),
        (with_(r="8"), Reason.INVALID_CONFIG),
        (with_(lora_alpha=float("nan")), Reason.INVALID_CONFIG),
        (with_(lora_alpha=float("inf")), Reason.INVALID_CONFIG),
        (with_(lora_alpha=1e30), Reason.INVALID_CONFIG),
        (with_(lora_alpha=10**400), Reason.INVALID_CONFIG),
        (with_(r=10**400), Reason.INVALID_CONFIG),
        (with_(alpha_pattern={"q_proj": 10**400}), Reason.INVALID_CONFIG),
        (with_(rank_pattern={"q_proj": 10**400}), Reason.INVALID_CONFIG),
        (with_(target_modules=[]), Reason.INVALID_CONFIG),
        (with_(target_modules=[1]), Reason.INVALID_CONFIG),
        (with_(target_modules=["q_proj", "v_proj", "foo_proj"]), Reason.INVALID_CONFIG),
        (with_(target_modules=["q_proj", "v_proj", "proj"]), Reason.INVALID_CONFIG),
        (with_(rank_pattern={"(a+)+$": 8}), Reason.INVALID_CONFIG),
        (with_(rank_pattern={"[": 8}), Reason.INVALID_CONFIG),
        (with_(rank_pattern={"q_proj": -1}), Reason.INVALID_CONFIG),
        (with_(rank_pattern=[1]), Reason.INVALID_CONFIG),
        (with_(alpha_pattern={"q_proj": "x"}), Reason.INVALID_CONFIG),
        (with_(peft_type="IA3"), Reason.UNSUPPORTED_ADAPTER),
        (with_(use_dora=True), Reason.UNSUPPORTED_ADAPTER),
        (with_(bias="all"), Reason.UNSUPPORTED_ADAPTER),
        (with_(lora_bias=True), Reason.UNSUPPORTED_ADAPTER),
        (with_(modules_to_save=["lm_head"]), Reason.UNSUPPORTED_ADAPTER),
        (with_(init_lora_weights="pissa"), Reason.UNSUPPORTED_ADAPTER),
        (with_(layer_replication=[[0, 1]]), Reason.UNSUPPORTED_ADAPTER),
        (with_(trainable_token_indices=[999]), Reason.UNSUPPORTED_ADAPTER),
        (with_(trainable_token_indices={"embed_tokens": [999]}), Reason.UNSUPPORTED_ADAPTER),
        (with_(target_parameters=["mlp.experts.gate_up_proj"]), Reason.UNSUPPORTED_ADAPTER),
        (with_(modules_to_save=["embed_tokens"]), Reason.UNSUPPORTED_ADAPTER),
        (with_(lora_alpha=0), Reason.ALPHA_ZERO),
        (with_(alpha_pattern={"q_proj": 0}), Reason.ALPHA_ZERO),
        (with_(r=4), Reason.SHAPE_MISMATCH),
        (with_(rank_pattern={"q_proj": 4}), Reason.SHAPE_MISMATCH),
    ],
)
def test_a_wrong_config_is_named(config: Any, reason: Any) -> None:
    assert found(config) == [reason]


@pytest.mark.parametrize(
    "config",
    [
        with_(lora_alpha=8001),
        with_(lora_alpha=2000, rank_pattern={"v_proj": 1}),
        with_(lora_alpha=3000, use_rslora=True),
        with_(alpha_pattern={"v_proj": 8001}),
        with_(alpha_pattern={"v_proj": -501}, rank_pattern={"v_proj": 1, "q_proj": 8}, use_rslora=True, lora_alpha=1e4),
    ],
)
def test_the_scale_is_the_one_that_an_engine_computes_for_a_module(config: Any) -> None:
    tensors = good()
    if "v_proj" in config.get("rank_pattern", {}):
        pairs = (pair("self_attn.v_proj", 32, 64, 1, layer=layer) for layer in (0, 1))
        tensors = [*tensors[:4], *(t for both in pairs for t in both)]
    assert found(config, tensors) == [Reason.INVALID_CONFIG]


@pytest.mark.parametrize(
    "config", [with_(lora_alpha=8000), with_(lora_alpha=2828, use_rslora=True), with_(alpha_pattern={"o_proj": 1e6})]
)
def test_scales_up_to_the_limit_pass(config: Any) -> None:
    assert found(config) == []


def test_an_engine_multiplies_b_by_alpha_over_rank() -> None:
    config = with_(alpha_pattern={"1.self_attn.v_proj": -32}, rank_pattern={"0.self_attn.v_proj": 4})
    for rslora, expected in ((False, [2, 2, 4, 4]), (True, [16 / 8**0.5, 16 / 8**0.5, 16 / 4**0.5, 32 / 8**0.5])):
        read = read_config({**config, "use_rslora": rslora})
        factors = multiplied(read, good())
        assert list(factors) == [t.name for t in good() if ".lora_B." in t.name]
        assert list(factors.values()) == pytest.approx(expected)


def test_the_rank_may_not_exceed_the_pools() -> None:
    assert found(with_(r=32), good(rank=32)) == [Reason.RANK_TOO_HIGH]
    assert found(with_(r=32), good(rank=32), max_rank=32) == []
    tensors = [*pair("self_attn.q_proj", 64, 64, 24), *pair("self_attn.v_proj", 32, 64)]
    assert found(with_(rank_pattern={"q_proj": 24}), tensors) == [Reason.RANK_TOO_HIGH]
    assert found(with_(rank_pattern={"q_proj": 24}), tensors, max_rank=64) == []
    assert found(with_(rank_pattern={r".*\.q_proj": 24}), tensors, max_rank=64) == []


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), *pair("self_attn.q_proj", 64, 64, layer=2)], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), *pair("self_attn.q_proj", 64, 64, layer=99)], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), *pair("self_attn.foo_proj", 64, 64)], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), *pair("input_layernorm", 64, 64)], [Reason.UNEXPECTED_TENSOR]),
        (good()[:-1], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), Tensor("base_model.model.lm_head.lora_A.weight", "BF16", (8, 64))], [Reason.UNEXPECTED_TENSOR]),
        ([*good(), Tensor("base_model.model.lm_head.weight", "BF16", (8, 64))], [Reason.UNEXPECTED_TENSOR]),
        (
            [*good(), Tensor("base_model.model.model.embed_tokens.lora_embedding_A", "BF16", (8, 1000))],
            [Reason.UNEXPECTED_TENSOR],
        ),
        (
            [
                *good(),
                *(
                    t._replace(name=t.name.replace("model.layers", "vision_tower.layers"))
                    for t in pair("self_attn.q_proj", 64, 64)
                ),
            ],
            [Reason.UNEXPECTED_TENSOR],
        ),
        ([t._replace(dtype="I8") for t in good()], [Reason.UNSUPPORTED_DTYPE]),
        ([*good()[:-1], good()[-1]._replace(dtype="F64")], [Reason.UNSUPPORTED_DTYPE]),
        ([*pair("self_attn.q_proj", 64, 128), *pair("self_attn.v_proj", 32, 64)], [Reason.SHAPE_MISMATCH]),
        ([*pair("self_attn.q_proj", 64, 64), *pair("self_attn.v_proj", 64, 64)], [Reason.SHAPE_MISMATCH]),
        ([*good()[:-1], good()[-1]._replace(shape=(32, 8, 1))], [Reason.SHAPE_MISMATCH]),
        ([*good()[:-1], good()[-1]._replace(shape=(32,))], [Reason.SHAPE_MISMATCH]),
        ([*good()[:-1], good()[-1]._replace(shape=(8, 32))], [Reason.SHAPE_MISMATCH]),
    ],
)
def test_wrong_tensors_are_named(tensors: Any, reason: Any) -> None:
    assert found(tensors=tensors) == reason


def test_names_without_peft_s_prefix_are_refused() -> None:
    bare = [t._replace(name=t.name.removeprefix("base_model.model.")) for t in good()]
    assert found(tensors=bare) == [Reason.UNEXPECTED_TENSOR]


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({}, {}),
        ({"added_tokens.json": '{"<a>": 1000, "<b>": true, "<c>": "7"}'}, {"<a>": 1000}),
        ({"tokenizer.json": '{"added_tokens": [{"id": 1000, "content": "<a>"}, 1, {"id": 3}], "model"'}, {"<a>": 1000}),
        ({"tokenizer.json": '{"added_tokens": [{"id": 1000, "cont'}, {}),
        ({"tokenizer.json": '{"model": []}', "added_tokens.json": "["}, {}),
        ({"added_tokens.json": '{"[PAD]": 1000}', "tokenizer_config.json": '{"pad_token": "[PAD]"}'}, {}),
        ({"added_tokens.json": '{"<p>": 1}', "special_tokens_map.json": '{"pad_token": {"content": "<p>"}}'}, {}),
        ({"added_tokens.json": '{"<p>": 1}', "tokenizer_config.json": '{"pad_token": null}'}, {"<p>": 1}),
        ({"tokenizer.json": '{"added_tokens":' + "[" * 100_000}, {}),
    ],
)
def test_what_a_tokenizer_adds(files: Any, tokens: Any) -> None:
    assert added_tokens(files) == tokens


def test_tokens_that_the_base_lacks_are_refused() -> None:
    assert BASE.vocabulary == 1000
    for config, tensors, rows in (({"vocab_size": 500}, [], 500), ({"vocab_size": 500}, BASE_TENSORS, 1000)):
        assert base_facts({**BASE_CONFIG, **config}, tensors).vocabulary == rows
    assert violations(CONFIG, good(), BASE, 16, {"<eos>": 2, "<last>": 999}) == []
    [(reason, message)] = violations(CONFIG, good(), BASE, 16, {"<eos>": 2, "<a>": 1000, "<b>": 10**400})
    assert reason == Reason.UNSUPPORTED_ADAPTER
    assert "<a> (1000); <b> (1000" in message
    unknown = base_facts(BASE_CONFIG, [t for t in BASE_TENSORS if "embed" not in t[0]])
    assert violations(CONFIG, good(), unknown, 16, {"<a>": 1000}) == []


@pytest.mark.parametrize(
    ("named", "another"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", False),
        ("Meta-Llama/llama-3.1-8b-instruct", False),
        ("mirror/Llama-3.1-8B-Instruct", False),
        ("unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit", False),
        ("meta-llama/Llama-3.1-8B", True),
        ("acme/Llama-3.1-8B-Instruct-Tuned", True),
        ("/models/base", False),
        ("./base", False),
        ("models/llama/base", False),
        ("base", False),
        ("", False),
        (None, False),
        (["a/b"], False),
    ],
)
def test_another_base_s_name_is_noticed(named: Any, another: bool) -> None:
    read = read_config(with_(base_model_name_or_path=named))
    assert names_another_base(read, "meta-llama/Llama-3.1-8B-Instruct") is another
    assert found(with_(base_model_name_or_path=named)) == [], "a warning, no refusal"


def test_everything_wrong_is_told_at_once() -> None:
    told = found(with_(r=64, lora_alpha=0, use_dora=True), [*good(dtype="I8"), *pair("self_attn.foo_proj", 1, 1)])
    assert told == [
        Reason.UNSUPPORTED_ADAPTER,
        Reason.RANK_TOO_HIGH,
        Reason.ALPHA_ZERO,
        Reason.UNSUPPORTED_DTYPE,
        Reason.UNEXPECTED_TENSOR,
        Reason.SHAPE_MISMATCH,
    ]


def test_long_lists_are_cut() -> None:
    names = violations(CONFIG, [Tensor(f"t{i}", "BF16", (1,)) for i in range(1000)], BASE, 16)
    assert len(names[0].message) < 700
    assert "997 more" in names[0].message
