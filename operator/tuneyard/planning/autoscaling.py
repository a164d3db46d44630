"""How many replicas a pool should have, by what is asked of it (`serving.autoscaling`).

Rules:
- each target says how many replicas it needs, the largest number counts. inFlightRequests, kvCacheUtilization and
  tokensPerSecond are proportional: so much in all, so much a replica. waitingRequests and ttft show only that there are
  too few: they ask for more once every replica that was asked for serves (what starts would be asked for twice), and
  for fewer by the requests under way at which they were missed last (`sustained`), or one at a time while nobody knows;
- while nothing waits, ttft asks for no more replicas than there are requests under way: with one each, a first token is
  late by its prompt alone, and no replica beside it makes that shorter;
- up at once (or after scaleUp.stabilizationWindow), by a bounded step in 15 s; down only when the load has asked for
  less through all of scaleDown's window, and no further than the most that it asked for in it. A tenth above or below a
  target changes nothing; a number of requests that is too high by no more than it scatters has to stay so for a minute;
- half knowledge raises and never lowers: while a gateway or an engine is silent, what is known is the least there is,
  and the window begins anew afterwards;
- never below `least` (minReplicas, the places that adapters need, what a rollout is about to send) and never above
  maxReplicas or what costCeiling pays for; who caps it is said;
- what is remembered stands in the pool's status, changes a few times in a window, and is bounded.
Pure; a status that is lost begins with as many replicas as there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from tuneyard.api.analysis import milliseconds
from tuneyard.api.autoscaling import (
    DEFAULT_DOWN_WINDOW,
    DEFAULT_UP_WINDOW,
    Autoscaling,
    AutoscalingTargets,
    Peak,
    ScalingRules,
    ScalingStatus,
)
from tuneyard.api.schema import seconds
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

TOLERANCE = 0.1
LOOK = 15.0
"""Seconds between two looks at what nobody tells of: that the load asks for less."""
STEP_SECONDS = 15.0
"""In which scaleUp.maxStep counts."""
LEAST_STEP = 4
"""Replicas that may be added at a time by default, where there are fewer than that."""
DOUBTFUL_SECONDS = 60.0
"""How long a number of requests has to be too high that may be so by chance."""
SUSTAINED_SECONDS = 6 * 3600.0
"""How long it is believed what a replica could not sustain."""
_PARTS = 8
"""Of a window of scaleDown, in each of which the most that was asked for is kept."""
_SPARE = 0.8
"""Share of what a replica could not sustain at which it surely does."""
_SCATTER = 1.5
"""Roots of a number of requests within which it comes and goes by chance: one in some thousand looks is beyond."""
_SPARE_SCATTER = 0.5
"""Roots that are left free beside the most of a window, where replicas are taken back."""
_TRIED = 0.5
"""Share of a target up to which one replica less is tried, while nobody knows what they sustain."""
_MOST_PEAKS = 12
_FASTEST = 2.0
"""Times as many replicas as there are, at most, for a first token that comes too late."""
_TINY = 1e-9


class Metric(StrEnum):
    """What targets are about; the value is the field's name."""

    IN_FLIGHT = "inFlightRequests"
    WAITING = "waitingRequests"
    KV_CACHE = "kvCacheUtilization"
    TOKENS = "tokensPerSecond"
    TTFT = "ttft"


PROPORTIONAL = (Metric.IN_FLIGHT, Metric.KV_CACHE, Metric.TOKENS)
ENGINES = frozenset({Metric.WAITING, Metric.KV_CACHE, Metric.TOKENS, Metric.TTFT})
"""Those for which engines are asked: also what waits beside a first token that comes late."""


@dataclass(frozen=True)
class Measured:
    """What is asked of a pool now, over all gateways and replicas; ttft in milliseconds, kvCacheUtilization in percent
    of one replica's cache.
    """

    values: Mapping[Metric, float] = field(default_factory=dict)
    """What there is at least."""
    whole: frozenset[Metric] = frozenset()
    """Those that everybody has told of."""


@dataclass(frozen=True)
class PoolNow:
    """A pool as it is."""

    replicas: int
    """How many it should have until now."""
    serving: int
    """How many of them serve."""
    least: int = 1
    """Below which it may not go for other reasons than its load."""
    least_reason: str = ""
    steady: bool = True
    """Whether replicas may be taken away: nothing is being replaced, and no rollout needs the way back."""


