"""Broken adapters, one folder per way to be broken, each derived from a good adapter.

Every case is something that an engine refuses, or worse, accepts. Tests feed them to the agent's checks and
to a whole cluster; none may ever reach an engine. CASES is ordered by the reason (of tuneyard.api.reasons)
that the checks must give, with what a real vLLM does where it does not refuse.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from models import breaking as by
from models.breaking import Way


class Case(NamedTuple):
    """One way to be broken: folder name, what is wrong in a few words, and how the folder is written."""

    name: str
    why: str
    way: Way


_NAN, _INF = float("nan"), float("inf")

CASES: Mapping[str, tuple[Case, ...]] = {
    # accepted by the engine; one request then silences the base and every other adapter
    "NonFiniteValues": (
        Case("nan", "every weight is NaN", by.poisoned(_NAN)),
        Case("nan-one-value", "one single weight is NaN", by.poisoned(_NAN, "v_proj", "lora_B")),
        Case("nan-float32", "one float32 weight is NaN", by.poisoned(_NAN, "q_proj", "lora_A", dtype="F32")),
        Case("nan-float16", "one float16 weight is NaN", by.poisoned(_NAN, "q_proj", "lora_B", dtype="F16")),
        Case("inf-one-tensor", "one weight of one tensor is infinite", by.poisoned(_INF, "v_proj", "lora_A")),
        Case("negative-inf", "every weight is minus infinity", by.poisoned(-_INF)),
        Case("huge", "one weight is 1e6, infinite in float16", by.poisoned(1e6, "v_proj", "lora_B")),
        Case("huge-when-scaled", "one weight is 70 and lora_alpha 1000 times the rank", by.scaled(70.0, 1000)),
    ),
    # accepted; answers equal the base's and nobody notices
    "AlphaZero": (Case("alpha-zero", "lora_alpha is 0", by.with_config(lora_alpha=0)),),
    "RankTooHigh": (Case("rank-over-maximum", "rank 64, pools allow 16 by default", by.of_rank(64)),),
    # accepted where only the config is wrong: scaled by another factor than in training
    "ShapeMismatch": (
        Case("config-rank-higher", "config says twice the rank of the weights", by.config_rank(2)),
        Case("config-rank-lower", "config says half the rank of the weights", by.config_rank(0.5)),
        Case("wrong-shapes", "lora_A has half the inputs", by.reshaped(".lora_A.", 1, 0.5)),
        Case("gqa-mismatch", "v_proj as if no key-value heads were shared", by.reshaped("v_proj.lora_B.", 0, 3)),
        Case("another-base", "trained on a base of twice the width", by.foreign_base),
    ),
    # accepted, except for half a pair and unknown modules: the tensors are dropped without a word
    "UnexpectedTensor": (
        Case("layer-not-there", "weights for layer 999", by.layer_not_there),
        Case(
            "wrong-prefix",
            "tensor names of another class: one model. is missing",
            by.renamed(by.PREFIX + "model.", by.PREFIX),
        ),
        Case("missing-prefix", "tensor names lack base_model.model.", by.renamed(by.PREFIX, "")),
        Case("half-of-a-pair", "one lora_B is missing", by.without("q_proj", ".lora_B.")),
        Case("unknown-modules", "weights for a module that the base lacks", by.unknown_module),
        Case("embed-tokens", "a LoRA of the embedding", by.embedding),
        Case("no-tensors", "a safetensors file without tensors", by.no_tensors),
    ),
    "UnsupportedDtype": (Case("int8", "integer weights", by.int8),),
    # IA3 and added tokens are accepted; the others are refused by the engine too
    "UnsupportedAdapter": (
        Case("dora", "DoRA with magnitude vectors", by.with_vectors("lora_magnitude_vector", use_dora=True)),
        Case("bias", "trained biases", by.with_vectors("bias", bias="lora_only")),
        Case("modules-to-save", "a whole lm_head in the adapter", by.saved_head),
        Case("added-tokens", "a tokenizer with a token that the base lacks", by.added_tokens),
        Case("ia3", "IA3 instead of LoRA", by.ia3),
    ),
    "InvalidConfig": (
        Case("unknown-modules-in-config", "config names a module without weights", by.module_in_config_only),
        Case("bad-json", "adapter_config.json is not JSON", by.config_text("{not json")),
        Case("config-is-a-list", "adapter_config.json is a JSON list", by.config_text("[]")),
        Case("config-without-rank", "adapter_config.json has no r", by.lacking("r")),
    ),
    "FilesMissing": (
        Case("no-config", "adapter_config.json is missing", by.removed(by.CONFIG)),
        Case("no-weights", "adapter_model.safetensors is missing", by.removed(by.WEIGHTS)),
    ),
    "ArtifactNotFound": (Case("empty-dir", "the folder is empty", by.empty),),
    "NotSafetensors": (
        Case("pickle-only", "the weights are a pickle", by.pickled),
        Case("malicious-pickle", "a pickle that runs a command when read", by.malicious_pickle),
    ),
    "CorruptWeights": (
        Case("pickle-as-safetensors", "a pickle under a safetensors name", by.pickle_named_safetensors),
        Case("truncated", "half of the weights file", by.truncated),
        Case("garbage", "random bytes for weights", by.garbage),
        Case("header-bomb", "a header length of 2**60 bytes", by.header_bomb),
        Case("offsets-past-the-end", "a tensor that ends after the file", by.offsets_past_the_end),
    ),
    "UnsafePath": (Case("escaping-symlink", "the weights are a link out of the folder", by.escaping_link),),
}
"""Reason -> the cases that must be given it."""


def make_bad(good: Path, out: Path) -> dict[str, str]:
    """Write one folder per case below `out`; return name -> what is wrong with it.

    `good` is a LoRA adapter with q_proj and v_proj among its modules; its files are not touched. Folders of
    an earlier run are refused with FileExistsError.
    """
    source = by.read_good(good)
    cases = [case for group in CASES.values() for case in group]
    for case in cases:
        folder = out / case.name
        folder.mkdir(parents=True)
        case.way(source, folder)
    return {case.name: case.why for case in cases}


def expected_reasons() -> dict[str, str]:
    """Return name -> the reason that the agent's checks must give."""
    return {case.name: reason for reason, group in CASES.items() for case in group}
