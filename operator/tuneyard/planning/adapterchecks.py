"""What an adapter's files must be before an engine may see them: every check is named after the violated fact.

Rules:
- Engines accept a good deal that is wrong and answer 200 (NaN, lora_alpha 0, layers that are not there, names without
  PEFT's prefix, another rank than the config says), and some of it harms every other user of the engine. So nothing
  reaches an engine that was not found right here first.
- The truth about shapes are the base's own tensors; config.json fills in where these are packed by quantisation.
- A check returns what is wrong, in words and with the remedy, or None. All checks run, so that the user reads
  everything at once; only a config that cannot be read stops the chain.
- Names are input of strangers: a name that no module of this base has is looked at once, and its length is bounded.

Values are not looked at here (tuneyard.systems.artifacts.safetensors does, by bit patterns).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterconfig import CONFIG, InvalidConfigError, LoRAConfig, Violation, read_config
from tuneyard.planning.basefacts import BaseFacts, Shape, tail_of
from tuneyard.planning.remedies import clipped

DTYPES = ("F32", "F16", "BF16")
WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<half>[AB])\.weight")
_LONGEST_NAME = 512
"""Characters; the longest that is known has less than 200."""
_EXAMPLES = 3
_LONGEST, _SHOWN = 200, 90
"""Characters of a fact, and of a name in it, that are repeated to people: safetensors and JSON allow any length."""
_MOST_SCALE = 1000.0


class Tensor(NamedTuple):
    """One tensor of a safetensors file, as its header says."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Half(NamedTuple):
    """A tensor that is one half of a pair for a module of the base."""

    tensor: Tensor
    module: str
    """The module's name, without `base_model.model.`."""
    half: str
    """A or B."""


@dataclass(frozen=True)
class Candidate:
    """An adapter under examination."""

    config: LoRAConfig
    tensors: Sequence[Tensor]
    base: BaseFacts
    max_rank: int
    halves: Sequence[Half]
    misfits: Sequence[str]
    """Why the other tensors belong to nothing in this base, each with its name."""
    added: Mapping[str, int]
    """The tokens that the adapter's own tokenizer adds, with their numbers."""


def violations(
    config: object, tensors: Sequence[Tensor], base: BaseFacts, max_rank: int, added: Mapping[str, int] | None = None
) -> list[Violation]:
    """Every violated fact of an adapter; an empty list means an engine may have it (once its values are finite).

    `config` is adapter_config.json parsed, `tensors` the header of its weights, `max_rank` the pool's limit,
    `added` what the adapter's own tokenizer adds (vocabulary.py).
    """
    try:
        read = read_config(config)
    except InvalidConfigError as error:
        return [error.violation]
    found = [_placed(tensor, base) for tensor in tensors]
    halves = [half for half in found if isinstance(half, Half)]
    misfits = [why for why in found if isinstance(why, str)]
    candidate = Candidate(read, tensors, base, max_rank, halves, misfits, added or {})
    return [Violation(reason, text) for reason, check in CHECKS if (text := check(candidate)) is not None]


def multiplied(config: LoRAConfig, tensors: Iterable[Tensor]) -> dict[str, float]:
    """By how much an engine multiplies tensors when it loads them, by name; the others it takes as they are."""
    found = ((tensor.name, _TENSOR.fullmatch(tensor.name)) for tensor in tensors)
    return {name: abs(config.scale_of(match["module"])) for name, match in found if match and match["half"] == "B"}


# the checks, in the order of the messages


def unsupported_adapter(candidate: Candidate) -> str | None:
    """DoRA, bias, saved modules and the like: engines refuse them or, worse, leave them out."""
    features = candidate.config.features
    if not features:
        return None
    named = ", ".join(f"{name}={value!s:.40}" for name, value in sorted(features.items()))
    return f"{CONFIG} switches on {named}, which engines do not serve: train plain LoRA, or merge it into the base"


def added_tokens(candidate: Candidate) -> str | None:
    """A token without a row in the base's embedding: engines read prompts with the base's tokenizer."""
    rows = candidate.base.vocabulary
    beyond = [
        f"{content} ({clipped(str(number), 20)})" for content, number in candidate.added.items() if 0 < rows <= number
    ]
    if not beyond:
        return None
    return (
        f"the adapter's tokenizer adds {_listed(beyond)}, and the base has {rows} tokens: engines read prompts with "
        "the base's tokenizer; train without new tokens, or merge adapter and tokenizer into a base model"
    )


def rank_too_high(candidate: Candidate) -> str | None:
    """An engine reserves memory for ranks up to its maximum."""
    highest = candidate.config.highest_rank
    if highest <= candidate.max_rank:
        return None
    return (
        f"the adapter's rank is {highest}, the pool allows {candidate.max_rank}: raise serving.lora.maxRank (its pods "
        "restart) or train with a lower rank"
    )