@dataclass(frozen=True)
class Scaled:
    """How many replicas from now on."""

    wanted: int
    reason: str
    state: ScalingStatus
    look: float | None = None
    """Seconds after which time alone may change it."""


@dataclass(frozen=True)
class _Case:
    """What a decision is made from."""

    settings: Autoscaling
    known: ScalingStatus
    current: int
    now: datetime


@dataclass(frozen=True)
class _Need:
    """What one target asks for."""

    more: int
    """Replicas without which it would be missed; 0: it does not say."""
    sure: int
    """The same without what may be chance."""
    fewer: int
    """Replicas with which it is surely kept."""
    words: str


def targets_of(targets: AutoscalingTargets | None) -> dict[Metric, float]:
    """What each replica should have to do."""
    given = targets or AutoscalingTargets()
    found = {
        Metric.IN_FLIGHT: given.in_flight_requests,
        Metric.WAITING: given.waiting_requests,
        Metric.KV_CACHE: given.kv_cache_utilization,
        Metric.TOKENS: given.tokens_per_second,
        Metric.TTFT: milliseconds(given.ttft.max) if given.ttft else None,
    }
    return {metric: float(value) for metric, value in found.items() if value is not None}


def most_replicas(settings: Autoscaling) -> int:
    """The most replicas there may be."""
    most, ceiling = settings.max_replicas or 1, settings.cost_ceiling
    if ceiling is None:
        return most
    return max(1, min(most, int(ceiling.per_hour / ceiling.per_replica_hour + _TINY)))


def least_replicas(settings: Autoscaling) -> int:
    """The fewest while the pool is awake."""
    return max(1, 1 if settings.min_replicas is None else settings.min_replicas)


def bounded(settings: Autoscaling, replicas: int) -> int:
    """The nearest number that there may be."""
    most = most_replicas(settings)
    return max(min(least_replicas(settings), most), min(most, replicas))


def for_load(target: float, load: float) -> int:
    """Replicas without which so much in all would be too much."""
    return math.ceil(load / (target * (1 + TOLERANCE)) - _TINY)


def surely(requests: float) -> float:
    """What is left of a number of requests without its scatter: they come at random, and a number goes up and down by
    its root though nobody asks more than before.
    """
    return max(min(requests, 1.0), requests - _SCATTER * math.sqrt(requests))


def enough_for(target: float, load: float) -> int:
    """Replicas that have no more than the target, with something to spare."""
    return math.ceil(load / (target * (1 - TOLERANCE)) - _TINY)


def decide(
    settings: Autoscaling, measured: Measured, pool: PoolNow, state: ScalingStatus | None, now: datetime
) -> Scaled:
    """How many replicas the pool should have from now on; `state`: what was remembered, None for nothing."""
    targets = targets_of(settings.targets)
    known = _learned(state or ScalingStatus(), targets, measured, pool, now)
    case = _Case(settings, known, max(1, pool.replicas), now)
    most = most_replicas(settings)
    least = min(most, max(least_replicas(settings), pool.least))
    needs = list(_needs(targets, measured, pool, known.sustained))
    up = max(needs, key=lambda n: n.more, default=_Need(0, 0, case.current, ""))
    if not least <= case.current <= most:
        return _into_bounds(case, least, most, pool, up.more)
    if up.more > case.current:
        return _raised(case, replace(up, sure=max(n.sure for n in needs)), most)
    fewer = max(least, *(n.fewer for n in needs)) if needs else case.current
    whole = bool(needs) and targets.keys() <= measured.whole
    if whole and pool.steady and fewer < case.current:
        return _lowered(case, fewer, needs)
    return _stays(case, up.more, None if case.current == least else LOOK)


def _needs(
    targets: Mapping[Metric, float], measured: Measured, pool: PoolNow, sustained: float | None
) -> Iterator[_Need]:
    current, all_serve = max(1, pool.replicas), pool.serving >= pool.replicas
    for metric, target in targets.items():
        value = measured.values.get(metric, 0.0)
        if metric in PROPORTIONAL:
            words = f"{metric.value} {_shown(metric, value)} in all, target {_shown(metric, target)} a replica"
            sure = for_load(target, surely(value) if metric is Metric.IN_FLIGHT else value)
            spare = _SPARE_SCATTER * math.sqrt(value) if metric is Metric.IN_FLIGHT else 0.0
            yield _Need(for_load(target, value), sure, enough_for(target, value + spare), words)
            continue
        each = metric is Metric.WAITING
        used = value / (target * current if each else target)
        # what is starting would be asked for twice: there is no more to be seen of it than of what is missing
        missed = used > 1 + TOLERANCE and all_serve
        more = max(current + 1, math.ceil(current * (used if each else min(_FASTEST, used)) - _TINY)) if missed else 0
        need = _Need(more, more, _fewer(used, measured, current, sustained), "")
        alone = None if each else _one_each(measured)
        words = f"{metric.value} {_shown(metric, value)}, target {_shown(metric, target)}{' a replica' if each else ''}"
        if alone is not None:
            least = (min(need.more, alone.more), min(need.sure, alone.sure), min(need.fewer, alone.fewer))
            need, words = _Need(*least, ""), f"{words}, {alone.words}"
        yield replace(need, words=words)


