"""adapter_config.json: the settings that decide how an adapter's weights are used.

Rules:
- it is input of strangers: every value is looked at, and what cannot be used is an InvalidConfigError that says what is
  needed;
- its regular expressions are evaluated for every module, and Python's cannot be interrupted: only such are taken as
  cannot explode (no groups, one repeat), and not very many;
- for one module the first key of a pattern setting counts that matches the end of its name, as in PEFT and engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from tuneyard.api.reasons import Reason

CONFIG = "adapter_config.json"

_SAFE_PATTERN = re.compile(r"[\w.\\*+|^$\[\]-]{1,256}")
_PLAIN_NAME = re.compile(r"[\w.]+")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PACKED = re.compile(r"(-unsloth)?-bnb-4bit$")
_MOST_RANK = 1 << 16
_MOST_ALPHA = 1e9
_MOST_REPEATS = 1
"""Two are quadratic in the module's name."""
_MOST_PATTERNS = 256
_MOST_NAMES = 4096
"""Some trainings give every module of a large base a rank of its own."""

Number = TypeVar("Number", int, float)


class Violation(NamedTuple):
    """A violated fact: its reason, and a sentence with the remedy."""

    reason: Reason
    message: str


class InvalidConfigError(ValueError):
    """adapter_config.json cannot be used; `violation` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.violation = Violation(reason, message)


class _Key(Generic[Number]):
    """One key of a pattern setting."""

    def __init__(self, pattern: str, value: Number) -> None:
        self.value: Number = value
        self._length = len(pattern) if _PLAIN_NAME.fullmatch(pattern) else None
        self._ending = pattern.rpartition(".")[2]
        self._pattern = re.compile(pattern if self._length else rf"(?:.*\.)?(?:{pattern})")

    def matches(self, module: str) -> bool:
        if self._length is None:
            return self._pattern.fullmatch(module) is not None
        # the usual case, a name or the end of one, where most are told apart without a regular expression
        begin = len(module) - self._length
        at_a_part = begin == 0 or (begin > 0 and module[begin - 1] == ".")
        return at_a_part and module.endswith(self._ending) and self._pattern.fullmatch(module, begin) is not None


class ByModule(Generic[Number]):
    """What a pattern setting gives to the modules that its keys match."""

    def __init__(self, given: Mapping[str, Number] | None = None) -> None:
        self.given: Mapping[str, Number] = dict(given or {})
        self._keys: list[_Key[Number]] = [_Key(pattern, value) for pattern, value in self.given.items()]

    def of(self, module: str, default: Number) -> Number:
        """What a module gets, by its name without `base_model.model.`."""
        return next((key.value for key in self._keys if key.matches(module)), default)


@dataclass(frozen=True)
class LoRAConfig:
    """The part of adapter_config.json that decides how the weights are used."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    """Names, or one regular expression (PEFT allows a string), which is reported and never evaluated."""
    target_is_pattern: bool = False
    ranks: ByModule[int] = field(default_factory=ByModule)
    alphas: ByModule[float] = field(default_factory=ByModule)
    base: str = ""
    """The base that it was trained on, as the training called it: a repository's name, or a folder's, or nothing."""
    rank_stabilised: bool = False
    """Whether alpha is divided by the root of the rank."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Settings of PEFT that engines do not implement, where they are switched on."""

    @property
    def highest_rank(self) -> int:
        """The highest that any module may have."""
        return max([self.rank, *self.ranks.given.values()])

    def rank_of(self, module: str) -> int:
        """The rank PEFT gives a module (its name without `base_model.model.`)."""
        return self.ranks.of(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's lora_B is multiplied by."""
        rank = self.rank_of(module)
        return self.alphas.of(module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


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
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        target_modules=names,
        target_is_pattern=isinstance(modules, str),
        ranks=_by_module(config, "rank_pattern", _rank),
        alphas=_by_module(config, "alpha_pattern", _alpha),
        base=named if isinstance(named := config.get("base_model_name_or_path"), str) else "",
        rank_stabilised=bool(config.get("use_rslora")),
        features=_features(config),
    )


def names_another_base(config: LoRAConfig, repo: str) -> bool:
    """Whether an adapter says that it was trained on another repository than `repo`.

    Shapes do not tell a base from its own fine-tunes. Copies go by the same name under other owners, some of them
    packed; what is the name of a folder says nothing.
    """
    if not _REPOSITORY.fullmatch(config.base):
        return False
    named, served = (_PACKED.sub("", name.rpartition("/")[2].lower()) for name in (config.base, repo))
    return named != served


def _lacks(name: str, wanted: str) -> InvalidConfigError:
    return InvalidConfigError(
        Reason.INVALID_CONFIG, f"{CONFIG} needs {name} ({wanted}): save the adapter with PEFT's save_pretrained"
    )


def _rank(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_RANK:
        raise _lacks(name, f"a rank, a whole number from 1 to {_MOST_RANK}")
    return value


def _alpha(value: object, name: str) -> float:
    # compared, not converted: JSON has whole numbers beyond every float
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST_ALPHA:
        raise _lacks(name, f"an alpha, a number up to {_MOST_ALPHA:g}")
    return float(value)


def _by_module(config: Mapping[str, Any], name: str, read: Callable[[object, str], Number]) -> ByModule[Number]:
    return ByModule({key: read(value, key) for key, value in _patterns(config, name)})


def _patterns(config: Mapping[str, Any], name: str) -> Iterator[tuple[str, object]]:
    """A pattern setting's keys and values; what might take long is refused."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise _lacks(name, "an object of module names")
    patterns = sum(1 for key in found if not _PLAIN_NAME.fullmatch(key))
    if patterns > _MOST_PATTERNS or len(found) > _MOST_NAMES:
        raise InvalidConfigError(
            Reason.INVALID_CONFIG,
            f"{name} has {len(found)} keys, {patterns} of them patterns; the most are {_MOST_NAMES}, {_MOST_PATTERNS}: "
            "write one key for all modules of a kind",
        )
    for key, value in found.items():
        if not _is_harmless(key):
            raise InvalidConfigError(
                Reason.INVALID_CONFIG,
                f"{name} has the key {key:.60}: write the names of modules instead of this pattern",
            )
        yield key, value


def _is_harmless(pattern: str) -> bool:
    """Whether a regular expression is short, valid, and without groups (no nested repetition) and second repeats."""
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
