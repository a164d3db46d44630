"""How often a candidate that is no worse than stable is rolled back, and how soon one that is worse.

Whole rollouts (1, 5, 25, 100 %) drawn from a seed, as tests/canaries.py tells: three objectives, errors and latencies
that depend on the ones before, drifting rates, outages, other prompt lengths for either revision, several gateways;
requests that have to be refused and clients that leave, of both revisions.
The judge is the operator's own. The usual judges look at other rollouts of the same worlds.

python -m benchmarks.analysis [--rollouts N] [--candidates N] [--peers N] [--seed N]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import percentile, write
from tests.canaries import CANDIDATE, STEPS, Looks, Step, World, course, drawn, rollout, unanswering, worse
from tuneyard.planning.analysis import Judgement, Outcome, Rules, Target
from tuneyard.planning.evidence import COMPARED, Objective

RULES = Rules(
    (Target(Objective.ERROR_RATE, 0.01), Target(Objective.TTFT, 0.05), Target(Objective.E2E, 0.05)), steps=len(STEPS)
)
_OBJECTIVES = [t.objective for t in RULES.targets]
_DETECTING = ((1.0, 5, Step(0.01, 6_000, 30)), (0.2, 25, Step(0.01, 20_000, 100)), (0.05, 90, Step(0.01, 50_000, 250)))
_UNANSWERING = tuple((objective, rate) for objective in COMPARED for rate in (1.0, 0.3))
_SLOW = (0.02, 350, Step(0.01, 110_000, 550))
_WINDOW = 60
"""Answers of either revision that the usual judges compare."""


def upper_bound(hits: int, trials: int, doubt: float = 0.05) -> float:
    """The largest rate at which so few hits are not rarer than `doubt` (Clopper and Pearson, one-sided)."""
    low, high = hits / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = [
            math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
            + k * math.log(rate) + (trials - k) * math.log1p(-rate)
            for k in range(hits + 1)
        ]  # fmt: skip
        low, high = (rate, high) if sum(map(math.exp, logs)) > doubt else (low, rate)
    return high


def _false_rollbacks(rollouts: int, rng: np.random.Generator) -> tuple[Counter[float], Counter[float], list[Judgement]]:
    """Per correlation: rollouts, and those that were rolled back, and for what."""
    tried: Counter[float] = Counter()
    rejected: Counter[float] = Counter()
    reasons = []
    for number in range(1, rollouts + 1):
        world = drawn(rng, _OBJECTIVES)
        over = course(world, RULES, rng)
        tried[world.correlation] += 1
        if over.judgement.outcome is Outcome.REJECT:
            rejected[world.correlation] += 1
            reasons.append(over.judgement)
        if number % 1000 == 0:
            print(f"{number} rollouts, {rejected.total()} rolled back", flush=True)
    return tried, rejected, reasons


def _requests(world: World, step: Step, candidates: int, rng: np.random.Generator) -> list[float]:
    """The candidate's requests until it is rejected; infinite where the step was too short."""
    courses = [course(world, RULES, rng, [step]) for _ in range(candidates)]
    return [c.requests if c.judgement.outcome is Outcome.REJECT else math.inf for c in courses]


def _rank_test(mine: Any, other: Any) -> bool:
    """Mann and Whitney's at a nominal 2 %, one-sided."""
    wins = float(np.sum(mine[:, None] > other[None, :]))
    count = len(mine) * len(other)
    return (wins - count / 2) / math.sqrt(count * (len(mine) + len(other) + 1) / 12) > 2.054


def _slower(mine: Any, other: Any) -> bool:
    return bool(np.quantile(mine, 0.95) > 1.2 * np.quantile(other, 0.95))


