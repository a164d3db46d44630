"""Feedback on stable over days: what is kept of it, and when it has become worse."""

from __future__ import annotations

import json
import math
import random
from datetime import date, timedelta
from typing import Any

import pytest

from tests.toyworld.rollouts import GATEWAYS, PROGRESSIVE, RolloutWorld
from tuneyard.api.drift import FeedbackDrift, FeedbackDriftStatus, KeptFeedback
from tuneyard.api.rollout import StableContents
from tuneyard.planning.evidence import NOTHING, Objective, Tally
from tuneyard.planning.evidencerecord import evidence_of
from tuneyard.planning.feedbackdrift import ALPHA, KEPT_DAYS, baseline, counted, feedback_drift, fisher

pytestmark = pytest.mark.lasting

DAY = timedelta(days=1)
BEGIN = date(2026, 1, 1)
V1 = StableContents(revision="v1", content_hash="one")
SPEC = FeedbackDrift(days=7, max_rise="5%", min_answers=50)


def kept(*days: Tally, spec: FeedbackDrift = SPEC) -> list[KeptFeedback]:
    """What is kept after these days."""
    found: list[KeptFeedback] = []
    for n, tally in enumerate(days):
        found = counted(found, V1, tally, spec, BEGIN + n * DAY)
    return found


def said(*days: Tally, spec: FeedbackDrift = SPEC) -> FeedbackDriftStatus:
    """What is said on the day after them."""
    return feedback_drift(next(iter(kept(*days, spec=spec)), None), spec, "v1", BEGIN + len(days) * DAY)


def calm(judged: int, bad: int) -> Tally:
    """Bad answers that come by themselves: after one of them the next is as often bad as any."""
    return Tally(judged, bad, bad, round(bad * bad / judged) if judged else 0)


@pytest.mark.parametrize(
    ("days", "drifting", "words"),
    [
        ([], False, "feedback on v1 has no baseline yet: 7 days with 50 answers"),
        ([calm(40, 2)] * 6, False, "no baseline yet"),
        ([calm(40, 2)] * 7, False, "14 of 280 bad (5 %) from 2026-01-01 to 2026-01-07; compared from 2026-01-15 on"),
        ([calm(40, 2)] * 14, False, "14 of 280 bad (5 %) from 2026-01-08 to 2026-01-14, against 14 of 280 bad (5 %)"),
        ([calm(40, 2)] * 7 + [calm(40, 8)] * 7, True, "56 of 280 bad (20 %) from 2026-01-08 to 2026-01-14, against 14"),
        ([calm(40, 2)] * 7 + [calm(40, 8)] * 7, True, ": +15 points, and maxRise is 5%"),
        ([calm(400, 20)] * 7 + [calm(400, 38)] * 7, False, "266 of 2800 bad (9.5 %)"),
        ([calm(10, 1)] * 7 + [calm(10, 2)] * 7, False, "14 of 70 bad (20 %)"),
        ([calm(40, 6)] * 7 + [calm(40, 1)] * 7, False, "7 of 280 bad (2.5 %)"),
        ([calm(40, 2)] * 7 + [calm(5, 5)] * 7, False, "only 35 answers with feedback from 2026-01-08 to 2026-01-14"),
    ],
)  # fmt: skip
def test_what_is_said_of_days(days: list[Tally], drifting: bool, words: str):
    found = said(*days)
    assert (found.drifting, words in found.message) == (drifting, True), found.message


def test_the_baseline_is_of_the_first_days_that_are_enough():
    first = kept(*[calm(4, 0)] * 10, *[calm(40, 2)] * 9)[0].baseline
    assert first is not None and (first.first, first.last) == ("2026-01-05", "2026-01-11")


def test_a_drift_ends_when_less_than_half_of_the_rise_is_left():
    days = [calm(100, 5)] * 7 + [calm(100, 15)] * 7
    assert said(*days).drifting
    assert said(*days, *[calm(100, 8)] * 7).drifting, "three points are left"
    assert not said(*days, *[calm(100, 7)] * 7).drifting
    assert said(*days, *[NOTHING] * 8).drifting, "silence says nothing"
    silent = said(*days, *[NOTHING] * 60)
    assert silent.drifting, "nor when none of those days is kept any more"
    assert silent.message.endswith("50 are needed; it was worse when there were enough")
    assert not said(*days, *[NOTHING] * 60, *[calm(100, 6)] * 7).drifting
    (mine,) = kept(*days)
    assert feedback_drift(mine, SPEC, "v1", BEGIN + 300 * DAY).drifting, "where nobody has answered either"


