"""Which users get which revision where users stay: Envoy's hash of a user, modulo 100, is one of 100 places.

Rules:
- a candidate begins at a place that its own name gives and grows upwards from there, past the last place to the first;
  what no candidate takes is stable's. So a weight that grows takes places from stable alone and gives none away, the
  way back is the same way, and neither a change of stable nor of another revision's name moves anybody;
- of several candidates at once the one that is listed first comes first: another one goes around its places. So the
  first never loses a user while it grows, and a later one only where both meet;
- another candidate begins elsewhere, and so does that of another model: it is not always the same users who try first.
Invariant: every revision has as many places as its weight, so that users in their masses are shared as requests are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby, islice

from tuneyard.api import names

PLACES = 100


def places(model: str, stable: str, weights: Mapping[str, int]) -> list[str | None]:
    """Who has each of the places; None: nobody serves it.

    `model` tells models apart; `weights` are effective ones, in the order of spec.revisions, and sum to 100 at most.
    """
    taken: dict[int, str] = {}
    for name, weight in weights.items():
        if name == stable:
            continue
        begin = int(names.short_hash(model, name), 16)
        free = (at for at in ((begin + step) % PLACES for step in range(PLACES)) if at not in taken)
        taken.update(dict.fromkeys(list(islice(free, weight)), name))
    rest = iter([stable] * weights.get(stable, 0))
    return [taken[at] if at in taken else next(rest, None) for at in range(PLACES)]


def runs(owners: Iterable[str | None]) -> list[tuple[str | None, int]]:
    """The same as neighbours of one owner and how many they are: a list of weights whose order must be kept."""
    return [(owner, sum(1 for _ in same)) for owner, same in groupby(owners)]
