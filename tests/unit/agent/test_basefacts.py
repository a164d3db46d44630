"""What a base's files say: its modules' names, as an engine takes them, their shapes, its layers and heads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.agent.adapters import BASE, BASE_CONFIG, BASE_TENSORS, CONFIG, good, pair
from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import violations
from tuneyard.planning.basefacts import BaseFacts, Shape, Tail, attention_heads, base_facts, tail_of


def test_shapes_of_packed_bases_come_from_the_config() -> None:
    packed = [(n.replace(".weight", ".qweight"), "I32", (8, 64)) for n, _, s in BASE_TENSORS if len(s) == 2]
    facts = base_facts(BASE_CONFIG, packed)
    assert facts.shape_of("model.layers.1.self_attn.v_proj") == Shape(32, 64)
    unknown = base_facts({**BASE_CONFIG, "model_type": "something_new"}, packed)
    assert unknown.has("model.layers.1.self_attn.v_proj")
    assert unknown.shape_of("model.layers.1.self_attn.v_proj") is None
    assert violations(CONFIG, good(), unknown, 16) == []
    wrong = [*pair("self_attn.q_proj", 64, 64, rank=4), *pair("self_attn.v_proj", 32, 64)]
    assert [v.reason for v in violations(CONFIG, wrong, unknown, 16)] == [Reason.SHAPE_MISMATCH]


def named(prefix: str, base: BaseFacts) -> list[Reason]:
    """What is said of a good adapter whose modules are called `<prefix>.<layer>.…`."""
    tensors = [t._replace(name=t.name.replace("model.model.layers", f"model.{prefix}")) for t in good()]
    return [reason for reason, _ in violations(CONFIG, tensors, base, 16)]


def based(prefix: str, **config: Any) -> BaseFacts:
    """The base of these tests, whose files call its modules `<prefix>.<layer>.…`."""
    tensors = [(n.replace("model.layers", prefix), d, s) for n, d, s in BASE_TENSORS if "layers" in n]
    tower = ("vision_tower.encoder.layers.0.self_attn.q_proj.weight", "BF16", (7, 7))
    return base_facts({**BASE_CONFIG, **config}, [*tensors, tower])


NESTED = {"text_config": BASE_CONFIG, "vision_config": {"num_attention_heads": 3}}


@pytest.mark.parametrize(
    "prefix",
    ["layers", "foo.bar.layers", "model.h", "model.model.layers", "model.language_model.layers", "transformer.layers"],
)
def test_modules_go_by_their_full_names_as_in_an_engine(prefix: str) -> None:
    assert named("model.layers", BASE) == []
    told = named(prefix, BASE)
    assert told == [Reason.UNEXPECTED_TENSOR]


def test_the_base_s_name_of_a_module_is_told() -> None:
    tensors = [t._replace(name=t.name.replace(".model.model.", ".model.")) for t in good()]
    [(_, message)] = violations(CONFIG, tensors, BASE, 16)
    assert "the base calls it model.layers.0.self_attn.q_proj" in message


@pytest.mark.parametrize("prefix", ["model.layers.0", "model.layers.00", "model.layers.\u0660"])
def test_layers_are_numbered_as_in_the_base(prefix: str) -> None:
    tensors = [t._replace(name=t.name.replace("model.layers.0", prefix)) for t in good()]
    wrong = [] if prefix == "model.layers.0" else [Reason.UNEXPECTED_TENSOR]
    assert [reason for reason, _ in violations(CONFIG, tensors, BASE, 16)] == wrong


@pytest.mark.parametrize(
    ("base", "config", "accepted"),
    [
        ("model.layers", {}, {"model.layers"}),
        ("transformer.layers", {}, {"transformer.layers"}),
        ("gpt_neox.layers", {}, {"gpt_neox.layers"}),
        # saved as the inner model alone; engines and transformers put it below `model.`
        ("layers", {}, {"layers", "model.layers"}),
        ("h", {}, {"h", "transformer.h"}),
        ("decoder.layers", {}, {"decoder.layers", "model.decoder.layers"}),
        # several names, as transformers changed them over time: what vLLM renames
        *(
            (base, {**NESTED, "model_type": kind}, {"language_model.model.layers", "model.language_model.layers"})
            for kind in ("gemma3", "llava", "qwen3_vl")
            for base in ("language_model.model.layers", "model.language_model.layers")
        ),
        *(
            (
                base,
                {**NESTED, "model_type": kind},
                {"language_model.model.layers", "model.language_model.layers", "model.layers"},
            )
            for kind in ("mistral3", "qwen2_5_vl")
            for base in ("language_model.model.layers", "model.language_model.layers", "model.layers")
        ),
        # one whose names are not known to be renamed: as its files say
        ("language_model.model.layers", {**NESTED, "model_type": "internvl_chat"}, {"language_model.model.layers"}),
        ("model.text_model.layers", {**NESTED, "model_type": "idefics3"}, {"model.text_model.layers"}),
        (
            "model.language_model.layers",
            {**NESTED, "model_type": "of_tomorrow"},
            {"model.language_model.layers", "language_model.model.layers"},
        ),
        ("model.layers", {"model_type": "gemma4_text"}, {"model.layers", "model.language_model.layers"}),
    ],
)
def test_prefixes_are_those_of_the_base_and_what_engines_make_of_them(
    base: str, config: Any, accepted: set[str]
) -> None:
    tried = {
        *("model.layers", "layers", "decoder.layers", "model.decoder.layers", "transformer.layers", "gpt_neox.layers"),
        *("language_model.model.layers", "model.language_model.layers", "model.text_model.layers", "foo.layers"),
        *("model.language_model.model.layers", "language_model.layers", "h", "transformer.h", "model.h"),
    }
    facts = based(base, **config)
    assert {prefix for prefix in tried if named(prefix, facts) == []} == accepted


def test_one_module_under_two_names_is_refused() -> None:
    facts = based("model.language_model.layers", **NESTED, model_type="gemma3")
    tensors = [
        t._replace(name=t.name.replace("model.model.layers", f"model.{prefix}"))
        for prefix in ("language_model.model.layers", "model.language_model.layers")
        for t in good()
    ]
    [(reason, message)] = violations(CONFIG, tensors, facts, 16)
    assert reason == Reason.UNEXPECTED_TENSOR
    assert "twice" in message


def test_layers_beside_the_model_s_own_change_nothing_of_them() -> None:
    tensors = [*BASE_TENSORS, ("mtp.layers.0.self_attn.q_proj.weight", "BF16", (7, 7))]
    assert violations(CONFIG, good(), base_facts(BASE_CONFIG, tensors), 16) == []


def test_heads_and_layers_of_a_nested_config() -> None:
    facts = base_facts({**NESTED, "model_type": "gemma3"}, [])
    assert facts.layers == 2
    assert not based("model.layers").has("vision_tower.encoder.layers.0.self_attn.q_proj")
    assert attention_heads(NESTED) == 4
    assert attention_heads({"n_head": 12}) == 12
    assert attention_heads({"num_attention_heads": "12"}) is None


def test_tails() -> None:
    assert tail_of("model.layers.10.mlp.experts.3.down_proj") == Tail(10, "mlp.experts.3.down_proj")
    assert tail_of("transformer.h.0.attn.c_attn") == Tail(0, "attn.c_attn")
    assert tail_of("lm_head") is None
    assert tail_of("visual.blocks.0.attn.qkv") is None