def test_a_day_counts_when_it_is_over():
    days = [calm(40, 2)] * 7 + [calm(40, 6)] * 7
    (mine,) = counted(kept(*days), V1, calm(1000, 0), SPEC, BEGIN + 14 * DAY)
    assert feedback_drift(mine, SPEC, "v1", BEGIN + 14 * DAY) == said(*days)


def test_bad_answers_in_runs_are_fewer_things_than_they_look_like():
    alone = [calm(40, 2)] * 7 + [Tally(40, 8, 8, 1)] * 7
    runs = [calm(40, 2)] * 7 + [Tally(40, 8, 8, 7)] * 7
    assert (said(*alone).drifting, said(*runs).drifting) == (True, False)


def test_the_baseline_stays_when_its_days_are_not_kept_any_more():
    days = [calm(40, 2)] * 200
    (mine,) = kept(*days)
    assert len(mine.days) == KEPT_DAYS and min(mine.days) > "2026-06"
    assert mine.baseline is not None and mine.baseline.first == "2026-01-01"
    assert said(*days, *[calm(40, 8)] * 7).drifting
    other = FeedbackDrift(days=14, min_answers=10)
    assert baseline(mine, other, BEGIN + 200 * DAY) == mine.baseline, "whatever the spec says later"


def test_of_each_contents_its_own_and_of_the_last_few():
    found: list[KeptFeedback] = []
    for n in range(9):
        found = counted(
            found, StableContents(revision=f"v{n}", content_hash=f"c{n}"), calm(9, 1), SPEC, BEGIN + n * DAY
        )
    assert [k.content_hash for k in found] == ["c5", "c6", "c7", "c8"]
    found = counted(found, StableContents(revision="back", content_hash="c6"), calm(9, 1), SPEC, BEGIN + 9 * DAY)
    assert [(k.content_hash, k.revision) for k in found] == [
        ("c5", "v5"),
        ("c7", "v7"),
        ("c8", "v8"),
        ("c6", "back"),
    ]
    assert found[-1].days == {"2026-01-07": tuple(calm(9, 1)), "2026-01-10": tuple(calm(9, 1))}
    assert counted(found, V1, calm(9, 1), None, BEGIN) == [], "nobody asks for it"
    full = [
        k.model_copy(update={"days": {str(BEGIN + n * DAY): (10**6,) * 4 for n in range(KEPT_DAYS)}}) for k in found
    ]
    assert len(json.dumps([k.to_dict() for k in full])) < 8000, "far from the limit of a ConfigMap"


@pytest.mark.parametrize(
    ("bad", "judged", "all_bad", "everything"), [(9, 20, 10, 60), (3, 5, 4, 30), (40, 300, 50, 900)]
)
def test_the_exact_test_is_exact(bad: int, judged: int, all_bad: int, everything: int):
    good = everything - all_bad
    ways = sum(math.comb(all_bad, k) * math.comb(good, judged - k) for k in range(bad, min(all_bad, judged) + 1))
    assert fisher(bad, judged, all_bad, everything) == pytest.approx(ways / math.comb(everything, judged), rel=1e-6)


def test_the_exact_test_of_many_takes_no_time_and_of_all_bad_ones_ends():
    assert 0 < fisher(52_000, 10**6, 100_000, 2 * 10**6) < ALPHA
    assert fisher(50, 50, 50, 100) == pytest.approx(1 / math.comb(100, 50))
    assert fisher(100, 100, 200, 200) == 1.0


def stream(rng: random.Random, judged: int, rate: float, run: float) -> Tally:
    """Answers of one day, of which a share `rate` is bad; `run`: how much more often after a bad one."""
    tally, before = NOTHING, False
    for _ in range(judged):
        bad = rng.random() < rate * (1 - run) + run * before
        tally, before = tally.plus(Tally(1, bad, before, bad and before)), bad
    return tally


