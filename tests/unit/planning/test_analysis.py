"""Pass, Reject, Continue, and the two that are no outcomes; each in one sentence with its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tuneyard.planning.analysis import Analysis, Outcome, Rules, Sight, Target, begun, broken, judged, observed, stepped
from tuneyard.planning.analysisrecord import recorded, restored
from tuneyard.planning.evidence import Counts, Objective, Series, Tally
from tuneyard.planning.sequential import Watch

ERRORS, TTFT, FEEDBACK = Objective.ERROR_RATE, Objective.TTFT, Objective.FEEDBACK
RULES = Rules((Target(ERRORS, 0.01),))
WITH_TTFT = replace(RULES, targets=(*RULES.targets, Target(TTFT, 0.05)))
WITH_FEEDBACK = replace(RULES, targets=(*RULES.targets, Target(FEEDBACK, 0.05)))


def counts(mine: Tally, other: Tally, objective: Objective = ERRORS) -> dict[Series, Tally]:
    return {Series("v3", objective): mine, Series("v2", objective): other}


def after(
    *each: Counts, looks: int = 40, rules: Rules = RULES, sight: Mapping[str, int] | None = None, alone: bool = False
):
    """The judgement after so many looks that bring the same, one every five seconds."""
    analysis, seen = Analysis("v3", "v2"), Sight(0.0, {})
    brought = {series: tally for part in each for series, tally in part.items()}
    if alone:
        analysis = observed(analysis, rules, Sight(0.0, counts(Tally(400), Tally(4000, 20))))
        analysis = stepped(analysis, 0.0, alone=True)
    for number in range(1, looks + 1):
        seen = Sight(5.0 * number, brought, **(sight or {}))
        analysis = observed(analysis, rules, seen)
    return judged(analysis, rules, seen)


@pytest.mark.parametrize(
    ("mine", "other", "looks", "expected"),
    [
        pytest.param(Tally(10, 0), Tally(990, 5), 40, Outcome.PASS, id="as good"),
        pytest.param(Tally(10, 0), Tally(990, 0), 30, Outcome.PASS, id="neither has a bad one"),
        pytest.param(Tally(10, 0), Tally(990, 5), 29, Outcome.CONTINUE, id="too few answers"),
        pytest.param(Tally(100, 3), Tally(900, 27), 40, Outcome.PASS, id="both break the tolerance alike"),
        pytest.param(Tally(100, 5), Tally(900, 45), 40, Outcome.PASS, id="both break it far"),
        pytest.param(Tally(10, 1, 1), Tally(990, 5, 5), 20, Outcome.REJECT, id="ten in a hundred"),
        pytest.param(
            Tally(500, 4), Tally(500, 0), 2, Outcome.CONTINUE, id="worse, and hardly within what is tolerated"
        ),
        pytest.param(Tally(2000, 4), Tally(2000, 1), 40, Outcome.PASS, id="worse, and far within what is tolerated"),
        pytest.param(Tally(100, 90, 90, 81), Tally(900, 810, 810, 729), 40, Outcome.PASS, id="most of both are bad"),
        pytest.param(Tally(9, 9, 9, 9), Tally(900, 900, 900, 900), 40, Outcome.CONTINUE, id="all of both are bad"),
    ],
)
def test_outcomes(mine, other, looks, expected):
    found = after(counts(mine, other), looks=looks)
    assert found.outcome is expected, found.sentence


def test_a_candidate_whose_every_answer_is_bad_is_rejected_at_once():
    analysis = Analysis("v3", "v2")
    for number in range(30):
        analysis = observed(analysis, RULES, Sight(5.0 * number, {Series("v2", ERRORS): Tally(200, 2, 2)}))
    analysis = begun(analysis, 150.0)
    for mine in (Tally(2, 2, 1, 1), Tally(2, 2, 2, 2)):
        sight = Sight(155.0, counts(mine, Tally(198, 1, 1)))
        analysis = observed(analysis, RULES, sight)
    found = judged(analysis, RULES, sight)
    assert found.outcome is Outcome.REJECT and found.sentence.startswith("errorRate: 4 of 4 (100 %)")


def test_a_rejection_is_explained_with_its_numbers():
    found = after(counts(Tally(10, 1, 1), Tally(990, 5, 5)), looks=20)
    assert found.objective is ERRORS
    assert found.sentence.startswith(
        "errorRate: 20 of 200 (10 %) of the answers of v3 were bad, in the same time 100 of 19800 (0.51 %) of v2, and "
        "1 % is tolerated; v3 being no worse, that comes by chance once in "
    )


@pytest.mark.parametrize(
    ("looks", "sight", "outcome", "words"),
    [
        (40, {"gateways": 2, "answered": 0}, Outcome.METRICS_UNAVAILABLE, "none of 2 gateways"),
        (40, {"gateways": 2, "answered": 1}, Outcome.METRICS_UNAVAILABLE, "only 1 of 2 gateways"),
        (5, {}, Outcome.CONTINUE, "50 of 300 answers of v3"),
    ],
)
def test_what_is_said_without_enough(looks, sight, outcome, words):
    found = after(counts(Tally(10), Tally(990, 5)), looks=looks, sight=sight)
    assert found.outcome is outcome and words in found.sentence


def test_silence_neither_passes_nor_rejects():
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(10.0, counts(Tally(400), Tally(4000, 20))))
    assert judged(analysis, RULES, Sight(129.0, {})).outcome is Outcome.PASS
    quiet = judged(analysis, RULES, Sight(140.0, {}))
    assert quiet.outcome is Outcome.NO_TRAFFIC and "for 130 s" in quiet.sentence


def test_a_rejection_stands_while_a_gateway_is_silent():
    found = after(counts(Tally(10, 1, 1), Tally(990, 5, 5)), looks=20, sight={"gateways": 2, "answered": 1})
    assert found.outcome is Outcome.REJECT


def test_every_objective_must_be_good_and_one_bad_one_is_enough():
    good = counts(Tally(20), Tally(980, 5))
    assert after(good, looks=40, rules=WITH_TTFT).outcome is Outcome.PASS
    slow = counts(Tally(20, 10, 10, 5), Tally(980, 10), TTFT)
    found = after(good, slow, looks=20, rules=WITH_TTFT)
    assert found.outcome is Outcome.REJECT and found.sentence.startswith("ttft: ")
    close = counts(Tally(20, 1), Tally(980, 20), TTFT)
    found = after(good, close, looks=20, rules=WITH_TTFT)
    assert found.outcome is Outcome.CONTINUE and found.sentence.endswith("too close to call")


def test_feedback_from_few_holds_up_nobody_and_rejects_all_the_same():
    good = counts(Tally(20), Tally(980, 5))
    assert after(good, counts(Tally(1), Tally(20), FEEDBACK), rules=WITH_FEEDBACK).outcome is Outcome.PASS
    liked_less = counts(Tally(1, 1, 1, 1), Tally(40, 1), FEEDBACK)
    assert after(good, liked_less, looks=80, rules=WITH_FEEDBACK).outcome is Outcome.REJECT


def test_what_goes_wrong_late_is_not_excused_by_what_went_well():
    analysis, now = Analysis("v3", "v2"), 0.0
    for _ in range(400):
        analysis = observed(analysis, RULES, Sight(now, counts(Tally(50), Tally(950, 4))))
        now += 5
    analysis = stepped(analysis, now, alone=False)
    for _ in range(4):
        sight = Sight(now, counts(Tally(50, 8), Tally(150, 1)))
        analysis = observed(analysis, RULES, sight)
    comparison = analysis.comparisons[ERRORS]
    assert comparison.whole.log < 0 < comparison.step.log
    found = judged(analysis, RULES, sight)
    assert found.outcome is Outcome.REJECT and "since this step began" in found.sentence


def test_with_all_traffic_only_gross_harm_is_seen():
    assert after({Series("v3", ERRORS): Tally(100, 1)}, alone=True).outcome is Outcome.PASS
    found = after({Series("v3", ERRORS): Tally(100, 10)}, alone=True)
    assert found.outcome is Outcome.REJECT and "with all traffic on v3" in found.sentence


def test_history_is_not_evidence():
    history = observed(Analysis("v3", "v2"), RULES, Sight(1.0, {Series("v2", ERRORS): Tally(9000, 90, 90, 0)}))
    start = begun(history, 100.0)
    comparison = start.comparisons[ERRORS]
    assert comparison.whole.seen.stable.judged == 0 and comparison.runs[0].limit() < 0.12 and start.heard == 100


def test_stables_own_trouble_is_told_apart():
    watch = Watch()
    for _ in range(60):
        watch = watch.look(Tally(100, 4), 0.01)
    assert broken(watch, RULES, RULES.targets[0], "v2") == (
        "errorRate: 240 of 6000 (4 %) of the answers of v2 were bad, 1 % is tolerated"
    )
    assert broken(Watch(), RULES, RULES.targets[0], "v2") is None


def test_an_analysis_outlives_the_process():
    brought = counts(Tally(3, 1, 1), Tally(150, 2, 2)) | counts(Tally(3, 1), Tally(150, 9), TTFT)
    analysis = observed(Analysis("v3", "v2"), WITH_TTFT, Sight(5.0, brought))
    for known in (analysis, stepped(analysis, 9.0, alone=True)):
        assert restored(recorded(known)) == known
        assert len(recorded(known)) < 4096


@pytest.mark.parametrize("text", ["", "{}", '{"candidate": 3}', "nonsense"])
def test_a_record_that_cannot_be_read_is_none(text):
    assert restored(text) is None


@pytest.mark.parametrize("logs", [[0.0], [math.nan] * 5])
def test_a_record_of_other_bets_is_none(logs):
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(5.0, counts(Tally(3), Tally(150))))
    comparison = analysis.comparisons[ERRORS]
    other = replace(comparison, whole=replace(comparison.whole, logs=tuple(logs)))
    assert restored(recorded(replace(analysis, comparisons={ERRORS: other}))) is None
