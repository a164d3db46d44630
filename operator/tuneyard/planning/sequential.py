"""The test: is a candidate worse than stable is at the same time? It may be asked at every look, as long as one likes.

The promise to be refuted is that a candidate's answers are bad no more often than stable's in the same seconds, for
prompts of the same length. Under it a bad answer is the candidate's only as often as its share of the answers says.
Whoever bets against it with a capital of 1 has, after a block of answers,

    ratio ** (bad ones of the candidate) / (1 - share + share * ratio) ** (bad ones of both)

times as much, and on average no more than before, whatever stable's rate is and however it drifts from block to block:
given how many were bad in a block, the candidate's part of them is hypergeometric, and then the mean of `ratio ** part`
is at most the denominator (Hoeffding 1963). So the chance that the capital ever reaches 1/alpha is at most alpha
(Ville 1939), and neither stable's rate nor a variance has to be known. Rules:
- blocks of several prompt lengths multiply, and nothing is added up over them before: another mixture of prompts is no
  evidence (Simpson's paradox);
- several ratios are bet on at once, each with its share of the capital; a sum of fair bets is fair;
- blocks are closed by how many answers they hold and by age, never by how many were bad, and never reach over a change
  of weights.

Bad answers come in runs. The above therefore looks at answers that do not follow a bad one: at what begins a run.
Whether a run goes on is a bet of its own, against the promise that its chance to is no larger than stable's last runs
allow. For answers that depend on the one before (a Markov chain, whatever its correlation) both are fair. Just after a
change of weights errors have ended and good answers have not: what has ended then is one long run, of both revisions.
So a run may also go on as often as stable's answers have been bad since the step began, as far as that is known. What
lasts longer, or is spread over several gateways, shows in stable's beginnings: they vary more from look to look than
independent ones would, and all factors are taken to the power of 1 through that (`Spread`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tuneyard.planning.evidence import NO_PAIR, NOTHING, Pair, Tally, total

UNKNOWN_RUNS = 0.5
"""The chance that a run goes on, while stable has shown too few to tell."""
_RUNS_REMEMBERED = 60.0
"""Answers after bad ones that the memory holds; older ones fade, because what makes runs changes."""
_RUNS_ENOUGH = 20.0
_RUNS_DOUBT = math.log(1000)
"""The bound on runs is wrong once in a thousand."""

_LOOKS_REMEMBERED = 240.0
_SPREAD_DOUBT = 2.0
"""Standard errors by which the spread must differ from that of independent answers before it counts."""

_BLOCK_STABLE = 200
_BLOCK_CANDIDATE = 5
"""Answers of either that close a block, if there is one of the candidate: fewer would say too little of its share."""
_BLOCK_SECONDS = 300.0
"""After that long a block is closed with what it has: rates may have drifted."""


@dataclass(frozen=True)
class Bet:
    """That the candidate is bad `ratio` times as often, and that its runs go on with a chance of `runs`."""

    ratio: float
    share: float
    """Of the capital in the beginning."""
    runs: float = 0.0
    """0: nothing is set on runs."""


BETS = (Bet(2, 0.02), Bet(5, 0.92), Bet(12, 0.02), Bet(40, 0.02, runs=0.5), Bet(100, 0.02, runs=0.97))
"""Most is set on the smallest difference that is to be found fast; larger ones pay so well that a little will do."""
_MAIN = 1

Logs = tuple[float, ...]
"""Per bet, the logarithm of a factor."""


@dataclass(frozen=True)
class Runs:
    """How often stable's bad answers were followed by another one."""

    after_bad: float = 0.0
    again: float = 0.0

    def seen(self, stable: Tally) -> Runs:
        """With what has come since."""
        if not stable.after_bad:
            return self
        keep = min(1.0, max(0.0, _RUNS_REMEMBERED - stable.after_bad) / self.after_bad) if self.after_bad else 0.0
        return Runs(self.after_bad * keep + stable.after_bad, self.again * keep + stable.again)

    def limit(self) -> float:
        """The chance that a run goes on, at most."""
        known = min(self.after_bad, _RUNS_REMEMBERED)
        bound = _upper(self.again / self.after_bad, known) if known else 1.0
        return bound if known >= _RUNS_ENOUGH else min(bound, UNKNOWN_RUNS)


