"""What gateways have counted, as evidence: how many answers of each revision were judged, and how many were bad.

A gateway judges each answer once per objective, good or bad, and counts in series: revision, objective, and how long
the prompt was. Rules:
- gateways give counters that only grow, from the start of their process on. A process is known by a name that it takes
  when it starts; what counts is the growth between two looks, so a restart loses what nobody had read and nothing else;
- a process that was there before anybody looked gives only its position at first: how much of what it has counted
  belongs to this rollout nobody knows. One that started after the last look counts from its beginning;
- one reading holds all series of a process at one moment. A gateway that does not answer for a while is therefore late
  for both revisions alike, and nothing that it tells afterwards is lopsided;
- where bad answers come in runs, five of them may be one mishap. So each gateway also counts the answers that came
  straight after a bad one of the same revision, and how many of those were bad again: what begins a run and what goes
  on with it are judged apart (sequential.py);
- while caches are cold, latencies tell of the cache: until warm-up is over they do not count, for either revision.
  Errors do from the first answer on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import NamedTuple

from tuneyard.api.documents import Counted


class Objective(StrEnum):
    """What an answer is judged by; the value of one that is named is its field in `rollout.analysis.slo`."""

    ERROR_RATE = "errorRate"
    TTFT = "ttft"
    ITL = "itl"
    E2E = "e2e"
    FEEDBACK = "feedback"
    CLIENT_ERRORS = "clientErrors"
    """Bad: the pod refused it with a status of 400 to 499."""
    CLIENTS_LEFT = "clientsLeft"
    """Bad: its client left before the answer was whole."""
    UNJUDGED = "unjudged"
    """Bad: no objective that is named could judge it."""


COMPARED = (Objective.CLIENT_ERRORS, Objective.CLIENTS_LEFT)
"""Nobody names them, and they are compared all the same. Whether a request deserves a refusal, and how patient its
client is, has nothing to do with who gets it: that is chance. So both revisions have as many, if they are as good."""
UNNAMED = frozenset({*COMPARED, Objective.UNJUDGED})
"""What is counted whatever the spec names; an older gateway does not."""

LATENCIES = frozenset({Objective.TTFT, Objective.ITL, Objective.E2E})

PROMPT_EDGES = (256, 1024, 4096, 16384)
"""Upper edges, in tokens, of the prompt lengths that are compared with each other; the last bucket has none."""


def prompt_bucket(tokens: int) -> int:
    """Which of the prompt lengths this is, 0 for the shortest."""
    return bisect_left(PROMPT_EDGES, tokens)


class Series(NamedTuple):
    """What one counter is about."""

    revision: str
    objective: Objective
    prompts: int = 0
    """The prompts' length, by `prompt_bucket`."""


class Tally(NamedTuple):
    """Answers that were judged by one objective."""

    judged: int = 0
    bad: int = 0
    after_bad: int = 0
    """Those whose predecessor, of the same revision through the same gateway, was bad."""
    again: int = 0
    """Those of them that were bad too."""

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(
            self.judged + other.judged,
            self.bad + other.bad,
            self.after_bad + other.after_bad,
            self.again + other.again,
        )

    def since(self, earlier: Tally) -> Tally:
        """What has come since; a counter that went back is one that began anew."""
        if self.judged < earlier.judged or self.bad < earlier.bad:
            return self
        return Tally(
            self.judged - earlier.judged,
            self.bad - earlier.bad,
            max(0, self.after_bad - earlier.after_bad),
            max(0, self.again - earlier.again),
        )

    @property
    def calm(self) -> int:
        """Answers that did not follow a bad one."""
        return self.judged - self.after_bad

    @property
    def starts(self) -> int:
        """Bad answers that began a run, most often of one."""
        return self.bad - self.again

    @property
    def rate(self) -> float:
        """The share of bad ones; 0 of none."""
        return self.bad / self.judged if self.judged else 0.0


NOTHING = Tally()


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    return reduce(Tally.plus, tallies, NOTHING)


Counts = Mapping[Series, Tally]

_OBJECTIVES = {o.value: o for o in Objective}


def read_counts(counted: Counted) -> dict[Series, Tally]:
    """Counters as documents have them; an objective that is not known here is not read."""
    return {
        Series(revision, _OBJECTIVES[objective], prompts): Tally(*numbers)
        for revision, by_objective in counted.items()
        for objective, by_prompts in by_objective.items()
        if objective in _OBJECTIVES
        for prompts, numbers in by_prompts.items()
    }


def written_counts(counts: Counts) -> Counted:
    """The same the other way."""
    found: Counted = {}
    for series, tally in counts.items():
        found.setdefault(series.revision, {}).setdefault(series.objective.value, {})[series.prompts] = (
            tally.judged,
            tally.bad,
            tally.after_bad,
            tally.again,
        )
    return found


@dataclass(frozen=True)
class Reading:
    """All counters of one gateway process at one moment. Times are seconds of one clock."""

    process: str
    """Another one after each restart."""
    started: float
    counts: Counts


@dataclass(frozen=True)
class Position:
    """How far gateways have been read."""

    looked: float | None = None
    """The last look; None: nobody has looked yet."""
    seen: Mapping[str, Counts] | None = None
    """Per process, its counters at that look."""


def growth(position: Position, readings: Iterable[Reading], now: float) -> tuple[Position, dict[Series, Tally]]:
    """What all gateways have counted since the last look, added up, and the position for the next one."""
    known = position.seen or {}
    seen: dict[str, Counts] = dict(known)
    grown: dict[Series, Tally] = {}
    for reading in readings:
        before = known.get(reading.process)
        seen[reading.process] = reading.counts
        if before is None:
            if position.looked is None or reading.started < position.looked:
                continue
            before = {}
        for series, tally in reading.counts.items():
            new = tally.since(before.get(series, NOTHING))
            if new.judged:
                grown[series] = grown.get(series, NOTHING).plus(new)
    return Position(now, seen), grown


def forgotten(position: Position, processes: Iterable[str]) -> Position:
    """The position without processes that are gone for good; `processes` are those that may still answer."""
    alive = set(processes)
    return Position(position.looked, {p: counts for p, counts in (position.seen or {}).items() if p in alive})


def warmed(counts: Counts, now: float, warm_at: float) -> dict[Series, Tally]:
    """The counts without latencies that were taken before `warm_at`."""
    if now >= warm_at:
        return dict(counts)
    return {series: tally for series, tally in counts.items() if series.objective not in LATENCIES}


class Pair(NamedTuple):
    """The same span of time and the same kind of prompts, of both revisions."""

    candidate: Tally = NOTHING
    stable: Tally = NOTHING

    def plus(self, other: Pair) -> Pair:
        """Both together."""
        return Pair(self.candidate.plus(other.candidate), self.stable.plus(other.stable))


NO_PAIR = Pair()


def pairs(counts: Counts, objective: Objective, candidate: str, stable: str) -> dict[int, Pair]:
    """Per prompt length, what an objective says of both revisions."""
    lengths = {series.prompts for series in counts if series.objective is objective}
    return {
        prompts: Pair(
            counts.get(Series(candidate, objective, prompts), NOTHING),
            counts.get(Series(stable, objective, prompts), NOTHING),
        )
        for prompts in lengths
    }
