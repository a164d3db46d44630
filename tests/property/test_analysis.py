"""No bet is better than fair against a candidate that is no worse, whatever blocks come; and whole rollouts keep it."""

from __future__ import annotations

import math
import os
from math import comb

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.analysis import RULES, upper_bound
from tests.canaries import Step, course, drawn, worse
from tuneyard.planning.analysis import Outcome
from tuneyard.planning.evidence import Objective, Pair, Position, Reading, Series, Tally, growth
from tuneyard.planning.sequential import BETS, Comparison, Runs, beginnings, beginnings_above, continuations

EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "40"))
FAIR = 1 + 1e-9
answers = st.integers(0, 40)
chances = st.floats(0.001, 0.999)


@settings(max_examples=EXAMPLES, deadline=None)
@given(answers, answers, st.data())
def test_a_block_is_fair_however_many_are_bad(mine: int, other: int, data: st.DataObject) -> None:
    """Given how many are bad, which ones are the candidate's is a draw without replacement."""
    bad = data.draw(st.integers(0, mine + other))
    spread = data.draw(st.floats(1, 9))
    for which in range(len(BETS)):
        mean = 0.0
        for hers in range(max(0, bad - other), min(bad, mine) + 1):
            chance = comb(mine, hers) * comb(other, bad - hers) / comb(mine + other, bad)
            factors = beginnings(Pair(Tally(mine, hers), Tally(other, bad - hers)), spread)
            mean += chance * math.exp(factors[which] if factors else 0)
        assert mean <= FAIR


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 30), chances, chances)
def test_runs_are_fair_up_to_their_limit(after: int, limit: float, share: float) -> None:
    chance = limit * share
    for which in range(len(BETS)):
        mean = sum(
            comb(after, n) * chance**n * (1 - chance) ** (after - n) * math.exp(
                continuations(Tally(after, n, after, n), limit)[which]
            )
            for n in range(after + 1)
        )  # fmt: skip
        assert mean <= FAIR


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(1, 30), chances, chances)
def test_a_fixed_rate_is_fair(judged: int, rate: float, share: float) -> None:
    chance = rate * share
    for which in range(len(BETS)):
        mean = sum(
            comb(judged, n) * chance**n * (1 - chance) ** (judged - n)
            * math.exp(beginnings_above(rate, Tally(judged, n))[which])
            for n in range(judged + 1)
        )  # fmt: skip
        assert mean <= FAIR


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(answers, answers, st.floats(0, 1)), max_size=12), st.integers(0, 30))
def test_a_limit_never_leaves_the_chances(lumps: list[tuple[int, int, float]], seconds: int) -> None:
    runs, comparison = Runs(), Comparison()
    for mine, other, share in lumps:
        bad = round(other * share)
        stable = Tally(other, bad, bad, round(bad * share))
        runs = runs.seen(stable)
        comparison = comparison.look({0: Pair(Tally(mine, mine, mine, mine), stable)}, seconds)
        assert 0 < runs.limit() <= 1 and runs.again <= runs.after_bad + 1e-9
        assert math.isfinite(comparison.whole.log) and comparison.spread.factor >= 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(answers, min_size=1, max_size=6), min_size=1),
    st.lists(st.sets(st.sampled_from("abc")), min_size=6, max_size=6),
)
def test_nothing_is_counted_twice_and_nothing_that_was_read_is_lost(
    grows: dict[str, list[int]], silent: list[set[str]]
) -> None:
    series = Series("v2", Objective.ERROR_RATE)
    position, counted = Position(looked=0.0), 0
    told: dict[str, int] = {}
    for look in range(6):
        readings = []
        for process, steps in grows.items():
            total = sum(steps[: look + 1])
            if process not in silent[look]:
                told[process] = total
                readings.append(Reading(process, 1.0, {series: Tally(total)}))
        position, counts = growth(position, readings, 0.5)
        counted += sum(t.judged for t in counts.values())
        assert counted == sum(told.values())


def test_whole_rollouts_of_candidates_that_are_no_worse() -> None:
    rng = np.random.default_rng(7)
    steps = (Step(0.05, 4000, 25), Step(0.25, 3000, 20), Step(1.0, 1000, 5))
    rollouts = 60
    over = [course(drawn(rng, [t.objective for t in RULES.targets]), RULES, rng, steps) for _ in range(rollouts)]
    assert sum(c.judgement.outcome is Outcome.REJECT for c in over) <= 1


def test_bad_candidates_are_rejected_within_the_promised_answers() -> None:
    rng = np.random.default_rng(7)
    for rate, most, step in ((1.0, 5, Step(0.01, 6000, 30)), (0.2, 25, Step(0.01, 12_000, 60))):
        over = sorted(course(worse(rate), RULES, rng, [step]).requests for _ in range(41))
        assert over[20] <= most


def test_the_upper_bound_of_a_rate() -> None:
    assert math.isclose(upper_bound(0, 299), 1 - 0.05 ** (1 / 299), rel_tol=1e-6)
    assert 0.0099 < upper_bound(83, 10_000) < 0.0101
