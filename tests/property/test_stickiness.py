"""Users who stay: no user leaves a candidate that grows, whatever else happens, and shares are exact.

Where a user goes is Envoy's own rule: the entry of the route's list in which (hash modulo the sum of weights) falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tuneyard.planning.stickiness import PLACES, places, runs

NAMES = [*(f"v{number}" for number in range(1, 9)), "stable", "a", "zz", "hotfix-2026-05"]
MODEL = "team/support"


def chosen(entries: list[tuple[str | None, int]], user: int) -> str | None:
    """As Envoy chooses in its list."""
    at = user % sum(weight for _, weight in entries)
    for name, weight in entries:
        if at < weight:
            return name
        at -= weight
    raise AssertionError("weights end before their sum")


def users_of(stable: str, weights: Mapping[str, int], revision: str) -> set[int]:
    entries = runs(places(MODEL, stable, weights))
    return {user for user in range(PLACES) if chosen(entries, user) == revision}


def filled(stable: str, candidates: Mapping[str, int]) -> dict[str, int]:
    """With all the rest on stable, which is listed first, as the older one is."""
    return {stable: 100 - sum(candidates.values()), **candidates}


@st.composite
def shares(draw: st.DrawFn, count: int, most: int = 100) -> list[int]:
    """Weights of so many candidates, all that may be for them."""
    cuts = sorted(draw(st.lists(st.integers(0, most), min_size=count, max_size=count)))
    return [b - a for a, b in zip([0, *cuts], cuts, strict=False)]


revisions = st.lists(st.sampled_from(NAMES), min_size=2, max_size=6, unique=True)


@given(revisions, st.data())
def test_everyone_gets_the_places_of_his_weight(names, data):
    stable, *candidates = names
    weights = filled(stable, dict(zip(candidates, data.draw(shares(len(candidates))), strict=True)))
    unserved = data.draw(st.booleans())
    if unserved:
        weights[stable] = 0
    entries = runs(places(MODEL, stable, weights))
    assert sum(weight for _, weight in entries) == PLACES
    assert all(one[0] != other[0] for one, other in pairwise(entries))
    told = Counter(chosen(entries, user) for user in range(PLACES))
    assert {name: told[name] for name in names} == weights
    assert told[None] == (100 - sum(weights.values()) if unserved else 0)


@given(revisions, st.data())
def test_nobody_leaves_the_first_candidate_while_it_grows_whatever_the_others_do(names, data):
    stable, candidate, *others = names
    kept: set[int] = set()
    for weight in sorted(data.draw(st.lists(st.integers(0, 100), min_size=2, max_size=8))):
        here = data.draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        candidates = {candidate: weight, **dict(zip(here, data.draw(shares(len(here), 100 - weight)), strict=True))}
        now = data.draw(st.sampled_from([stable, "renamed", "0"]))
        users = users_of(now, filled(now, candidates), candidate)
        assert kept <= users
        kept = users


@given(revisions, st.data())
def test_nor_a_later_one_while_those_before_it_stay_as_they_are(names, data):
    stable, *candidates = names
    at = data.draw(st.integers(0, len(candidates) - 1))
    before = dict(zip(candidates[:at], data.draw(shares(at, 60)), strict=True))
    kept: set[int] = set()
    for weight in sorted(data.draw(st.lists(st.integers(0, 100 - sum(before.values())), min_size=2, max_size=8))):
        users = users_of(stable, filled(stable, {**before, candidates[at]: weight}), candidates[at])
        assert kept <= users
        kept = users


@given(revisions, st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_the_way_back_is_the_way_and_at_the_end_all_are_on_stable_again(names, weights):
    stable, candidate, *_ = names
    there = [users_of(stable, filled(stable, {candidate: weight}), candidate) for weight in weights]
    back = [users_of(stable, filled(stable, {candidate: weight}), candidate) for weight in reversed(weights)]
    assert there == back[::-1]
    assert users_of(stable, filled(stable, {candidate: 0}), stable) == set(range(PLACES))


def test_other_candidates_and_models_begin_with_other_users():
    first = {(model, name): places(model, "-", {"-": 99, name: 1}).index(name) for model in NAMES for name in NAMES}
    assert len(set(first.values())) > PLACES / 2
    assert max(Counter(first.values()).values()) < 10


def test_one_candidate_makes_three_entries_at_most():
    for name in NAMES:
        for weight in range(101):
            assert len(runs(places(MODEL, "s", {"s": 100 - weight, name: weight}))) <= 3