NO_RUNS = Runs()


def _upper(rate: float, count: float) -> float:
    """The largest chance that `rate` of `count` does not refute (Chernoff)."""
    low, high = rate, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if count * divergence(rate, middle) > _RUNS_DOUBT else (middle, high)
    return high


def _rate_limit(tally: Tally) -> float:
    """The share of bad answers, at most; 1 where none is known."""
    return _upper(tally.rate, tally.judged) if tally.judged else 1.0


def divergence(rate: float, other: float) -> float:
    """Kullback and Leibler's, from a chance to another one above it; nats."""
    total = rate * math.log(rate / other) if rate > 0 else 0.0
    if rate < 1:
        total += (1 - rate) * math.log((1 - rate) / (1 - other)) if other < 1 else math.inf
    return total


@dataclass(frozen=True)
class Spread:
    """By how much more the number of stable's runs varies from look to look than that of independent ones.

    Neighbouring looks are compared, so that a rate that drifts, for both revisions, does not count as variation.
    """

    squares: float = 0.0
    expected: float = 0.0
    variance: float = 0.0
    """Of `squares`, were they independent."""
    last: Tally = NOTHING

    def seen(self, stable: Tally) -> Spread:
        """With the next look."""
        if not stable.calm:
            return self
        if not self.last.calm:
            return replace(self, last=stable)
        share = self.last.calm / (self.last.calm + stable.calm)
        both, even = self.last.starts + stable.starts, share * (1 - share)
        mean = both * even
        keep = 1 - 1 / _LOOKS_REMEMBERED
        return Spread(
            self.squares * keep + (self.last.starts - both * share) ** 2,
            self.expected * keep + mean,
            self.variance * keep + max(0.0, mean * (1 - 6 * even) + 2 * mean * mean),
            stable,
        )

    @property
    def factor(self) -> float:
        """1 where independent ones may vary as much."""
        if not self.expected:
            return 1.0
        ratio, doubt = self.squares / self.expected, math.sqrt(self.variance) / self.expected
        return ratio if ratio > 1 + _SPREAD_DOUBT * doubt else 1.0


NO_SPREAD = Spread()


@dataclass(frozen=True)
class Capital:
    """What the bets have become, and all answers that came meanwhile."""

    logs: Logs = (0.0,) * len(BETS)
    seen: Pair = NO_PAIR

    def after(self, factors: Logs, seen: Pair) -> Capital:
        """With factors that were won or lost, and with answers that came."""
        logs = tuple(old + new for old, new in zip(self.logs, factors, strict=True)) if factors else self.logs
        return Capital(logs, self.seen.plus(seen))

    @property
    def log(self) -> float:
        """All bets together; natural logarithm."""
        top = max(self.logs)
        return top + math.log(sum(b.share * math.exp(log - top) for b, log in zip(BETS, self.logs, strict=True)))

    @property
    def main_log(self) -> float:
        """The bet on the difference that is to be found fast, alone: when it is lost there is no such difference."""
        return self.logs[_MAIN]


NEW = Capital()


def beginnings(block: Pair, spread: float = 1.0) -> Logs:
    """Factors for the runs that began in a block; empty where they are all 1."""
    mine, both = block.candidate.starts, block.candidate.starts + block.stable.starts
    answers = block.candidate.calm + block.stable.calm
    if not both or not answers:
        return ()
    share = block.candidate.calm / answers
    return tuple((mine * math.log(b.ratio) - both * math.log1p(share * (b.ratio - 1))) / spread for b in BETS)


