"""What the judge's promise is worth where users stay: how often a candidate that is no worse is rolled back.

Whole rollouts (1, 5, 25, 100 %) of answers of which 0.5 % are bad, judged by the operator's own judge by errors alone.
Users differ in how much they ask and how often it goes wrong, whoever answers them. Each world is tried twice: with
every request by chance, and with every user in one of 100 places for the whole rollout (routing.stickyBy).

python -m benchmarks.sticky_users [--rollouts N] [--seed N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.report import write
from tests.canaries import CANDIDATE, STABLE, STEPS, Array, Looks, Step, add, followed
from tuneyard.planning.analysis import Outcome, Rules, Target
from tuneyard.planning.evidence import Objective, Series, Tally
from tuneyard.planning.stickiness import PLACES

RULES = Rules((Target(Objective.ERROR_RATE, 0.01),), steps=len(STEPS))
RATE = 0.005
BEFORE = Step(0.0, 12_000, 60)


@dataclass(frozen=True)
class Users:
    """Shares of all requests, and of each one's own that go wrong."""

    shares: Array
    rates: Array


def _alike(_: np.random.Generator) -> Users:
    return Users(np.full(1000, 1 / 1000), np.full(1000, RATE))


def _of_their_own(shares: Array, shape: float, rng: np.random.Generator) -> Users:
    """Rates as a gamma distribution has them; the smaller its shape, the fewer have most of the bad answers."""
    rates = rng.gamma(shape, size=len(shares))
    return Users(shares, np.minimum(1.0, rates * RATE / float(np.dot(rates, shares))))


def _differing(rng: np.random.Generator) -> Users:
    return _of_their_own(np.full(1000, 1 / 1000), 1.0, rng)


def _lopsided(rng: np.random.Generator) -> Users:
    """The first of 10,000 asks a tenth of everything, the second half of that, and so on."""
    shares = 1 / np.arange(1, 10_001)
    return _of_their_own(shares / shares.sum(), 0.3, rng)


def _one_has_half(_: np.random.Generator) -> Users:
    """One user in a thousand asks 1 % of everything and has half of the bad answers."""
    others = 1000
    shares = np.concatenate([[0.01], np.full(others, 0.99 / others)])
    return Users(shares, np.concatenate([[RATE / 0.02], np.full(others, RATE / 2 / 0.99)]))


WORLDS: dict[str, Callable[[np.random.Generator], Users]] = {
    "alike": _alike,
    "differing": _differing,
    "lopsided": _lopsided,
    "one_has_half": _one_has_half,
}


def _looks(users: Users, places: Array | None, step: Step, rng: np.random.Generator) -> Looks:
    """One step; `places`: where each user stays, None: every request has a place by chance."""
    asking = rng.choice(len(users.shares), size=step.requests, p=users.shares)
    bad = rng.random(step.requests) < users.rates[asking]
    place = rng.integers(PLACES, size=step.requests) if places is None else places[asking]
    at = np.sort(rng.integers(step.looks, size=step.requests))
    counts: list[dict[Series, Tally]] = [{} for _ in range(step.looks)]
    for revision, theirs in ((CANDIDATE, place < step.weight * PLACES), (STABLE, place >= step.weight * PLACES)):
        if theirs.any():
            same = np.zeros(int(theirs.sum()), dtype=int)
            add(counts, Series(revision, Objective.ERROR_RATE), bad[theirs], (at[theirs], same, same))
    return Looks(step, counts, (np.zeros(0), np.zeros(0)))


def _rejected(world: Callable[[np.random.Generator], Users], stay: bool, rng: np.random.Generator) -> bool:
    users = world(rng)
    places = rng.integers(PLACES, size=len(users.shares)) if stay else None
    coming = (_looks(users, places, step, rng) for step in STEPS)
    return followed(_looks(users, places, BEFORE, rng), coming, RULES).judgement.outcome is Outcome.REJECT


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sticky_users", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    spread: dict[str, str] = {}
    for name, world in WORLDS.items():
        for way in ("chance", "users"):
            rng = np.random.default_rng(given.seed)
            hits = sum(_rejected(world, way == "users", rng) for _ in range(given.rollouts))
            figure = f"false_rollback_rate_{name}_by_{way}"
            figures[figure], spread[figure] = hits / given.rollouts, f"{hits} of {given.rollouts}"
            print(f"{figure}: {spread[figure]}", flush=True)
    note = "simulated; 0.5 % of all answers are bad, on both revisions"
    return write("sticky_users", figures, {}, spread=spread, note=note)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
