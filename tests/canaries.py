"""Whole rollouts as gateways would count them, drawn from a seed: what the analysis is tried on.

Every answer has one latent number for each objective, and is bad where that lies below the rate of its moment and its
prompt length. What makes it hard:
- the numbers of one revision depend on each other in the order of its answers: errors as a Markov chain (the last
  number comes again with chance `correlation`), latencies as an autoregression of Gaussians;
- rates drift by a factor of two and back, and now and then an outage hits both revisions;
- longer prompts are bad more often, and the revisions do not get the same mixture of lengths;
- answers pass through several gateways, each of which sees its own order;
- users send what has to be refused, and leave before answers are whole (`nuisance`): as often to either revision, in
  runs and with drifts and outages like all else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from tuneyard.planning.analysis import Analysis, Judgement, Outcome, Rules, Sight, begun, judged, observed, stepped
from tuneyard.planning.evidence import COMPARED, LATENCIES, Objective, Series, Tally

CANDIDATE, STABLE = "v3", "v2"
LENGTHS = 3
_PROMPT_FACTORS = np.array([0.5, 1.0, 3.0])
_RATES = np.logspace(-6, 0, 400)[:-1]
_QUANTILES = np.array([NormalDist().inv_cdf(r) for r in _RATES])
LOOK_SECONDS = 5.0

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Step:
    """A part of a rollout: its weight, all requests of both revisions in it, and how often gateways are looked at."""

    weight: float
    requests: int
    looks: int


STEPS = (Step(0.01, 15_000, 45), Step(0.05, 6_000, 25), Step(0.25, 4_000, 20), Step(1.0, 3_000, 15))


@dataclass(frozen=True)
class World:
    """What one rollout is like."""

    rates: Mapping[Objective, float]
    """Of stable's bad answers, over all its prompts, on average."""
    factors: Mapping[Objective, float] = field(default_factory=dict)
    """How much more often the candidate's are bad; none: the same."""
    nuisance: Mapping[Objective, float] = field(default_factory=dict)
    """The same of what nobody names: shares of refused requests, and of those whose clients left."""
    correlation: float = 0.0
    drift: float = 1.0
    """The largest factor by which rates rise and fall."""
    outage: bool = False
    gateways: int = 1
    mixture: tuple[Sequence[float], Sequence[float]] = ((0.4, 0.4, 0.2), (0.4, 0.4, 0.2))
    """Shares of the prompt lengths, of the candidate and of stable."""


def drawn(rng: np.random.Generator, objectives: Sequence[Objective]) -> World:
    """Any world whose candidate is no worse."""
    return World(
        rates={o: float(np.exp(rng.uniform(np.log(0.001), np.log(0.03)))) for o in objectives},
        nuisance=_nuisance(rng),
        correlation=float(rng.choice([0.0, 0.3, 0.6, 0.8])),
        drift=float(rng.choice([1.0, 2.0])),
        outage=bool(rng.random() < 0.2),
        gateways=int(rng.choice([1, 2, 3])),
        mixture=(tuple(rng.dirichlet([4, 4, 2])), tuple(rng.dirichlet([4, 4, 2]))),
    )


def _nuisance(rng: np.random.Generator) -> dict[Objective, float]:
    """Up to a fifth is refused, and up to a third left. It takes no numbers from those that draw the rest."""
    most = {Objective.CLIENT_ERRORS: 0.2, Objective.CLIENTS_LEFT: 0.33}
    (own,) = rng.spawn(1)
    return {o: float(np.exp(own.uniform(np.log(0.001), np.log(most[o])))) for o in COMPARED}


_USUAL = {Objective.CLIENT_ERRORS: 0.02, Objective.CLIENTS_LEFT: 0.05}
_EVEN = (0.0, 1.0, 0.0)


