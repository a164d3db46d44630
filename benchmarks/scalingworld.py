"""A pool under a day's load, simulated: requests come, run or wait, and pods take a while to start.

Requests come at random (Poisson) with a rate that follows a pattern; each pod runs SLOTS at once, each for SERVICE
seconds on average; the rest waits. New pods serve STARTUP seconds after they were asked for; what goes, goes at once
and finishes what it has. One step is STEP seconds: gateways smooth what they tell over about as long.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Protocol

from tuneyard.api.autoscaling import Autoscaling, ScalingStatus
from tuneyard.planning.autoscaling import LOOK, TOLERANCE, Measured, Metric, PoolNow, decide, targets_of

DAY = 24 * 3600
STEP = 5.0
SLOTS = 16
SERVICE = 10.0
STARTUP = 120.0
BEARABLE = 2.0
"""Seconds that a request may wait: what waits longer misses its objective."""
MEAN = 120.0
"""Seconds over which the mean of what waits is taken."""
HPA_SYNC, HPA_TOLERANCE, HPA_DOWN = 15.0, 0.1, 300.0
_T0 = datetime(2026, 1, 1, tzinfo=UTC)

Pattern = Callable[[float], float]
"""Seconds of the day -> replicas' worth of requests."""


def steady(_seed: int) -> Pattern:
    """The same all day."""
    return lambda _: 6.0


def sawtooth(_seed: int) -> Pattern:
    """Up for two hours, then down at once."""
    return lambda at: 1.0 + 9.0 * (at % 7200) / 7200


def bursty(seed: int) -> Pattern:
    """Quiet, and about once an hour four times as much for some minutes."""
    random_ = random.Random(seed)
    bursts, at = [], 0.0
    while at < DAY:
        at += random_.uniform(1800, 5400)
        bursts.append((at, at + random_.uniform(300, 1200)))
    return lambda now: 8.0 if any(a <= now < b for a, b in bursts) else 2.0


PATTERNS: dict[str, Callable[[int], Pattern]] = {"steady": steady, "bursty": bursty, "sawtooth": sawtooth}


class Scaler(Protocol):
    """Who decides on replicas."""

    def wants(self, now: float, replicas: int, ready: int, seen: dict[Metric, float]) -> int:
        """How many there should be from now on."""


class Ours:
    """The operator's own rule: woken for more as soon as gateways tell, looking for less when it says."""

    def __init__(self, settings: Autoscaling) -> None:
        self.settings, self.state = settings, ScalingStatus()
        self._whole = frozenset(Metric)
        self.writes = 0
        """Changes of what stands in the status."""
        self._look = 0.0
        self._targets = targets_of(settings.targets)

    def wants(self, now: float, replicas: int, ready: int, seen: dict[Metric, float]) -> int:
        """As the operator does: more in the pass that it is woken for, fewer when it looks."""
        if now < self._look and not any(self._asks_for_more(seen, replicas)):
            return replicas
        pool = PoolNow(replicas, ready)
        found = decide(self.settings, Measured(seen, self._whole), pool, self.state, _T0 + timedelta(seconds=now))
        self._look = now + (LOOK if found.look is None else found.look)
        self.writes += found.state != self.state
        self.state = found.state
        return found.wanted

    def _asks_for_more(self, seen: dict[Metric, float], replicas: int) -> Iterator[bool]:
        """Whether the operator is woken."""
        for metric, target in self._targets.items():
            yield seen[metric] > target * replicas * (1 + TOLERANCE)


class Hpa:
    """The documented rule of a HorizontalPodAutoscaler (autoscaling/v2) with its defaults, over an external metric with
    an AverageValue: ceil(sum / target), nothing within a tenth, the highest of five minutes on the way down, and on the
    way up twice as many or four more in 15 s.
    """

    def __init__(self, settings: Autoscaling) -> None:
        self._targets = targets_of(settings.targets)
        self._least, self._most = settings.min_replicas or 1, settings.max_replicas or 1
        self._said: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        self._next = 0.0

    def wants(self, now: float, replicas: int, ready: int, seen: dict[Metric, float]) -> int:
        """Every 15 s."""
        del ready
        if now < self._next:
            return replicas
        self._next = now + HPA_SYNC
        desired = max(self._of(metric, target, seen, replicas) for metric, target in self._targets.items())
        self._said.append((now, desired))
        while self._said[0][0] < now - HPA_DOWN:
            self._said.popleft()
        while self._changes and self._changes[0][0] <= now - HPA_SYNC:
            self._changes.popleft()
        if desired < replicas:
            desired = min(replicas, max(n for _, n in self._said))
        start = replicas - sum(n for _, n in self._changes if n > 0)
        desired = min(desired, max(2 * start, start + 4))
        desired = max(self._least, min(self._most, desired))
        if desired != replicas:
            self._changes.append((now, desired - replicas))
        return desired

    def _of(self, metric: Metric, target: float, seen: dict[Metric, float], replicas: int) -> int:
        used = seen[metric] / (target * replicas)
        return replicas if abs(used - 1) <= HPA_TOLERANCE else math.ceil(seen[metric] / target)