def alpha_zero(candidate: Candidate) -> str | None:
    """With alpha 0 the adapter does nothing, and nobody would notice."""
    config = candidate.config
    zero = [name for name, alpha in config.alphas.given.items() if alpha == 0]
    if config.alpha == 0:
        zero.insert(0, "lora_alpha")
    if not zero:
        return None
    return f"{_listed(zero)} is 0, so that the answers would be the base model's: set the alpha of the training"


def scale_too_large(candidate: Candidate) -> str | None:
    """Alpha over rank multiplies the weights: finite weights under a gigantic alpha become infinite in the engine."""
    modules = {half.module for half in candidate.halves}
    scale = max((abs(candidate.config.scale_of(module)) for module in modules), default=0.0)
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
    wrong = [*candidate.misfits, *_single_halves(candidate.halves), *_doubled(candidate)]
    if not wrong:
        return None
    return (
        f"{_listed(wrong)}. Only pairs lora_A and lora_B for linear layers of this base can be served, under its own "
        "modules' names: train with the base's class, and save with PEFT's save_pretrained"
    )


def shape_mismatch(candidate: Candidate) -> str | None:
    """A is [rank, inputs] and B [outputs, rank]: by the config's rank and the base's own shapes."""
    wrong = []
    for tensor, module, half in candidate.halves:
        rank = candidate.config.rank_of(module)
        shape = candidate.base.shape_of(module)
        if not _fits(tensor.shape, half, rank, shape):
            wrong.append(f"{tensor.name} is {list(tensor.shape)}, needed is {_needed(half, rank, shape)}")
    if not wrong:
        return None
    return f"{_listed(wrong)}: the adapter was trained on another base model, or {CONFIG} names another rank"


def target_without_weights(candidate: Candidate) -> str | None:
    """A module that only the config names was not trained, or its weights are lost.

    Where some tensors belong to nothing, they may be its weights: that is told by unexpected_tensor.
    """
    targets = candidate.config.target_modules
    if candidate.config.target_is_pattern or candidate.misfits or not candidate.halves:
        return None
    modules = [parts.split(".") for parts in {half.module for half in candidate.halves}]
    longest = max(len(parts) for parts in modules)
    depths = {depth for name in targets if (depth := name.count(".") + 1) <= longest}
    ends = {".".join(parts[-depth:]) for parts in modules for depth in depths if depth <= len(parts)}
    missing = [name for name in targets if name not in ends]
    if not missing:
        return None
    return (
        f"target_modules names {_listed(missing)}, but {WEIGHTS} has no weights for it: save the adapter again, or "
        "remove the name"
    )


CHECKS: tuple[tuple[Reason, Callable[[Candidate], str | None]], ...] = (
    (Reason.UNSUPPORTED_ADAPTER, unsupported_adapter),
    (Reason.UNSUPPORTED_ADAPTER, added_tokens),
    (Reason.RANK_TOO_HIGH, rank_too_high),
    (Reason.ALPHA_ZERO, alpha_zero),
    (Reason.INVALID_CONFIG, scale_too_large),
    (Reason.UNSUPPORTED_DTYPE, unsupported_dtype),
    (Reason.UNEXPECTED_TENSOR, unexpected_tensor),
    (Reason.SHAPE_MISMATCH, shape_mismatch),
    (Reason.INVALID_CONFIG, target_without_weights),
)


def _placed(tensor: Tensor, base: BaseFacts) -> Half | str:
    """Where a tensor belongs, or why it cannot belong to this base."""
    name = tensor.name
    if len(name) > _LONGEST_NAME:
        return f"{clipped(name, _SHOWN)}: a name of {len(name)} characters"
    match = _TENSOR.fullmatch(name)
    if match is None:
        return f"{clipped(name, _SHOWN)}: not named base_model.model.<module>.lora_A.weight or lora_B.weight"
    why = _misfit(match["module"], base)
    return Half(tensor, match["module"], match["half"]) if why is None else f"{clipped(name, _SHOWN)}: {why}"


def _misfit(module: str, base: BaseFacts) -> str | None:
    if not base.known:
        return None
    tail = tail_of(module)
    if tail is None:
        return "not in one of the base's layers"
    if tail.layer >= base.layers:
        return f"layer {tail.layer} is not there, the base has {base.layers}"
    if base.has(module):
        return None
    if (name := base.names.get(tail)) is not None:
        return f"the base calls it {name}, an engine would leave it out"
    return f"the base has no linear module {tail.text}"


def _single_halves(found: Iterable[Half]) -> list[str]:
    """Those whose pair is incomplete."""
    halves: dict[str, set[str]] = {}
    for _, module, half in found:
        halves.setdefault(module, set()).add(half)
    return [f"base_model.model.{m}.lora_{min(h)}.weight has no other half" for m, h in halves.items() if len(h) == 1]


def _doubled(candidate: Candidate) -> list[str]:
    """Those that an engine would put in the place of another."""
    places = Counter((candidate.base.name_of(half.module), half.half) for half in candidate.halves)
    return [f"lora_{half} of {module} is there twice" for (module, half), count in places.items() if count > 1]


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