def worse(rate: float) -> World:
    """One whose candidate has that share of errors, where stable has 0.5 %; all prompts are of one length."""
    factors = {Objective.ERROR_RATE: rate / 0.005}
    return World({Objective.ERROR_RATE: 0.005}, factors, _USUAL, mixture=(_EVEN, _EVEN))


def unanswering(objective: Objective, rate: float) -> World:
    """One whose candidate refuses that share of the requests, or loses the clients of as many; stable 2 and 5 %."""
    factors = {objective: rate / _USUAL[objective]}
    return World({Objective.ERROR_RATE: 0.005}, factors, _USUAL, mixture=(_EVEN, _EVEN))


@dataclass(frozen=True)
class Looks:
    """The growth of all counters, look by look, of one step."""

    step: Step
    counts: Sequence[dict[Series, Tally]]
    latencies: tuple[Array, Array]
    """Of both revisions in the order of their answers, in units of nothing: for judges that compare times."""


def before(world: World, rng: np.random.Generator, *, looks: int = 60, requests: int = 12_000) -> Looks:
    """Stable alone, before the rollout."""
    return _looks(world, rng, Step(0.0, requests, looks))


def rollout(world: World, rng: np.random.Generator, steps: Sequence[Step] = STEPS) -> Iterator[Looks]:
    """Step by step, as long as somebody asks for more."""
    for step in steps:
        yield _looks(world, rng, step)


def _looks(world: World, rng: np.random.Generator, step: Step) -> Looks:
    mine = int(rng.binomial(step.requests, step.weight))
    rises = _rises(world, rng, step.looks)
    counts: list[dict[Series, Tally]] = [{} for _ in range(step.looks)]
    latencies: list[Array] = []
    (own,) = rng.spawn(1)
    draws = [(rng, *rate) for rate in world.rates.items()] + [(own, *rate) for rate in world.nuisance.items()]
    for revision, requests, mixture in (
        (CANDIDATE, mine, world.mixture[0]),
        (STABLE, step.requests - mine, world.mixture[1]),
    ):
        if not requests:
            latencies.append(np.zeros(0))
            continue
        lengths = rng.choice(LENGTHS, size=requests, p=np.asarray(mixture))
        at = np.sort(rng.integers(step.looks, size=requests))
        gateways = rng.integers(world.gateways, size=requests)
        for numbers, objective, rate in draws:
            factor = world.factors.get(objective, 1.0) if revision == CANDIDATE else 1.0
            even = float(np.dot(_PROMPT_FACTORS, world.mixture[1]))
            chances = np.minimum(1.0, rate * factor * _PROMPT_FACTORS[lengths] / even * rises[at])
            latent = _latent(numbers, requests, world.correlation, gaussian=objective in LATENCIES)
            bad = latent < (np.interp(chances, _RATES, _QUANTILES) if objective in LATENCIES else chances)
            add(counts, Series(revision, objective), bad, (at, lengths, gateways))
            if objective is Objective.TTFT:
                latencies.append(np.exp(-0.5 * latent))
    return Looks(step, counts, (latencies[0], latencies[1]) if len(latencies) == 2 else (np.zeros(0), np.zeros(0)))


def _rises(world: World, rng: np.random.Generator, looks: int) -> Array:
    """The factor of all rates at each look."""
    waves = np.sin(2 * np.pi * (rng.random() + np.arange(looks) / looks * rng.uniform(0.5, 2)))
    rises: Array = world.drift**waves
    if world.outage:
        rises[int(rng.integers(looks))] *= 20
    return rises


def _latent(rng: np.random.Generator, size: int, correlation: float, *, gaussian: bool) -> Array:
    if gaussian:
        numbers: Array = rng.standard_normal(size)
        numbers[1:] *= np.sqrt(1 - correlation**2)
        shift, weight = 1, correlation
        while weight > 1e-9 and shift < size:  # the sum of all powers, by doubling
            numbers[shift:] = numbers[shift:] + weight * numbers[:-shift]
            shift, weight = 2 * shift, weight * weight
        return numbers
    fresh = rng.random(size) >= correlation
    fresh[0] = True
    uniform: Array = rng.random(size)
    return uniform[np.maximum.accumulate(np.where(fresh, np.arange(size), 0))]


