"""The bets: what they are paid for which block, what they make of runs, and when blocks are closed."""

from __future__ import annotations

import math

import pytest

from tuneyard.planning.evidence import NO_PAIR, NOTHING, Pair, Tally
from tuneyard.planning.sequential import (
    BETS,
    NEW,
    NO_RUNS,
    NO_SPREAD,
    Comparison,
    Runs,
    Watch,
    beginnings,
    continuations,
    divergence,
)

CALM = Pair(Tally(10), Tally(990, 5))


def spread_of(*starts: int) -> float:
    spread = NO_SPREAD
    for number in starts:
        spread = spread.seen(Tally(100, number))
    return spread.factor


def test_the_shares_of_the_bets_are_the_whole_capital():
    assert math.fsum(b.share for b in BETS) == pytest.approx(1)
    assert NEW.log == pytest.approx(0)


def test_a_block_is_paid_by_ratio_and_share():
    block = Pair(Tally(10, 1), Tally(90, 3))
    expected = [math.log(b.ratio) - 4 * math.log(0.9 + 0.1 * b.ratio) for b in BETS]
    assert beginnings(block) == pytest.approx(expected)
    assert beginnings(block, 2.0) == pytest.approx([log / 2 for log in expected])


@pytest.mark.parametrize("block", [NO_PAIR, Pair(Tally(5), Tally(100))], ids=["no answers", "no bad ones"])
def test_a_block_that_says_nothing(block):
    assert beginnings(block) == ()


def test_without_stable_answers_nothing_is_won():
    assert beginnings(Pair(Tally(5, 5), NOTHING)) == pytest.approx([0] * len(BETS))


@pytest.mark.parametrize(
    ("runs", "low", "high"),
    [
        pytest.param(NO_RUNS, 0.5, 0.5, id="nothing known"),
        pytest.param(Runs(10, 0), 0.45, 0.5, id="few, none went on"),
        pytest.param(Runs(60, 0), 0.1, 0.12, id="many, none went on"),
        pytest.param(Runs(60, 48), 0.9, 0.97, id="many, most went on"),
        pytest.param(Runs(10, 10), 0.5, 0.5, id="too few to tell"),
    ],
)
def test_how_far_runs_may_go_on(runs, low, high):
    assert low <= runs.limit() <= high


def test_runs_of_long_ago_fade():
    runs = Runs(60, 0).seen(Tally(1000, 100, 100, 80))
    assert runs == Runs(100, 80)
    assert Runs(60, 0).seen(Tally(30, 30, 30, 30)) == Runs(60, 30)
    assert Runs(60, 7).seen(Tally(50, 0)) == Runs(60, 7)


def test_only_the_bets_on_long_runs_care_whether_one_goes_on():
    factors = continuations(Tally(5, 5, 4, 4), 0.6)
    assert factors == pytest.approx([0, 0, 0, 0, 4 * math.log(0.97 / 0.6)])
    assert continuations(Tally(5, 1, 0, 0), 0.6) == ()
    assert continuations(Tally(5, 1, 1, 0), 0.6)[-1] == pytest.approx(math.log(0.03 / 0.4))


def test_beginnings_that_come_in_lumps_weigh_less():
    assert spread_of(*[2, 3, 2, 1, 2, 3] * 10) == 1
    assert spread_of(*[0, 8] * 30) > 3
    assert spread_of(*[20] * 30, *[80] * 30) < spread_of(*[20, 80] * 30)
    assert spread_of() == spread_of(0, 0, 0) == 1


def test_divergence():
    assert divergence(0, 0.5) == pytest.approx(math.log(2))
    assert divergence(0.3, 0.3) == pytest.approx(0)
    assert divergence(1, 1) == 0
    assert divergence(0.5, 1) == math.inf


@pytest.mark.parametrize(
    ("brought", "seconds", "closed"),
    [
        pytest.param(Pair(Tally(1), Tally(200)), 5, True, id="enough of stable"),
        pytest.param(Pair(Tally(5), Tally(3)), 5, True, id="enough of the candidate"),
        pytest.param(Pair(Tally(4), Tally(199)), 5, False, id="too little of both"),
        pytest.param(Pair(NOTHING, Tally(900)), 5, False, id="none of the candidate"),
        pytest.param(Pair(Tally(1), Tally(1)), 300, True, id="too old"),
    ],
)
def test_when_a_block_is_closed(brought, seconds, closed):
    after = Comparison().look({0: brought}, seconds)
    assert (after.blocks == {}) == closed and after.whole.seen == brought


def test_a_step_begins_with_new_capital_and_no_open_block():
    comparison = Comparison().look({0: CALM}, 1.0).look({0: Pair(Tally(1, 1), Tally(50))}, 2.0)
    after = comparison.next_step(3.0)
    assert after.step == NEW and after.blocks == {} and after.since == 3
    assert after.whole.seen == Pair(Tally(11, 1), Tally(1040, 5))
    assert after.whole.log > comparison.whole.log


@pytest.mark.parametrize(
    ("stable", "paid"),
    [
        pytest.param(Tally(200, 2), True, id="hardly any is bad"),
        pytest.param(Tally(7, 7, 6, 6), False, id="all that has ended is bad"),
        pytest.param(NOTHING, False, id="nothing has ended"),
    ],
)
def test_a_run_of_the_candidate_is_paid_for_only_where_stable_has_ended_good_ones_in_this_step(stable, paid):
    history = Comparison(runs={0: Runs(60, 1)}).next_step(5)
    after = history.look({0: Pair(Tally(7, 7, 6, 6), stable)}, 6)
    assert (after.whole.log > math.log(100)) == (after.step.log > math.log(100)) == paid


def test_history_tells_of_runs_and_of_nothing_else():
    comparison = Comparison()
    for second in range(30):
        comparison = comparison.look({0: Pair(NOTHING, Tally(100, 2, 2, 0))}, second)
    assert comparison.whole.log == comparison.step.log == pytest.approx(0)
    assert comparison.runs[0].limit() < 0.12


def test_another_mixture_of_prompts_is_no_evidence():
    """Short prompts 0.1 % bad, long ones 20 %; the candidate gets the long ones, and is no worse in either."""
    comparison, mixed = Comparison(), Comparison()
    for second in range(40):
        short, long = Pair(Tally(10), Tally(1000, 1)), Pair(Tally(100, 20), Tally(10, 2))
        comparison = comparison.look({0: short, 1: long}, second)
        mixed = mixed.look({0: short.plus(long)}, second)
    assert comparison.whole.log < 0 < math.log(1e6) < mixed.whole.log


def test_one_revision_against_what_is_tolerated():
    fine, bad = Watch(), Watch()
    for _ in range(40):
        fine, bad = fine.look(Tally(100, 1), 0.01), bad.look(Tally(100, 5), 0.01)
    assert fine.capital.log < 0 < math.log(100) < bad.capital.log
