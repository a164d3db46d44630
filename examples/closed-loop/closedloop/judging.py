"""When is an adapter better? A rule with numbers. Pure.

An answer's score is how much of the wanted answer it has, word by word and in order: 1 is word for word, 0 is nothing.
The candidate is better when all of these hold:

| rule | why |
|---|---|
| at least MIN_HELD_OUT questions were kept out | fewer say nothing |
| on them it is MIN_GAIN better than the current adapter, and than the base | what nobody notices is not worth it |
| a sign test over the questions on which they differ gives p <= MAX_P | not by chance |
| over the regression set it is at most MAX_LOSS worse than the current adapter | what was good stays |
| at most MAX_BROKEN of the answers that were right (>= RIGHT) are not any more | a mean hides a broken answer |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from math import comb

from closedloop.files import Json

MIN_HELD_OUT = 5
MIN_GAIN = 0.05
MAX_P = 0.05
MAX_LOSS = 0.02
RIGHT = 0.9
MAX_BROKEN = 0.05
_DIFFERENT = 0.02


def score(wanted: str, given: str) -> float:
    """0 to 1."""
    left, right = (re.findall(r"\w+|[^\w\s]", text.casefold()) for text in (wanted, given))
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def chance(wins: int, losses: int) -> float:
    """How likely at least so many wins are, were winning and losing equally likely (one-sided sign test)."""
    total = wins + losses
    return float(sum(comb(total, k) for k in range(wins, total + 1)) / 2**total)


def mean(scores: Sequence[float]) -> float:
    """0 for none."""
    return sum(scores) / len(scores) if scores else 0.0


def verdict(heldout: dict[str, list[float]], regression: dict[str, list[float]]) -> Json:
    """Whether the candidate is better, with each rule's numbers.

    Both by name of the model, `base`, `current` and `candidate`: the scores of the same questions in the same order.
    """
    current, candidate = heldout["current"], heldout["candidate"]
    pairs = list(zip(candidate, current, strict=True))
    wins = sum(new > old + _DIFFERENT for new, old in pairs)
    losses = sum(new < old - _DIFFERENT for new, old in pairs)
    gain = mean(candidate) - mean(current)
    over_base = mean(candidate) - mean(heldout["base"])
    loss = mean(regression["current"]) - mean(regression["candidate"])
    was_right = [new for new, old in zip(regression["candidate"], regression["current"], strict=True) if old >= RIGHT]
    broken = sum(new < RIGHT for new in was_right)
    allowed = int(MAX_BROKEN * len(was_right))
    p = chance(wins, losses)
    rules = [
        (len(current) >= MIN_HELD_OUT, f"{len(current)} questions held out, at least {MIN_HELD_OUT} wanted"),
        (gain >= MIN_GAIN, f"{gain:+.3f} on them against the current adapter, at least {MIN_GAIN:+} wanted"),
        (over_base >= MIN_GAIN, f"{over_base:+.3f} on them against the base, at least {MIN_GAIN:+} wanted"),
        (p <= MAX_P, f"{wins} of them better and {losses} worse, p = {p:.3f}, at most {MAX_P} wanted"),
        (loss <= MAX_LOSS, f"{round(-loss, 3) + 0.0:+.3f} on the regression set, at most {MAX_LOSS} less wanted"),
        (broken <= allowed, f"{broken} of {len(was_right)} answers that were right are not, at most {allowed} wanted"),
    ]
    return {
        "better": all(holds for holds, _ in rules),
        "rules": [{"holds": holds, "what": words} for holds, words in rules],
        "heldout": {name: round(mean(scores), 4) for name, scores in heldout.items()},
        "regression": {name: round(mean(scores), 4) for name, scores in regression.items()},
    }
