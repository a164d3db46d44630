"""Pass, Reject, Continue, and the two that are no outcomes; each in one sentence with its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tuneyard.planning.analysis import (
    Analysis,
    Outcome,
    Rules,
    Sight,
    Target,
    begun,
    broken,
    doubtful,
    judged,
    observed,
    stepped,
    unjudged,
)
from tuneyard.planning.analysisrecord import recorded, restored
from tuneyard.planning.evidence import Counts, Objective, Series, Tally
from tuneyard.planning.sequential import Watch

ERRORS, TTFT, FEEDBACK = Objective.ERROR_RATE, Objective.TTFT, Objective.FEEDBACK
REFUSED, LEFT, UNJUDGED = Objective.CLIENT_ERRORS, Objective.CLIENTS_LEFT, Objective.UNJUDGED
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


def runs(judged: int, bad: int) -> Tally:
    """So many answers; where all are bad each follows a bad one."""
    return Tally(judged, bad, *((judged, bad) if bad == judged else (bad, 0)))


def unanswered(mine: Tally, other: Tally, objective: Objective = REFUSED) -> dict[Series, Tally]:
    """What a look brings of a candidate of which objectives judge what is not bad here, and of stable."""
    good, well = Tally(mine.judged - mine.bad), Tally(other.judged - other.bad)
    found = counts(mine, other, objective) | counts(
        Tally(mine.judged, mine.bad), Tally(other.judged, other.bad), UNJUDGED
    )
    return found | ({Series("v3", ERRORS): good} if good.judged else {}) | {Series("v2", ERRORS): well}


@pytest.mark.parametrize(
    ("objective", "became"),
    [
        (REFUSED, "were refused with status 400 to 499"),
        (LEFT, "ended because the client left before the answer was whole"),
    ],
)
def test_a_candidate_that_gives_no_answer_is_rejected_within_some_dozens(objective, became):
    found = after(unanswered(runs(2, 2), runs(198, 1), objective), looks=15)
    assert found.outcome is Outcome.REJECT and found.objective is objective
    assert found.sentence.startswith(
        f"{objective.value}: 30 of 30 (100 %) of the requests to v3 {became}, in the same time 15 of 2970 (0.51 %) of "
        "those to v2, and "
    )
    assert "percent points more are tolerated; v3 being no worse, that comes by chance once in " in found.sentence


@pytest.mark.parametrize(
    ("objective", "mine", "other", "looks"),
    [
        pytest.param(REFUSED, runs(10, 3), runs(990, 297), 60, id="users send nonsense to both"),
        pytest.param(REFUSED, runs(100, 3), runs(900, 10), 60, id="a little more, within what is tolerated"),
        pytest.param(REFUSED, runs(2, 2), runs(198, 1), 9, id="so few that it may be one user"),
        pytest.param(REFUSED, Tally(10, 4, 3, 3), runs(990, 0), 2, id="so few of many that it may be one user"),
        pytest.param(LEFT, runs(100, 24), runs(900, 180), 60, id="longer answers are left more often"),
        pytest.param(REFUSED, Tally(), runs(990, 5), 60, id="no answer at all"),
    ],
)
def test_refusals_and_leaving_clients_that_say_nothing(objective, mine, other, looks):
    assert after(unanswered(mine, other, objective), looks=looks).outcome is not Outcome.REJECT


def test_long_prompts_that_only_the_candidate_refuses_are_seen():
    """Beside many short ones, so that most of them follow a good answer."""
    long = {s._replace(prompts=3): t for s, t in unanswered(Tally(4, 4), Tally(36)).items()}
    found = after(unanswered(runs(96, 0), runs(864, 2)), long, looks=20)
    assert found.outcome is Outcome.REJECT and found.sentence.startswith("clientErrors: 80 of 2000 (4 %)")


def test_nothing_is_said_of_refusals_while_nobody_else_answers():
    """There is no limit to hold them against: what users send is their business."""
    assert after(unanswered(runs(100, 60), Tally()), alone=True).outcome is not Outcome.REJECT
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(5.0, unanswered(runs(10, 1), runs(990, 9))))
    alone = observed(stepped(analysis, 5.0, alone=True), RULES, Sight(9.0, unanswered(runs(50, 50), Tally())))
    assert alone.unnamed[REFUSED].whole.seen.candidate.judged == 10 and alone.asked == 9


@pytest.mark.parametrize("looks", [10, 40])
def test_who_refuses_as_stable_does_is_asked_and_cannot_be_judged(looks):
    refusing = {s: t for s, t in unanswered(runs(2, 2), runs(198, 198)).items() if s.objective is not ERRORS}
    found = after(refusing, looks=looks)
    assert found.outcome is Outcome.CONTINUE
    assert found.sentence == (
        f"v3 is asked, but no objective could judge any of its {2 * looks} answers: {2 * looks} were refused with "
        f"status 400 to 499 (of v2's {198 * looks} of {198 * looks} (100 %)); it is not promoted for having waited"
    )


@pytest.mark.parametrize(
    ("objective", "mine", "other", "doubts"),
    [
        pytest.param(LEFT, runs(10, 9), runs(990, 0), True, id="one good answer, and then clients leave"),
        pytest.param(REFUSED, Tally(3, 2, 2, 1), runs(990, 5), True, id="too few to reject"),
        pytest.param(LEFT, runs(100, 24), runs(900, 180), False, id="within what is tolerated"),
        pytest.param(REFUSED, runs(10, 0), runs(990, 300), False, id="better than stable"),
    ],
)
def test_what_speaks_against_it_keeps_it_from_being_promoted_for_having_waited(objective, mine, other, doubts):
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(5.0, unanswered(mine, other, objective)))
    assert not unjudged(analysis)
    assert doubtful(analysis) is doubts
    found = judged(analysis, RULES, Sight(6.0, {}))
    assert found.outcome is Outcome.CONTINUE
    assert ("it is not promoted for having waited" in found.sentence) is doubts


def test_one_that_was_judged_once_and_is_not_any_more_is_asked_all_the_same():
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(10.0, counts(Tally(400), Tally(4000, 20))))
    sight = Sight(139.0, counts(Tally(3, 3), Tally(4, 4), UNJUDGED))
    analysis = observed(analysis, RULES, sight)
    assert not unjudged(analysis)
    found = judged(analysis, RULES, sight)
    assert (found.outcome, found.sentence) == (
        Outcome.CONTINUE,
        "v3 is asked, but no answer of it has been judged for 129 s; no objective could judge 3 of 3 answers",
    )
    assert judged(analysis, RULES, Sight(260.0, {})).outcome is Outcome.NO_TRAFFIC


def test_refusals_take_nothing_from_the_objectives():
    """Their part of the chance is one beyond, so that a bad candidate is found as soon as without them."""
    with_both = {**counts(Tally(10, 1, 1), Tally(990, 5, 5)), **unanswered(runs(10, 0), runs(990, 4))}
    plain = counts(Tally(10, 1, 1), Tally(990, 5, 5))
    for looks in range(1, 25):
        assert after({**with_both, **plain}, looks=looks).outcome is after(plain, looks=looks).outcome


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
    refused = {Series("v2", REFUSED): Tally(9000, 90, 90, 0), Series("v2", UNJUDGED): Tally(9000, 90)}
    start = begun(observed(Analysis("v3", "v2"), RULES, Sight(1.0, refused)), 100.0)
    comparison = start.unnamed[REFUSED]
    assert comparison.whole.seen.stable.judged == 0 and comparison.runs[0].limit() < 0.12 and start.asked == 100


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
    brought |= counts(Tally(3, 1), Tally(150, 9), LEFT) | counts(Tally(3), Tally(150), UNJUDGED)
    analysis = observed(Analysis("v3", "v2"), WITH_TTFT, Sight(5.0, brought))
    for known in (analysis, stepped(analysis, 9.0, alone=True)):
        assert restored(recorded(known)) == known
        assert len(recorded(known)) < 4096


def test_older_and_newer_operators_read_each_other_s_analysis():
    """An older one knows no other objectives in `comparisons`, and ignores fields that it does not know."""
    brought = counts(Tally(3), Tally(150)) | unanswered(runs(3, 0), runs(150, 1))
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(5.0, brought))
    text = json.loads(recorded(analysis))
    assert text["comparisons"].keys() == {"errorRate"} and text["unnamed"].keys() == {"clientErrors"}
    older = {name: text[name] for name in ("candidate", "stable", "comparisons", "alone", "heard")}
    assert restored(json.dumps(older)) == Analysis("v3", "v2", analysis.comparisons, heard=5.0)
    assert restored(json.dumps({**text, "later": 1})) == analysis


@pytest.mark.parametrize("text", ["", "{}", '{"candidate": 3}', "nonsense"])
def test_a_record_that_cannot_be_read_is_none(text):
    assert restored(text) is None


@pytest.mark.parametrize("logs", [[0.0], [math.nan] * 5])
def test_a_record_of_other_bets_is_none(logs):
    analysis = observed(Analysis("v3", "v2"), RULES, Sight(5.0, counts(Tally(3), Tally(150))))
    comparison = analysis.comparisons[ERRORS]
    other = replace(comparison, whole=replace(comparison.whole, logs=tuple(logs)))
    assert restored(recorded(replace(analysis, comparisons={ERRORS: other}))) is None
    assert restored(recorded(replace(analysis, unnamed={REFUSED: other}))) is None
