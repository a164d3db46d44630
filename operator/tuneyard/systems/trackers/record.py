"""What a tracker knows of a training, as a Lineage that the API takes. Pure.

Rules:
- what comes from a tracker is input: texts are cut, numbers that are none are left out, lists are bounded, and every
  such loss is a note, for a record that silently lacks something is worse than none;
- of more hyperparameters than fit, those that people ask about first are kept;
- of metrics only those are evaluations that were measured on other data than the training's: their names say so;
- what looks like a credential never gets in, whichever field it stands in; the note names the field and shows nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from pydantic.alias_generators import to_camel

from tuneyard.api.lineage import MAX_EVALS, MAX_HYPERPARAMETERS, VALUE_LENGTH, Evaluation, Lineage
from tuneyard.planning.remedies import clipped
from tuneyard.planning.timestamps import parsed_time, rfc3339
from tuneyard.systems.trackers.credentials import holds_credential, is_credential, is_placeholder

EVALUATIONS = ("eval*", "test*", "val*", "*/eval*", "*/test*", "*/val*")
"""Names of metrics that count as evaluations, unless the user names others."""
_FIRST = (
    *("r", "rank", "lora_*", "peft_config.*", "target_modules", "use_rslora", "learning_rate", "lr", "epochs"),
    *("num_train_epochs", "max_steps", "*batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "warmup*"),
    *("weight_decay", "optim*", "seed", "max_seq*", "max_length", "bf16", "fp16", "adam*", "max_grad_norm"),
)
_NAME_LENGTH = 128
_SHORT = 256


@dataclass(frozen=True)
class Selection:
    """Which metrics are evaluations and which parameters are wanted, as patterns of their names."""

    evaluations: Sequence[str] = EVALUATIONS
    parameters: Sequence[str] = ("*",)


@dataclass(frozen=True)
class Measured:
    """An evaluation in the tracker's own words, of any length; an Evaluation is made of it once they fit."""

    name: str
    score: float
    dataset: str | None = None


@dataclass
class Record:
    """What was found. `source` is a word as in cli/sourcetext.py where the tracker knows it."""

    lineage: Lineage = field(default_factory=Lineage)
    source: str | None = None
    notes: list[str] = field(default_factory=list)
    """What was left out and why, a sentence each."""

    def fill(self, **fields: Any) -> None:
        """Set fields of the lineage; None and empty ones leave what is there."""
        given = {name: value for name, value in fields.items() if value not in (None, "", {}, [])}
        secret = [name for name, value in given.items() if isinstance(value, str) and holds_credential(value)]
        self._leave_out(to_camel(name) for name in secret)
        given = {name: value for name, value in given.items() if name not in secret}
        self.lineage = self.lineage.model_copy(update={k: _fitting(k, v) for k, v in given.items()})

    def add_parameters(self, found: Mapping[str, Any], selection: Selection) -> None:
        """Set hyperparameters, beside those that are there and without replacing them."""
        wanted = {k: v for k, v in found.items() if _matches(k, selection.parameters) and not is_placeholder(k, v)}
        secret = {k for k, v in wanted.items() if is_credential(k, v)}
        self._leave_out(sorted(secret))
        texts = {k: text for k, v in wanted.items() if k not in secret and (text := value_text(v))}
        whole = {**texts, **(self.lineage.hyperparameters or {})}
        kept = sorted(whole, key=lambda k: (_importance(k), k))[:MAX_HYPERPARAMETERS]
        if len(whole) > len(kept):
            left = len(whole) - len(kept)
            self.notes.append(f"{left} of {len(whole)} hyperparameters are left out: choose with --param")
        self.fill(hyperparameters={_utf8(k[:_NAME_LENGTH]): clipped(whole[k], VALUE_LENGTH) for k in sorted(kept)})

    def add_metrics(self, found: Mapping[str, Any], selection: Selection) -> None:
        """Set evaluations from metrics by name."""
        wanted = {k: v for k, v in found.items() if _matches(k, selection.evaluations)}
        self.add_evaluations(Measured(k, n) for k, v in wanted.items() if (n := number(v)) is not None)
        if found and not wanted:
            some = ", ".join(sorted(found)[:5])
            self.notes.append(f"none of {len(found)} metrics looks like an evaluation ({some}): choose with --eval")

    def add_evaluations(self, found: Iterable[Measured]) -> None:
        """Add evaluations; a name that is there already gets a number."""
        evals = {e.name: e for e in self.lineage.evals or []}
        secret: list[str] = []
        for measured in found:
            if holds_credential(measured.name):
                secret.append("an evaluation")
                continue
            name = unused(_utf8(measured.name)[:_NAME_LENGTH].strip() or "unnamed", evals)
            dataset = clipped(_utf8(measured.dataset), _SHORT) if measured.dataset else None
            if holds_credential(measured.dataset or ""):
                secret.append(f"the dataset of {name}")
                dataset = None
            evals[name] = Evaluation(name=name, score=measured.score, dataset=dataset)
        self._leave_out(secret)
        if len(evals) > MAX_EVALS:
            self.notes.append(f"{len(evals) - MAX_EVALS} of {len(evals)} evaluations are left out: choose with --eval")
        self.fill(evals=list(evals.values())[:MAX_EVALS])

    def _leave_out(self, names: Iterable[str]) -> None:
        left = list(names)
        if left:
            which = clipped(", ".join(name[:_NAME_LENGTH] for name in left), 1024)
            self.notes.append(
                f"what looks like a credential is left out: {which} (it stands in the record, for all who may read "
                "that: replace it if it is real)"
            )


def unused(name: str, taken: Iterable[str]) -> str:
    """The name, or the first of `name_2`, `name_3` … that is not taken."""
    known, number_ = set(taken), 1
    while (candidate := name if number_ == 1 else f"{name[: _NAME_LENGTH - 4]}_{number_}") in known:
        number_ += 1
    return candidate


def _fitting(name: str, value: Any) -> Any:
    limits = {"commit": 64, "version": 63, "run": 1024}
    return clipped(_utf8(value), limits.get(name, _SHORT)) if isinstance(value, str) else value


def _utf8(text: str) -> str:
    """The text without halves of surrogate pairs: JSON can say them, a manifest cannot."""
    return text.encode(errors="replace").decode()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def _importance(name: str) -> int:
    return next((i for i, pattern in enumerate(_FIRST) if fnmatchcase(name.lower(), pattern)), len(_FIRST))


def value_text(value: Any) -> str:
    """A hyperparameter as text; empty for what is not set."""
    if value is None or value in ([], {}, ""):
        return ""
    if isinstance(value, str):
        return " ".join(_utf8(value).split())
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(value_text(v) for v in value)
    return _utf8(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))


def number(value: Any) -> float | None:
    """A finite number, also from its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def flattened(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their joined keys; keys that begin with _ are the tracker's own."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if str(key).startswith("_"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= flattened(value, separator, f"{name}{separator}")
        else:
            leaves[name] = value
    return leaves


def moment(value: Any, unit: float = 1.0) -> str | None:
    """RFC 3339 of a text, or of a number of units (seconds by default) since 1970; None for neither."""
    if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?", value):
        found = parsed_time(value)
        return rfc3339(found) if found else None
    seconds = number(value)
    if not seconds:
        return None
    try:
        return rfc3339(datetime.fromtimestamp(seconds * unit, UTC))
    except (ValueError, OverflowError, OSError):
        return None
