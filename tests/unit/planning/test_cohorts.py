"""Errors end at once, good answers after 5 to 30 s: nobody is rejected for that alone, and who is bad still is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.canaries import CANDIDATE, STABLE, slow_answers
from tuneyard.planning.analysis import (
    UNSTEADY,
    Analysis,
    Outcome,
    Rules,
    Sight,
    Target,
    begun,
    judged,
    observed,
    steady,
    stepped,
)
from tuneyard.planning.evidence import NOTHING, Objective, Tally

pytestmark = pytest.mark.lasting

RULES = Rules((Target(Objective.ERROR_RATE, 0.01),))
EQUAL = (0.02, 0.02)
"""Shares of errors, of the candidate and of stable."""


def rejected_after(
    seed: int,
    weights: Sequence[float],
    errors: tuple[float, float] = EQUAL,
    *,
    rate: float = 100,
    cohort: bool = True,
    seconds: int = 60,
) -> int | None:
    """In which second a rollout is rejected, with a look at each; None: it is not.

    `cohort`: only what began since the last change of weights is counted.
    """
    rng = np.random.default_rng(seed)
    analysis, now = Analysis(CANDIDATE, STABLE), 0
    for counts in slow_answers(rng, {STABLE: (rate, errors[1])}, 60, {STABLE: rate}):
        analysis, now = observed(analysis, RULES, Sight(now, counts)), now + 1
    analysis, weight = begun(analysis, now), 0.0
    start = now
    for last, weight in zip([0.0, *weights], weights, strict=False):
        if last or weight == 1:
            analysis = stepped(analysis, now, alone=weight == 1)
        asked = {CANDIDATE: (rate * weight, errors[0]), STABLE: (rate * (1 - weight), errors[1])}
        before = {} if cohort else {CANDIDATE: rate * last, STABLE: rate * (1 - last)}
        for age, counts in enumerate(slow_answers(rng, asked, seconds, before)):
            sight = Sight(now, counts, age=age)
            analysis, now = observed(analysis, RULES, sight), now + 1
            if judged(analysis, RULES, sight).outcome is Outcome.REJECT:
                return now - start
    return None


@pytest.mark.parametrize(
    ("weights", "rate"),
    [
        pytest.param([0.25], 100, id="a quarter"),
        pytest.param([0.5], 300, id="half, and many requests"),
        pytest.param([0.25, 0.75], 100, id="most"),
        pytest.param([0.75, 1.0], 300, id="all, and many requests"),
    ],
)
def test_a_candidate_that_is_no_worse_is_not_rejected_because_errors_end_sooner(
    weights: Sequence[float], rate: float
) -> None:
    rejected = [seed for seed in range(20) if rejected_after(seed, weights, rate=rate) is not None]
    assert len(rejected) <= 1


def test_it_would_be_if_answers_that_began_before_were_counted() -> None:
    assert sum(rejected_after(seed, [0.25], cohort=False) is not None for seed in range(10)) >= 5


@pytest.mark.parametrize(
    ("errors", "weights", "within"),
    [(1.0, [0.25], 15), (0.2, [0.25], 30), (1.0, [0.01], 30), (1.0, [0.75], 30), (1.0, [1.0], 20)],
)
def test_a_bad_candidate_is_rejected_soon_all_the_same(errors: float, weights: Sequence[float], within: int) -> None:
    for seed in range(4):
        second = rejected_after(seed, weights, (errors, 0.005))
        assert second is not None
        assert second <= within


@pytest.mark.parametrize(
    ("tally", "age", "counts"),
    [
        (Tally(9, 1), UNSTEADY, True),
        (Tally(9, 1), UNSTEADY - 1, False),
        (Tally(10, 5), 30, False),
        (Tally(10, 6), 30, True),
        (Tally(4, 4), 30, False),
        (Tally(5, 5), 30, True),
        (Tally(90, 90), 5, False),
    ],
)
def test_what_a_revision_by_itself_shows_just_after_a_change_of_weights(tally: Tally, age: float, counts: bool) -> None:
    assert steady(tally, age) == (tally if counts else NOTHING)