def _times(steps: Sequence[Looks], judge: Any) -> bool:
    """Whether a judge of times objects to any window."""
    for looks in steps:
        mine, other = looks.latencies
        for n in range(len(mine) // _WINDOW):
            start = n * len(other) * _WINDOW // max(1, len(mine))
            there = other[start : start + _WINDOW]
            if len(there) == _WINDOW and judge(mine[n * _WINDOW : (n + 1) * _WINDOW], there):
                return True
    return False


def _over_threshold(steps: Sequence[Looks]) -> bool:
    """Whether more than the tolerated share of the errors' window was bad, ever."""
    for looks in steps:
        judged = bad = 0
        for counts in looks.counts:
            mine = [t for s, t in counts.items() if (s.revision, s.objective) == (CANDIDATE, Objective.ERROR_RATE)]
            judged, bad = judged + sum(t.judged for t in mine), bad + sum(t.bad for t in mine)
            if judged >= _WINDOW:
                if bad > RULES.targets[0].tolerated * judged:
                    return True
                judged = bad = 0
    return False


def _peers(rollouts: int, rng: np.random.Generator) -> dict[str, float]:
    """The share of rollouts of candidates that are no worse which the usual judges roll back."""
    found: Counter[str] = Counter()
    for _ in range(rollouts):
        steps = list(rollout(drawn(rng, _OBJECTIVES), rng))
        found["mann_whitney"] += _times(steps, _rank_test)
        found["p95_ratio"] += _times(steps, _slower)
        found["fixed_threshold"] += _over_threshold(steps)
    return {name: found[name] / rollouts for name in ("mann_whitney", "p95_ratio", "fixed_threshold")}


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures; the exit code tells whether a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--peers", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    medians, spread, targets = {}, {}, {}
    for rate, most, step in (*_DETECTING, _SLOW):
        requests = _requests(worse(rate), step, given.candidates * (10 if rate == _SLOW[0] else 1), rng)
        name = f"median_requests_{rate * 100:.0f}"
        medians[name], targets[name] = percentile(requests, 0.5), f"<= {most}"
        spread[name] = f"p10 {percentile(requests, 0.1):.0f}, p90 {percentile(requests, 0.9):.0f}"
        print(f"{name}: {medians[name]:.0f} ({spread[name]})", flush=True)
    unanswering_rng = np.random.default_rng(given.seed)
    for objective, share in _UNANSWERING:
        world, step = unanswering(objective, share), _DETECTING[1][2]
        requests = _requests(world, step, given.candidates, unanswering_rng)
        name = f"median_requests_{objective.value}_{share * 100:.0f}"
        medians[name] = percentile(requests, 0.5)
        spread[name] = f"p10 {percentile(requests, 0.1):.0f}, p90 {percentile(requests, 0.9):.0f}"
        print(f"{name}: {medians[name]:.0f} ({spread[name]})", flush=True)
    powers = [course(worse(0.02), RULES, rng).judgement.outcome for _ in range(max(1, given.candidates // 4))]
    peers = _peers(given.peers, rng)
    tried, rejected, reasons = _false_rollbacks(given.rollouts, rng)
    rate, bound = rejected.total() / given.rollouts, upper_bound(rejected.total(), given.rollouts)
    figures: dict[str, float] = {
        "false_rollback_rate": bound,
        **medians,
        "rejected_share_2": powers.count(Outcome.REJECT) / len(powers),
        "passed_share_2": powers.count(Outcome.PASS) / len(powers),
        "seen_false_rollback_rate": rate,
        **{f"seen_false_rollback_rate_{c:g}": rejected[c] / tried[c] for c in sorted(tried)},
        **{f"false_rollback_rate_{name}": share for name, share in peers.items()},
        "seen_false_rollback_rate_unnamed": sum(r.objective in COMPARED for r in reasons) / given.rollouts,
        "peers_ratio": min(peers.values()) / bound,
    }
    code = write(
        "analysis",
        figures,
        dict.fromkeys(medians, "requests"),
        targets={"false_rollback_rate": "<= 0.01", "passed_share_2": "<= 0.05", **targets},
        spread={
            "false_rollback_rate": f"{rejected.total()} of {given.rollouts}, upper 95 % bound",
            **spread,
            **{f"seen_false_rollback_rate_{c:g}": f"{rejected[c]} of {tried[c]}" for c in sorted(tried)},
        },
        note="simulated; medians: independent errors, 0.5 % of stable's, 1 % weight, two requests to the candidate a "
        "look; _clientErrors, _clientsLeft: refused or left, of stable's requests 2 and 5 %; _unnamed: rolled back for "
        "these; _0 to _0.8: by correlation; peers: one failed check of 60 answers rolls back; peers_ratio: the best of "
        "them to ours",
    )
    for reason in reasons[:5]:
        print(reason.sentence)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
