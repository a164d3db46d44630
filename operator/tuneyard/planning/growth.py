"""Which adapters of a pool get more copies than the others: those that many requests are under way to.

Rules:
- the load of an adapter is the number of requests under way to the revisions that name it in this pool, of all gateways
  (each smooths what it tells over some seconds);
- an adapter deserves so many copies that none of them has more than half of what a pod of the pool has on average, or
  than QUIET requests where that is more: where all adapters are alike none grows, and in a quiet pool neither;
- it grows at once, and gives one copy back whenever it has deserved fewer for SHRINK_AFTER seconds, also at half of
  that load per copy. For that every gateway has to say what is asked of it; to grow, what is known is enough;
- there are never fewer copies than the pool's `copies`, and never more than `lora.maxCopies` or pods;
- what is remembered is bounded: of many hot adapters those that have grown already come first, then the hottest.
Only as many copies are made as there is free room for (placing.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.demand import DemandView
from tuneyard.planning.pools import pool_of
from tuneyard.planning.resolvedserving import Serving
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

QUIET = 4.0
"""Requests under way that a copy may have in any pool: fewer make nobody slower."""
SHRINK_AFTER = 120.0
"""Seconds; a copy that was taken back too early costs a fetch and a load."""
LOOK_AGAIN = 15.0
"""Seconds between two looks at whether a grown adapter may shrink: gateways wake nobody for that."""
_LOW = 0.5
_MOST_BYTES = 32 << 10
"""Of the marks of grown adapters; all annotations of an object may have 256 KiB together."""
_MOST_DIGITS = 6
"""Of the copies in a mark: of thousands of digits Python makes no number."""
_MARK_BYTES = 36
"""What a mark takes beside the adapter's name."""
_MOST_EXTRA = 20_000
"""Copies beyond the pool's `copies`, of all adapters: the plan names a pod for each, in 3 bytes."""

PoolKey = tuple[str, str]
"""(namespace, pool)."""


@dataclass
class Loads:
    """Requests under way in one pool."""

    total: float = 0.0
    """Also those to the base itself."""
    adapters: dict[str, float] = field(default_factory=dict)

    def add(self, adapter: str | None, in_flight: float) -> None:
        """So many more to a revision."""
        self.total += in_flight
        if adapter:
            self.adapters[adapter] = self.adapters.get(adapter, 0.0) + in_flight

    @property
    def hottest(self) -> float:
        """The load of the adapter that has most."""
        return max(self.adapters.values(), default=0.0)


@dataclass(frozen=True)
class Grown:
    """An adapter with more copies than the others."""

    copies: int
    since: datetime | None = None
    """Since when it deserves fewer; None: it does not, or nobody knows."""

    @property
    def mark(self) -> str:
        """As it is remembered."""
        return f"{self.copies} {rfc3339(self.since)}" if self.since else str(self.copies)


@dataclass(frozen=True)
class Bounds:
    """How many copies an adapter of a pool may have."""

    least: int
    most: int
    pods: int

    def of(self, copies: float) -> int:
        """The nearest number that it may have."""
        return max(self.least, min(self.most, math.ceil(copies)))


def bounds(serving: Serving, copies: int) -> Bounds:
    """`copies`: what each adapter of the pool has in any case."""
    pods = max(1, serving.replicas)
    return Bounds(copies, min(serving.lora.max_copies or pods, pods), pods)


def pool_loads(deployments: Iterable[ModelDeploymentResource], demand: DemandView) -> dict[PoolKey, Loads]:
    """The requests under way to these deployments, by the pool that serves them."""
    found: dict[PoolKey, Loads] = {}
    for deployment in deployments if demand.reports else ():
        namespace, name = deployment.metadata.namespace, deployment.metadata.name
        for revision in deployment.spec.revisions:
            in_flight = demand.in_flight(namespace, name, revision.name)
            if in_flight > 0 and revision.external is None:
                found.setdefault((namespace, pool_of(deployment, revision)), Loads()).add(revision.adapter, in_flight)
    return found


def deserved(load: float, loads: Loads, limits: Bounds, *, low: bool = False) -> int:
    """Copies for an adapter with this load; `low`: how many would do without any doubt."""
    per_copy = max(QUIET, loads.total / limits.pods / 2)
    return limits.of(load / (per_copy * _LOW if low else per_copy))


def remembered(marks: Mapping[str, str]) -> dict[str, Grown]:
    """The adapters that have grown, from what was remembered; what somebody has spoilt is left out."""
    found = {}
    for name, mark in marks.items():
        copies, _, since = mark.partition(" ")
        if copies.isdecimal() and len(copies) <= _MOST_DIGITS:
            found[name] = Grown(int(copies), parsed_time(since))
    return found


def grows(loads: Loads, before: Mapping[str, Grown], limits: Bounds) -> list[str]:
    """The adapters that are to get more copies than they are to have now.

    Those beyond what is remembered deserve more as long as they are hot, and get none: they would be named without end.
    """
    nothing = Grown(limits.least)
    next_ = _bounded(_found(loads.adapters.keys() | before.keys(), loads, before, limits, None), loads, before, limits)
    return [name for name, to_be in next_.items() if to_be.copies > limits.of(before.get(name, nothing).copies)]


def grown(
    adapters: Iterable[str],
    loads: Loads,
    before: Mapping[str, Grown],
    limits: Bounds,
    *,
    known: bool,
    now: datetime,
) -> dict[str, Grown]:
    """Those of the adapters that are to have more copies than the others from now on.

    `known`: every gateway has said what is asked of it.
    """
    return _bounded(_found(adapters, loads, before, limits, now if known else None), loads, before, limits)


def _found(
    adapters: Iterable[str], loads: Loads, before: Mapping[str, Grown], limits: Bounds, now: datetime | None
) -> dict[str, Grown]:
    """As many copies as each is to have, if all of that can be remembered; `now` as in _next."""
    found: dict[str, Grown] = {}
    for name in adapters:
        load = loads.adapters.get(name, 0.0)
        if load <= QUIET and name not in before:
            continue
        next_ = _next(before.get(name, Grown(limits.least)), load, loads, limits, now)
        if next_.copies > limits.least:
            found[name] = next_
    return found


def _next(had: Grown, load: float, loads: Loads, limits: Bounds, now: datetime | None) -> Grown:
    """One adapter from now on; `now` None: nobody knows all that is asked of it."""
    copies = limits.of(had.copies)
    more = deserved(load, loads, limits)
    if more > copies:
        return Grown(more)
    if now is None or deserved(load, loads, limits, low=True) >= copies:
        return Grown(copies)
    since = had.since or now
    if remaining(since, SHRINK_AFTER, now) > 0:
        return Grown(copies, since)
    return Grown(copies - 1, now)


def _bounded(found: Mapping[str, Grown], loads: Loads, before: Mapping[str, Grown], limits: Bounds) -> dict[str, Grown]:
    """As many as can be remembered and written into a plan."""
    kept: dict[str, Grown] = {}
    bytes_left, extra_left = _MOST_BYTES, _MOST_EXTRA
    for name in sorted(found, key=lambda n: (n not in before, -loads.adapters.get(n, 0.0), n)):
        bytes_left -= len(name) + _MARK_BYTES
        extra_left -= found[name].copies - limits.least
        if bytes_left < 0 or extra_left < 0:
            break
        kept[name] = found[name]
    return kept
