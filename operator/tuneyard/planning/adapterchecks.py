"""What an adapter's files must be before an engine may see them: every check is named after the violated fact.

Rules:
- Engines accept a good deal that is wrong and answer 200 (NaN, lora_alpha 0, layers that are not there, names without
  PEFT's prefix, another rank than the config says), and some of it harms every other user of the engine. So nothing
  reaches an engine that was not found right here first.
- The truth about shapes are the base's own tensors; config.json fills in where these are packed by quantisation.
- A check returns what is wrong, in words and with the remedy, or None. All checks run, so that the user reads
  everything at once; only a config that cannot be read stops the chain.
- Regular expressions out of an adapter's config are input of strangers: only such are evaluated as cannot explode.

Values are not looked at here (tuneyard.systems.artifacts.safetensors does, by bit patterns).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tuneyard.api.reasons import Reason
from tuneyard.planning.basefacts import BaseFacts, Shape, tail_of
from tuneyard.planning.remedies import clipped

DTYPES = ("F32", "F16", "BF16")
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<half>[AB])\.weight")
_SAFE_PATTERN = re.compile(r"[\w.\\*+|^$\[\]-]{1,256}")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_EXAMPLES = 3
_MOST_REPEATS = 3
_LONGEST = 200
"""Characters of a name that are repeated to people: safetensors and JSON allow names of any length."""
_MOST_SCALE = 1000.0


class Violation(NamedTuple):
    """A violated fact: its reason, and a sentence with the remedy."""

    reason: Reason
    message: str


class Tensor(NamedTuple):
    """One tensor of a safetensors file, as its header says."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LoRAConfig:
    """The part of adapter_config.json that decides how the weights are used."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Names, or one regular expression (PEFT allows a string), which is reported and never evaluated."""
    target_is_pattern: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    """Settings of PEFT that engines do not implement, where they are switched on."""

    def rank_of(self, module: str) -> int:
        """The rank PEFT gives a module (its name without `base_model.model.`)."""
        for pattern, rank in self.rank_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return rank
        return self.rank


@dataclass(frozen=True)
class Candidate:
    """An adapter under examination."""

    config: LoRAConfig
    tensors: Sequence[Tensor]
    base: BaseFacts
    max_rank: int


class InvalidConfigError(ValueError):
    """adapter_config.json cannot be used; `violation` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.violation = Violation(reason, message)


def violations(config: object, tensors: Sequence[Tensor], base: BaseFacts, max_rank: int) -> list[Violation]:
    """Every violated fact of an adapter; an empty list means an engine may have it (once its values are finite).

    `config` is adapter_config.json parsed, `tensors` the header of its weights, `max_rank` the pool's limit.
    """
    try:
        read = read_config(config)
    except InvalidConfigError as error:
        return [error.violation]
    candidate = Candidate(read, tensors, base, max_rank)
    return [Violation(reason, text) for reason, check in CHECKS if (text := check(candidate)) is not None]


def read_config(config: object) -> LoRAConfig:
    """The settings of an adapter; raises InvalidConfigError where they are missing, of another type, or not LoRA."""
    if not isinstance(config, dict):
        raise InvalidConfigError(Reason.INVALID_CONFIG, f"{CONFIG} is not a JSON object: write the adapter again")
    kind = config.get("peft_type")
    if kind is None:
        raise _lacks("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise InvalidConfigError(
            Reason.UNSUPPORTED_ADAPTER, f"peft_type is {kind!s:.40}: only LORA adapters can be served; train one"
        )
    modules = config.get("target_modules")
    names = (modules,) if isinstance(modules, str) else tuple(modules) if isinstance(modules, list) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise _lacks("target_modules", "a list of module names")
    return LoRAConfig(
        rank=_positive(config, "r"),
        alpha=_number(config.get("lora_alpha"), "lora_alpha"),
        target_modules=names,
        target_is_pattern=isinstance(modules, str),
        rank_pattern={key: _positive(value, key) for key, value in _patterns(config, "rank_pattern")},
        alpha_pattern={key: _number(value[key], key) for key, value in _patterns(config, "alpha_pattern")},
        features=_features(config),
    )


def _lacks(name: str, wanted: str) -> InvalidConfigError:
    return InvalidConfigError(
        Reason.INVALID_CONFIG, f"{CONFIG} needs {name} ({wanted}): save the adapter with PEFT's save_pretrained"
    )


def _positive(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _lacks(name, "a rank, a whole number above 0")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _lacks(name, "an alpha, a finite number")
    return float(value)


def _patterns(config: Mapping[str, Any], name: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The keys of a pattern setting, each with the mapping it stands in; a pattern that might explode is refused."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise _lacks(name, "an object of module names")
    for key in found:
        if not _is_harmless(key):
            raise InvalidConfigError(
                Reason.INVALID_CONFIG,
                f"{name} has the key {key:.60}: write the names of modules instead of this pattern",
            )
        yield key, found


def _is_harmless(pattern: str) -> bool:
    """Whether a regular expression is short, without groups (no nested repetition) and valid."""
    if not _SAFE_PATTERN.fullmatch(pattern) or pattern.count("*") + pattern.count("+") > _MOST_REPEATS:
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _features(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is switched on and not implemented by engines."""
    found = {
        name: config[name]
        for name in (
            "use_dora",
            "lora_bias",
            "modules_to_save",
            "alora_invocation_tokens",
            "layer_replication",
            "use_bdlora",
            "use_qalora",
            "target_parameters",
            "trainable_token_indices",
        )
        if config.get(name)
    }
    if config.get("bias", "none") not in ("none", None):
        found["bias"] = config["bias"]
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        found["init_lora_weights"] = init
    return found