def days_until(rng: random.Random, rates: list[float], run: float = 0.0) -> int | None:
    """The first day on which it drifts."""
    found: list[KeptFeedback] = []
    for n, rate in enumerate(rates):
        today = BEGIN + n * DAY
        if feedback_drift(next(iter(found), None), SPEC, "v1", today).drifting:
            return n
        found = counted(found, V1, stream(rng, rng.randint(8, 24), rate, run), SPEC, today)
    return None


@pytest.mark.parametrize(("rate", "run"), [(0.05, 0.0), (0.2, 0.0), (0.1, 0.5)])
def test_half_a_year_of_daily_looks_gives_no_false_alarm(rate: float, run: float):
    rng = random.Random(7)
    assert [days_until(rng, [rate] * 180, run) for _ in range(8)] == [None] * 8


def test_a_rise_is_seen_within_its_window():
    rng = random.Random(7)
    found = [days_until(rng, [0.05] * 20 + [0.3] * 14) for _ in range(12)]
    assert all(day is not None and 21 <= day <= 30 for day in found)


# -- in the plan ------------------------------------------------------------------------------------------------------


def watched(**rollout: Any) -> RolloutWorld:
    asked = {"analysis": {"slo": {"feedback": "50%"}}, "drift": {"feedback": {"days": 2, "minAnswers": 20}}}
    return RolloutWorld(rollout={**PROGRESSIVE, **asked, **rollout})


def a_day(world: RolloutWorld, counted: dict[str, Tally]) -> None:
    """Feedback comes at four times of the day."""
    for _ in range(4):
        world.clock += timedelta(hours=6)
        for revision, tally in counted.items():
            world.counting[GATEWAYS[0]].count(revision, tally, Objective.FEEDBACK)
        world.settle()


def drift(world: RolloutWorld) -> tuple[str, str]:
    return world.conditions["Drifting"]


def test_a_drift_of_feedback_begins_and_ends_once_and_changes_no_traffic():
    world = watched()
    assert drift(world) == ("False", "Steady")
    for _ in range(5):
        a_day(world, {"v1": calm(20, 1)})
    assert drift(world) == ("False", "Steady")
    weights, ready = world.weights, world.conditions["Ready"]
    for _ in range(3):
        a_day(world, {"v1": calm(20, 6)})
    assert (drift(world), world.weights, world.conditions["Ready"]) == (("True", "Drifting"), weights, ready)
    for _ in range(3):
        a_day(world, {"v1": calm(20, 1)})
    assert drift(world) == ("False", "Steady")
    assert [e.reason.value for e in world.events if "rift" in e.reason.value] == ["Drifting", "DriftEnded"]


def test_neither_a_lost_status_nor_a_restart_of_gateways_nor_a_crash_loses_or_doubles_days():
    world = watched()
    for n in range(6):
        world.clock += timedelta(hours=6)
        world.counting[GATEWAYS[0]].count("v1", calm(20, 1), Objective.FEEDBACK)
        world.reconcile(crash=True)
        world.settle()
        if n == 2:
            world.lose_status()
            world.counting[GATEWAYS[0]].restart(world.clock)
        world.settle()
    found = evidence_of(world.evidence, world.now)
    assert found is not None
    (mine,) = found.feedback
    assert sum(counts[0] for counts in mine.days.values()) == 6 * 20


def test_a_new_stable_revision_has_a_baseline_of_its_own_and_the_old_one_is_kept():
    world = watched()
    for _ in range(5):
        a_day(world, {"v1": calm(20, 1)})
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    world.command("promote", "v2")
    world.settle()
    assert world.status.stable == "v2"
    assert "feedback on v2 has no baseline yet" in next(
        c.message for c in world.now.status.conditions if c.type == "Drifting"
    )
    a_day(world, {"v2": calm(20, 10)})
    found = evidence_of(world.evidence, world.now)
    assert found is not None
    assert [k.revision for k in found.feedback] == ["v1", "v2"]
    assert drift(world) == ("False", "Steady")


def test_a_new_day_is_looked_at_by_itself():
    world = watched()
    assert world.plan.requeue_after is not None and world.plan.requeue_after <= 86400 + 600