@dataclass
class Day:
    """What came of it."""

    changes: list[tuple[float, int]] = field(default_factory=list)
    """When, and how many there were then."""
    oscillations: int = 0
    late_seconds: float = 0.0
    """In which requests waited too long."""
    pod_hours: float = 0.0
    ideal_hours: float = 0.0
    """Of as many pods as the load without its noise needs, at once and at every moment."""


def simulated(pattern: Pattern, scaler: Scaler, seed: int, target: int, begin: int) -> Day:
    """A day under the scaler; `target`: requests that a replica should have, by which the ideal is counted."""
    random_ = random.Random(seed)
    replicas, running, waiting = begin, 0, 0
    starting: list[float] = []
    day, loads = Day(changes=[(0.0, begin)]), list[float]()
    piled: deque[int] = deque(maxlen=int(MEAN / STEP))
    for number in range(int(DAY / STEP)):
        now = number * STEP
        starting = [at for at in starting if at > now]
        ready = replicas - len(starting)
        rate = pattern(now) * target / SERVICE
        waiting += _poisson(random_, rate * STEP)
        running = _staying(random_, running, math.exp(-STEP / SERVICE))
        begun = max(0, min(waiting, ready * SLOTS - running))
        # of those that came and began within the step some have ended by its end
        running += _staying(random_, begun, (1 - math.exp(-STEP / SERVICE)) * SERVICE / STEP)
        waiting -= begun
        seen = {Metric.IN_FLIGHT: float(running + waiting), Metric.WAITING: float(waiting)}
        piled.append(waiting)
        loads.append(pattern(now) * target + sum(piled) / len(piled))
        wanted = scaler.wants(now, replicas, ready, seen)
        if wanted > replicas:
            starting += [now + STARTUP] * (wanted - replicas)
        elif wanted < replicas:
            # what starts goes first
            starting = starting[: max(0, len(starting) - (replicas - wanted))]
        if wanted != replicas:
            day.changes.append((now, wanted))
        replicas = wanted
        throughput = max(1, ready) * SLOTS / SERVICE
        day.late_seconds += STEP if waiting / throughput > BEARABLE else 0.0
        day.pod_hours += replicas * STEP / 3600
        day.ideal_hours += max(1, math.ceil(pattern(now))) * STEP / 3600
    day.oscillations = oscillations(day.changes, loads)
    return day


def oscillations(changes: list[tuple[float, int]], loads: list[float]) -> int:
    """Changes of direction that the load did not cause: since the change before it had not gone that way by a tenth,
    from where it was lowest or highest meanwhile. `loads`, one a step: requests that come without their noise, and what
    has piled up while pods were missing.
    """
    found, before = 0, 0
    for (then, old), (now, new) in pairwise(changes):
        direction = 1 if new > old else -1
        between = loads[int(then / STEP) : int(now / STEP) + 1]
        caused = between[-1] > 1.1 * min(between) if direction > 0 else between[-1] < 0.9 * max(between)
        if before and direction != before and not caused:
            found += 1
        before = direction
    return found


def _staying(random_: random.Random, count: int, share: float) -> int:
    """How many of so many stay, each with this probability."""
    if count > 50:
        return max(0, min(count, round(random_.gauss(count * share, math.sqrt(count * share * (1 - share))))))
    return sum(random_.random() < share for _ in range(count))


def _poisson(random_: random.Random, mean: float) -> int:
    if mean <= 0:
        return 0
    if mean > 30:
        return max(0, round(random_.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), random_.random(), 0
    while product > limit:
        product *= random_.random()
        count += 1
    return count