# the checks, in the order of the messages


def unsupported_adapter(candidate: Candidate) -> str | None:
    """DoRA, bias, saved modules and the like: engines refuse them or, worse, leave them out."""
    features = candidate.config.features
    if not features:
        return None
    named = ", ".join(f"{name}={value!s:.40}" for name, value in sorted(features.items()))
    return f"{CONFIG} switches on {named}, which engines do not serve: train plain LoRA, or merge it into the base"


def rank_too_high(candidate: Candidate) -> str | None:
    """An engine reserves memory for ranks up to its maximum."""
    highest = max([candidate.config.rank, *candidate.config.rank_pattern.values()])
    if highest <= candidate.max_rank:
        return None
    return (
        f"the adapter's rank is {highest}, the pool allows {candidate.max_rank}: raise serving.lora.maxRank (its pods "
        "restart) or train with a lower rank"
    )


def alpha_zero(candidate: Candidate) -> str | None:
    """With alpha 0 the adapter does nothing, and nobody would notice."""
    config = candidate.config
    zero = [name for name, alpha in config.alpha_pattern.items() if alpha == 0]
    if config.alpha == 0:
        zero.insert(0, "lora_alpha")
    if not zero:
        return None
    return f"{_listed(zero)} is 0, so that the answers would be the base model's: set the alpha of the training"


def scale_too_large(candidate: Candidate) -> str | None:
    """Alpha over rank multiplies the weights: finite weights under a gigantic alpha become infinite in the engine."""
    config = candidate.config
    scale = max(abs(alpha) for alpha in (config.alpha, *config.alpha_pattern.values())) / config.rank
    if scale <= _MOST_SCALE:
        return None
    return f"lora_alpha over rank is {scale:.3g}, more than {_MOST_SCALE:g}, which no training uses: correct lora_alpha"


def unsupported_dtype(candidate: Candidate) -> str | None:
    """Engines cast whatever they get; integers become nonsense."""
    other = [f"{t.name} ({t.dtype})" for t in candidate.tensors if t.dtype not in DTYPES]
    if not other:
        return None
    return f"weights must be float32, float16 or bfloat16, not {_listed(other)}: save the adapter in one of them"


def unexpected_tensor(candidate: Candidate) -> str | None:
    """Each tensor is one half of a pair, for a module in a layer that the base has."""
    if not candidate.tensors:
        return f"{WEIGHTS} holds no weights: save the adapter again"
    wrong = [f"{t.name}: {why}" for t in candidate.tensors if (why := _misfit(t.name, candidate.base)) is not None]
    wrong += [f"{name} has no other half" for name in _single_halves(candidate.tensors)]
    if not wrong:
        return None
    return f"{_listed(wrong)}. Only pairs lora_A and lora_B for linear layers of this base can be served"