def add(counts: list[dict[Series, Tally]], series: Series, bad: Array, places: tuple[Array, Array, Array]) -> None:
    """Count as each gateway would, and add the gateways up."""
    at, lengths, gateways = places
    after = np.zeros(len(bad), dtype=bool)
    for gateway in range(int(gateways.max()) + 1):
        own = np.flatnonzero(gateways == gateway)
        after[own[1:]] = bad[own[:-1]]
    key = at * LENGTHS + lengths
    columns = [
        np.bincount(key[which], minlength=len(counts) * LENGTHS).tolist()
        for which in (slice(None), bad, after, bad & after)
    ]
    for number, row in enumerate(zip(*columns, strict=True)):
        if row[0]:
            look, length = divmod(number, LENGTHS)
            counts[look][series._replace(prompts=length)] = Tally(*row)


@dataclass(frozen=True)
class Course:
    """How a rollout went."""

    judgement: Judgement
    requests: int
    """The candidate's, when it was over."""
    weight: float
    """The candidate's share then."""


def course(world: World, rules: Rules, rng: np.random.Generator, steps: Sequence[Step] = STEPS) -> Course:
    """A whole rollout, judged at every look until it is rejected or through."""
    return followed(before(world, rng), rollout(world, rng, steps), rules)


def followed(past: Looks, coming: Iterable[Looks], rules: Rules) -> Course:
    """The same of looks that somebody else has drawn: stable alone, then step by step."""
    history = Analysis(CANDIDATE, STABLE)
    now = 0.0
    for counts in past.counts:
        history = observed(history, rules, Sight(now, counts))
        now += LOOK_SECONDS
    analysis = begun(history, now)
    requests = 0
    for number, looks in enumerate(coming):
        if number:
            analysis = stepped(analysis, now, alone=looks.step.weight == 1)
        for counts in looks.counts:
            sight = Sight(now, counts)
            analysis = observed(analysis, rules, sight)
            judgement = judged(analysis, rules, sight)
            now += LOOK_SECONDS
            first = rules.targets[0].objective
            requests += sum(t.judged for s, t in counts.items() if (s.revision, s.objective) == (CANDIDATE, first))
            if judgement.outcome is Outcome.REJECT:
                return Course(judgement, requests, looks.step.weight)
    return Course(judgement, requests, looks.step.weight)


_SLOW = (5.0, 30.0)
"""Seconds that a good answer takes; a bad one takes none."""


def slow_answers(
    rng: np.random.Generator, asked: Mapping[str, tuple[float, float]], seconds: int, before: Mapping[str, float]
) -> list[dict[Series, Tally]]:
    """Second by second what ends, of one gateway, from a change of weights on.

    `asked`: per revision its requests a second and its share of errors; `before`: its requests a second before, where
    those that began then are counted too.
    """
    counts: list[dict[Series, Tally]] = [{} for _ in range(seconds)]
    for revision, (rate, errors) in asked.items():
        old = rng.uniform(-_SLOW[1], 0, rng.poisson(before.get(revision, 0.0) * _SLOW[1]))
        began = np.concatenate([old, rng.uniform(0, seconds, rng.poisson(rate * seconds))])
        bad = rng.random(len(began)) < errors
        ends = began + np.where(bad, 0.0, rng.uniform(*_SLOW, len(began)))
        order = np.argsort(ends)
        order = order[(ends[order] >= 0) & (ends[order] < seconds)]
        same = np.zeros(len(order), dtype=int)
        if len(order):
            add(counts, Series(revision, Objective.ERROR_RATE), bad[order], (ends[order].astype(int), same, same))
    return counts