def beginnings_above(rate: float, tally: Tally, spread: float = 1.0) -> Logs:
    """The same against the promise that answers are bad no more often than a fixed rate; there is no stable."""
    return tuple(
        (tally.starts * math.log(b.ratio) - tally.calm * math.log1p(rate * (b.ratio - 1))) / spread for b in BETS
    )


def continuations(candidate: Tally, limit: float) -> Logs:
    """Factors for what came straight after the candidate's bad answers; empty where they are all 1."""
    if not candidate.after_bad:
        return ()
    ended = candidate.after_bad - candidate.again
    return tuple(
        candidate.again * math.log(b.runs / limit) + ended * math.log((1 - b.runs) / (1 - limit))
        if b.runs > limit
        else 0.0
        for b in BETS
    )


@dataclass(frozen=True)
class Comparison:
    """One objective of a rollout until now. Keys are prompt lengths."""

    whole: Capital = NEW
    """Since the candidate's first answer."""
    step: Capital = NEW
    """Since this step began: what goes wrong late is not excused by what went well before."""
    runs: Mapping[int, Runs] = field(default_factory=dict)
    spread: Spread = NO_SPREAD
    blocks: Mapping[int, Pair] = field(default_factory=dict)
    """Those that are not closed."""
    since: float = 0.0
    """When the oldest of them may have begun."""

    def look(self, counts: Mapping[int, Pair], now: float) -> Comparison:
        """With what one look has brought. Stable's answers count also before the candidate has any: for its runs."""
        whole, step = self.whole, self.step
        runs, blocks = dict(self.runs), dict(self.blocks)
        late = now - self.since >= _BLOCK_SECONDS
        usual = _rate_limit(self.step.seen.stable.plus(total(p.stable for p in counts.values())))
        for prompts, pair in counts.items():
            runs[prompts] = runs.get(prompts, NO_RUNS).seen(pair.stable)
            blocks[prompts] = blocks.get(prompts, NO_PAIR).plus(pair)
            limit = max(usual, runs[prompts].limit()) if pair.candidate.after_bad else 1.0
            factors = continuations(pair.candidate, limit)
            whole, step = whole.after(factors, pair), step.after(factors, pair)
        for prompts, block in list(blocks.items()):
            if late or _complete(block):
                factors = beginnings(block, self.spread.factor)
                whole, step = whole.after(factors, NO_PAIR), step.after(factors, NO_PAIR)
                del blocks[prompts]
        spread = self.spread.seen(total(p.stable for p in counts.values()))
        return Comparison(whole, step, runs, spread, blocks, now if late else self.since)

    def next_step(self, now: float) -> Comparison:
        """At a change of weights."""
        whole = self.whole
        for block in self.blocks.values():
            whole = whole.after(beginnings(block, self.spread.factor), NO_PAIR)
        return Comparison(whole, NEW, self.runs, self.spread, {}, now)


def _complete(block: Pair) -> bool:
    calm = block.candidate.calm
    return calm >= _BLOCK_CANDIDATE or (calm > 0 and block.stable.calm >= _BLOCK_STABLE)


@dataclass(frozen=True)
class Watch:
    """One revision against a fixed rate, over all prompt lengths: where nothing else serves, or for stable itself."""

    capital: Capital = NEW
    runs: Runs = NO_RUNS
    spread: Spread = NO_SPREAD

    def look(self, tally: Tally, rate: float) -> Watch:
        """With what one look has brought; `rate` is what is tolerated."""
        factors = continuations(tally, self.runs.limit())
        capital = self.capital.after(factors, NO_PAIR)
        return replace(self, capital=capital.after(beginnings_above(rate, tally, self.spread.factor), Pair(tally)))


def watch_after(comparison: Comparison) -> Watch:
    """The watch over a candidate that has got all traffic: nobody else shows any more how runs go on."""
    known = comparison.runs.values()
    runs = Runs(sum(r.after_bad for r in known), sum(r.again for r in known))
    return Watch(NEW, runs, comparison.spread)