def shape_mismatch(candidate: Candidate) -> str | None:
    """A is [rank, inputs] and B [outputs, rank]: by the config's rank and the base's own shapes."""
    wrong = []
    for tensor in candidate.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or _misfit(tensor.name, candidate.base) is not None:
            continue  # told by unexpected_tensor
        rank = candidate.config.rank_of(match["module"])
        shape = candidate.base.shape_of(match["module"])
        if not _fits(tensor.shape, match["half"], rank, shape):
            wrong.append(f"{tensor.name} is {list(tensor.shape)}, needed is {_needed(match['half'], rank, shape)}")
    if not wrong:
        return None
    return f"{_listed(wrong)}: the adapter was trained on another base model, or {CONFIG} names another rank"


def target_without_weights(candidate: Candidate) -> str | None:
    """A module that only the config names was not trained, or its weights are lost."""
    if candidate.config.target_is_pattern:
        return None
    modules = {m["module"] for t in candidate.tensors if (m := _TENSOR.fullmatch(t.name))}
    ends = {".".join(parts[i:]) for parts in (m.split(".") for m in modules) for i in range(len(parts))}
    missing = [name for name in candidate.config.target_modules if name not in ends]
    if not missing or not modules:
        return None
    return (
        f"target_modules names {_listed(missing)}, but {WEIGHTS} has no weights for it: save the adapter again, or "
        "remove the name"
    )


CHECKS: tuple[tuple[Reason, Callable[[Candidate], str | None]], ...] = (
    (Reason.UNSUPPORTED_ADAPTER, unsupported_adapter),
    (Reason.RANK_TOO_HIGH, rank_too_high),
    (Reason.ALPHA_ZERO, alpha_zero),
    (Reason.INVALID_CONFIG, scale_too_large),
    (Reason.UNSUPPORTED_DTYPE, unsupported_dtype),
    (Reason.UNEXPECTED_TENSOR, unexpected_tensor),
    (Reason.SHAPE_MISMATCH, shape_mismatch),
    (Reason.INVALID_CONFIG, target_without_weights),
)


def _misfit(name: str, base: BaseFacts) -> str | None:
    """Why a tensor cannot belong to this base, or None."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        return "not named base_model.model.<module>.lora_A.weight or lora_B.weight"
    tail = tail_of(match["module"])
    if tail is None:
        return "not in one of the base's layers"
    if tail.layer >= base.layers:
        return f"layer {tail.layer} is not there, the base has {base.layers}"
    if not base.has(match["module"]):
        return f"the base has no linear module {tail.text}"
    return None


def _single_halves(tensors: Iterable[Tensor]) -> list[str]:
    """Names of the tensors whose pair is incomplete."""
    halves: dict[str, set[str]] = {}
    for tensor in tensors:
        if match := _TENSOR.fullmatch(tensor.name):
            halves.setdefault(match["module"], set()).add(match["half"])
    return [f"base_model.model.{m}.lora_{min(h)}.weight" for m, h in halves.items() if len(h) == 1]


def _fits(shape: tuple[int, ...], half: str, rank: int, base: Shape | None) -> bool:
    if len(shape) != 2:
        return False
    of_rank, of_base = shape if half == "A" else (shape[1], shape[0])
    if of_rank != rank:
        return False
    return base is None or of_base == (base.inputs if half == "A" else base.outputs)


def _needed(half: str, rank: int, base: Shape | None) -> str:
    if half == "A":
        return f"[{rank}, {base.inputs if base else 'inputs'}]"
    return f"[{base.outputs if base else 'outputs'}, {rank}]"


def _listed(items: Sequence[str]) -> str:
    """The first few of them, and how many more."""
    more = len(items) - _EXAMPLES
    return "; ".join(clipped(i, _LONGEST) for i in items[:_EXAMPLES]) + (f"; and {more} more" if more > 0 else "")