def _one_each(measured: Measured) -> _Need | None:
    """Replicas with which every request under way has one of its own; None where that is no bound: not all of them are
    known of, or some wait, for more than their own prompts.
    """
    if Metric.IN_FLIGHT not in measured.whole or measured.values.get(Metric.WAITING, 0.0) > 0:
        return None
    requests = measured.values.get(Metric.IN_FLIGHT, 0.0)
    # what is taken back while few come by chance would be asked for again
    spare = _SPARE_SCATTER * math.sqrt(requests)
    more, sure, fewer = (math.ceil(n - _TINY) for n in (requests, surely(requests), requests + spare))
    return _Need(more, sure, max(1, fewer), f"{requests:.0f} under way")


def _fewer(used: float, measured: Measured, current: int, sustained: float | None) -> int:
    """With how many replicas it goes on as well, by a target of which so much is used."""
    if used > 1 - TOLERANCE or Metric.IN_FLIGHT not in measured.whole:
        return current
    if sustained:
        in_flight = measured.values.get(Metric.IN_FLIGHT, 0.0)
        return max(1, math.ceil(in_flight / (sustained * _SPARE) - _TINY))
    return current - 1 if used <= _TRIED else current


def _learned(
    known: ScalingStatus, targets: Mapping[Metric, float], measured: Measured, pool: PoolNow, now: datetime
) -> ScalingStatus:
    """With what a replica could not sustain: less when they miss a target, more when they do not.

    Only what is seen while all of them serve says something of one.
    """
    noted = parsed_time(known.sustained_at)
    value = known.sustained if noted and remaining(noted, SUSTAINED_SECONDS, now) > 0 else None
    kept = {"sustained": value, "sustained_at": known.sustained_at if value is not None else None}
    asked = [m for m in (Metric.WAITING, Metric.TTFT) if m in targets]
    if asked and pool.serving >= pool.replicas and Metric.IN_FLIGHT in measured.whole:
        # what waits piles up without end, and is nothing that they sustain
        running = measured.values.get(Metric.IN_FLIGHT, 0.0) - measured.values.get(Metric.WAITING, 0.0)
        each = round(max(0.0, running) / max(1, pool.serving), 1)
        limits = {m: targets[m] * (max(1, pool.replicas) if m is Metric.WAITING else 1) for m in asked}
        missed = any(measured.values.get(m, 0.0) > limit * (1 + TOLERANCE) for m, limit in limits.items())
        lower = missed and each > 0 and (value is None or each < value * (1 - TOLERANCE))
        higher = not missed and value is not None and each > value * (1 + TOLERANCE)
        kept = {"sustained": each, "sustained_at": rfc3339(now)} if lower or higher else kept
    return known.model_copy(update=kept)


def _stays(case: _Case, asked_for: int, look: float | None) -> Scaled:
    """As it is; what had begun to point elsewhere begins anew."""
    calm = {"higher_since": None, "lower_since": None, "peaks": None, "limit": _limit(case.settings, asked_for)}
    return Scaled(case.current, "", case.known.model_copy(update=calm), look)


def _into_bounds(case: _Case, least: int, most: int, pool: PoolNow, asked_for: int) -> Scaled:
    """What the bounds leave, at once: they were edited, or something else needs replicas."""
    target = min(most, max(least, case.current))
    words = pool.least_reason if target == pool.least and pool.least_reason else ""
    return _changed(case, target, words or f"{least} to {most} replicas are allowed", asked_for)


