"""How often feedback on a stable revision that stays as it was is called a drift, and how soon a worse one is.

Half a year of days drawn from a seed: so many answers with feedback a day, give or take half, bad ones in runs or not.
The judge is the operator's own, asked once a day, with the defaults of spec.rollout.drift.feedback.

python -m benchmarks.drift [--deployments N] [--seed N]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np

from benchmarks.analysis import upper_bound
from benchmarks.report import percentile, write
from tuneyard.api.drift import FeedbackDrift, KeptFeedback
from tuneyard.api.rollout import StableContents
from tuneyard.planning.evidence import Tally
from tuneyard.planning.feedbackdrift import counted, feedback_drift

SPEC, STABLE, BEGIN = FeedbackDrift(), StableContents(revision="v1", content_hash="c"), date(2026, 1, 1)
DAYS, WORSE_AT, WORSE_DAYS = 180, 30, 60
STEADY = ((10, 0.05, 0.0), (30, 0.05, 0.0), (30, 0.2, 0.0), (100, 0.2, 0.5), (30, 0.1, 0.8))
"""Answers a day, the share of bad ones, and how much more often one follows another."""
WORSE = ((10, 0.05, 0.25), (30, 0.05, 0.15), (100, 0.05, 0.15))
"""Answers a day, the share of bad ones before and after."""


def day(rng: np.random.Generator, answers: int, rate: float, run: float) -> Tally:
    """Feedback of one day."""
    judged = int(rng.integers(answers // 2, answers * 3 // 2 + 1))
    bad = after_bad = again = before = 0
    for drawn in rng.random(judged):
        now = int(drawn < rate * (1 - run) + run * before)
        bad, after_bad, again, before = bad + now, after_bad + before, again + (now and before), now
    return Tally(judged, bad, after_bad, again)


def drifts_at(rng: np.random.Generator, answers: int, rates: Sequence[float], run: float) -> int | None:
    """The day on which a drift is told; None: on none."""
    kept: list[KeptFeedback] = []
    for number, rate in enumerate(rates):
        today = BEGIN + timedelta(days=number)
        if feedback_drift(kept[0] if kept else None, SPEC, "v1", today).drifting:
            return number
        kept = counted(kept, STABLE, day(rng, answers, rate, run), SPEC, today)
    return None


def main(arguments: list[str]) -> int:
    """Simulate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng, many = np.random.default_rng(options.seed), options.deployments
    alarms: dict[tuple[int, float, float], int] = {}
    for kind in STEADY:
        answers, rate, run = kind
        alarms[kind] = sum(drifts_at(rng, answers, [rate] * DAYS, run) is not None for _ in range(many))
        print(f"{answers} answers a day, {rate:.0%} bad, runs {run}: {alarms[kind]} of {many}", flush=True)
    hits, trials = sum(alarms.values()), many * len(STEADY)
    figures: dict[str, float] = {
        "false_alarm_rate": upper_bound(hits, trials),
        "seen_false_alarm_rate": hits / trials,
        "worst_seen_false_alarm_rate": max(alarms.values()) / many,
    }
    spread = {"false_alarm_rate": f"{hits} of {trials}, upper 95 % bound"}
    for answers, before, after in WORSE:
        rates = [before] * WORSE_AT + [after] * WORSE_DAYS
        told = [d if (d := drifts_at(rng, answers, rates, 0.0)) is not None else math.inf for _ in range(many // 5)]
        name = f"median_days_{answers}_answers_{before:.0%}_to_{after:.0%}".replace("%", "")
        figures[name] = percentile(told, 0.5) - WORSE_AT
        spread[name] = f"p90 {percentile(told, 0.9) - WORSE_AT:g}"
        print(f"{name}: {figures[name]} ({spread[name]})", flush=True)
    return write(
        "drift",
        figures,
        {name: "days" for name in figures if name.startswith("median")},
        targets={"false_alarm_rate": "<= 0.03"},
        spread=spread,
        note=f"simulated; deployments with an alarm in {DAYS} days of daily looks; medians: until it is told",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