def _raised(case: _Case, need: _Need, most: int) -> Scaled:
    """More: what is sure at once or when that has been asked for long enough, the rest after a minute; by one step."""
    rules, known, now = case.settings.scale_up or ScalingRules(), case.known, case.now
    since = parsed_time(known.higher_since) or now
    update = {
        "higher_since": None if case.current == most else rfc3339(since),
        "lower_since": None,
        "peaks": None,
        "limit": _limit(case.settings, need.more),
    }
    waits = Scaled(case.current, "", known.model_copy(update=update), LOOK)
    window = float(seconds(rules.stabilization_window or DEFAULT_UP_WINDOW))
    lasts = remaining(since, max(window, DOUBTFUL_SECONDS), now) <= 0
    goal = min(most, need.more if lasts else need.sure)
    left = remaining(since, window, now)
    if goal <= case.current or left > 0:
        return replace(waits, look=min(LOOK, left + 1.0) if left > 0 else LOOK)
    changed, begun = parsed_time(known.since), known.from_replicas
    step_left = remaining(changed, STEP_SECONDS, now) if changed and begun and begun < case.current else 0.0
    start = begun if step_left > 0 and begun else case.current
    target = min(goal, start + (rules.max_step or max(LEAST_STEP, start)))
    if target <= case.current:
        return replace(waits, look=min(LOOK, step_left + 1.0))
    found = _changed(case, target, need.words, need.more)
    # a step that was begun goes on, its time and its start stay; and so does the time for which more was asked for
    kept: dict[str, object] = {"higher_since": rfc3339(since)} if min(most, need.more) > target else {}
    kept |= {"since": known.since, "from_replicas": begun} if step_left > 0 else {}
    return replace(found, state=found.state.model_copy(update=kept))


def _lowered(case: _Case, target: int, needs: Iterable[_Need]) -> Scaled:
    """Fewer, once the most that was asked for in the window allows it."""
    rules, known, now = case.settings.scale_down or ScalingRules(), case.known, case.now
    text = rules.stabilization_window or DEFAULT_DOWN_WINDOW
    window = float(seconds(text))
    since = parsed_time(known.lower_since) or now
    peaks = _with_peak(known.peaks or [], target, window, now)
    falling = {"higher_since": None, "limit": None, "lower_since": rfc3339(since), "peaks": peaks}
    state = known.model_copy(update=falling)
    left = remaining(since, window, now)
    lowest = max(p.replicas for p in peaks)
    if left > 0 or lowest >= case.current:
        return Scaled(case.current, "", state, min(LOOK, left + 1.0) if left > 0 else LOOK)
    to_be = max(lowest, case.current - (rules.max_step or case.current))
    words = "; ".join(n.words for n in needs)
    found = _changed(case, to_be, f"{words}: {to_be} would have done for {text}", 0)
    if to_be > lowest:
        return found
    # the window goes on: what it held for long stays known
    return replace(found, state=found.state.model_copy(update={"lower_since": rfc3339(since), "peaks": peaks}))


def _with_peak(peaks: Iterable[Peak], replicas: int, window: float, now: datetime) -> list[Peak]:
    """The most that was asked for in each part of the window, without those that a later part has as much as.

    A part counts until the window is over after its end, so that no moment of it is forgotten too early.
    """
    part = max(1.0, window / _PARTS)
    at = rfc3339(datetime.fromtimestamp(math.ceil(now.timestamp() / part) * part, UTC))
    counting = [p for p in peaks if _counts(p, window, now)]
    mine = max([replicas, *(p.replicas for p in counting if p.at == at)])
    return [*(p for p in counting if p.at != at and p.replicas > mine), Peak(at=at, replicas=mine)][-_MOST_PEAKS:]


def _counts(peak: Peak, window: float, now: datetime) -> bool:
    at = parsed_time(peak.at)
    return at is not None and remaining(at, window, now) > 0


def _changed(case: _Case, target: int, words: str, asked_for: int) -> Scaled:
    """Another number from now on."""
    update = {
        "since": rfc3339(case.now),
        "from_replicas": case.current,
        "limit": _limit(case.settings, asked_for),
        "higher_since": None,
        "lower_since": None,
        "peaks": None,
    }
    return Scaled(target, words, case.known.model_copy(update=update), LOOK)


def _limit(settings: Autoscaling, asked_for: int) -> str | None:
    """What keeps it from having as many as the load asks for."""
    most = most_replicas(settings)
    if asked_for <= most:
        return None
    return "CostCeiling" if most < (settings.max_replicas or 1) else "MaxReplicas"


def _shown(metric: Metric, value: float) -> str:
    return f"{value:.0f}{' ms' if metric is Metric.TTFT else ' %' if metric is Metric.KV_CACHE else ''}"
