"""Limits of tenants: Envoy's script asks here before a request of a tenant that has some, and tells when it has ended.

Rules:
- a request takes all that it may need at once, or nothing; what it really took is known when its answer has ended, by
  Envoy's access log, and the rest is given back then;
- what this gateway has not been allowed yet it asks the tenant's owner for (quotafleet.py). Only the owner's word
  refuses: gateways that cannot be reached take no request away;
- a request that only lacks a place among those under way waits for SLOT_SECONDS: that others have ended is heard of a
  moment later (answers.py), and without it a client with one place could not use it twice in a row;
- a refusal says which limit it is, in the words and headers of OpenAI's API, and when it is worth trying again. What a
  limit as a whole has no room for is refused with words that say so, and clients are told not to try again;
- after a refusal the owner is not asked again for DRY_SECONDS for as much or more: who is over a limit costs little;
- what has been used is kept on the pod's memory-backed volume, for the process that comes after this one.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as Count

from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.quotafleet import EVERY, Fleet
from tuneyard.gateway.quotamonths import EVERY as MONTHS_EVERY
from tuneyard.gateway.quotamonths import Months
from tuneyard.gateway.quotarefusals import Refusal, refusal, too_large
from tuneyard.planning.limits import Kind, Limits, period_of
from tuneyard.planning.quotas import Ask, Row
from tuneyard.planning.tokenguess import Guess
from tuneyard.systems.envoy.quotas import UNASKED, Spent

SLOT_SECONDS = 0.4
_SLOT_LOOK = 0.03
DRY_SECONDS = 0.1
ROOM = 64 << 10
_IDLE, _AGAIN = 0.1, 5.0
_SHARE = 0.05
"""Of the time, at most, is spent with writing."""
_VERSION = 1

_log = logging.getLogger(__name__)


STATE = "quotas.json"
"""Where it is kept, in the directory that the gateway's containers share."""


class QuotaMetrics:
    """What Prometheus reads of limits."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.limited = Count(
            "tuneyard_gateway_tenant_limited", "Requests refused by a limit.", ["tenant", "limit"], registry=registry
        )
        self.left = Gauge(
            "tuneyard_gateway_tenant_month_tokens_left",
            "Tokens that a tenant has left this month; shown by the gateway that owns the tenant.",
            ["tenant"],
            registry=registry,
        )
        self.gateways = Gauge(
            "tuneyard_gateway_quota_gateways",
            "Gateways that share limits as this one sees it, itself among them; 0 while there are none.",
            registry=registry,
        )
        self.alone = Count(
            "tuneyard_gateway_quota_alone",
            "Requests decided while another gateway said nothing: with this one's part of the limits.",
            registry=registry,
        )
        self.reserved = Gauge(
            "tuneyard_gateway_quota_reserved",
            "Requests under way that have taken something of a tenant's limits.",
            registry=registry,
        )
        self.unasked = Count(
            "tuneyard_gateway_quota_unasked",
            "Requests of tenants with limits that went by while this process could not be asked.",
            registry=registry,
        )


class Quotas:
    """The limits of all tenants, at one gateway."""

    def __init__(
        self,
        fleet: Fleet,
        limits: Callable[[], Mapping[str, Limits]],
        wall: Callable[[], float],
        *,
        kept: KeptState,
        months: Months,
        metrics: QuotaMetrics,
    ) -> None:
        """`limits`: of all tenants that have some; `wall`: unix time. Nothing is started yet; needs a running loop."""
        self._ledger, self._limits, self.fleet, self._wall = fleet.ledger, limits, fleet, wall
        self._kept, self._months, self._metrics = kept, months, metrics
        self._clock = asyncio.get_running_loop().time
        metrics.reserved.set_function(lambda: float(self._ledger.under_way))
        self._guesses: dict[str, Guess] = {}
        self._waiting: Counter[tuple[str, Kind]] = Counter()
        """What requests that ask the owner need together."""
        self._dry: dict[tuple[str, Kind], tuple[int, int, float]] = {}
        """How much the owner has last refused, in which period, and until when it counts."""
        self._freed = asyncio.Event()
        self._written: dict[str, tuple[int, int]] = {}
        self._shown: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: set[str] = set()
        self._begun = asyncio.Event()

    # -- requests --------------------------------------------------------------------------------------------------

    async def admit(self, tenant: str, mark: str, size: int, most: int | None, choices: int) -> Refusal | None:
        """Whether a request may be made; None: it may, and has taken what it may need."""
        limits = self._limits().get(tenant)
        if not limits:
            return None
        if not self._begun.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._begun.wait()
        needs = self._guesses.setdefault(tenant, Guess()).needs(limits, size, most, choices)
        lacks = next((kind for kind in needs if needs[kind] > limits[kind]), None)
        lacks_for_good = lacks is not None
        if lacks is None:
            lacks = await self._take(tenant, needs, mark)
        if self.fleet.away().silent:
            self._metrics.alone.inc()
        if lacks is None:
            return None
        self._metrics.limited.labels(tenant, lacks).inc()
        if lacks_for_good:
            return too_large(tenant, lacks, needs[lacks], limits[lacks])
        now = self._wall()
        return refusal(tenant, lacks, limits, {kind: self._left(tenant, kind, now) for kind in limits}, now)

    async def _take(self, tenant: str, needs: Mapping[Kind, int], mark: str) -> Kind | None:
        """Take what a request needs; returns of which limit there is not enough."""
        deadline = self._clock() + SLOT_SECONDS
        while True:
            lacking = self._ledger.take(tenant, needs, mark, self._wall())
            if not lacking:
                return None
            refused = await self._obtain(tenant, needs, lacking)
            if refused is None:
                continue
            if refused is not Kind.CONCURRENT or self._clock() >= deadline:
                return refused
            with suppress(TimeoutError):
                async with asyncio.timeout(_SLOT_LOOK):
                    await self._freed.wait()

    async def _obtain(self, tenant: str, needs: Mapping[Kind, int], lacking: Mapping[Kind, int]) -> Kind | None:
        """Ask the owner for what is lacking; returns what it refuses."""
        now = self._wall()
        for kind, need in lacking.items():
            least, period, until = self._dry.get((tenant, kind), (need + 1, 0, 0.0))
            if need >= least and period == period_of(kind, now) and self._clock() < until:
                return kind
        for kind, need in lacking.items():
            self._waiting[tenant, kind] += need
        try:
            await self.fleet.ask(tenant, [self._ask(tenant, kind, need, now) for kind, need in lacking.items()])
        finally:
            for kind, need in lacking.items():
                self._waiting[tenant, kind] -= need
        now = self._wall()
        for kind, need in self._ledger.lacking(tenant, needs, now).items():
            # where the owner has enough left, another request here was quicker with what it gave: ask again
            if self._left(tenant, kind, now) < need:
                if kind is not Kind.CONCURRENT:
                    self._dry[tenant, kind] = need, period_of(kind, now), self._clock() + DRY_SECONDS
                return kind
        return None

    def _ask(self, tenant: str, kind: Kind, need: int, now: float) -> Ask:
        account = self._ledger.account(tenant, kind, now)
        want = 0 if kind is Kind.CONCURRENT else self._waiting[tenant, kind] - need + 2 * account.pace
        return self._ledger.ask(tenant, kind, need, want, now)

    def _left(self, tenant: str, kind: Kind, now: float) -> int:
        return self._ledger.account(tenant, kind, now).left or 0

    def ended(self, spent: Iterable[Spent]) -> None:
        """Requests have ended."""
        now, touched = self._wall(), set()
        for one in spent:
            if one.counted:
                self._guesses.setdefault(one.tenant, Guess()).learn(one.size, one.prompt, one.completion)
            if one.mark == UNASKED:
                self._metrics.unasked.inc()
                self._ledger.count(one.tenant, self._limits().get(one.tenant, {}), one.tokens, now)
            elif self._ledger.settle(one.mark, one.tokens, now) is not None:
                touched.add(one.tenant)
        for tenant in touched:
            self._free(tenant, now)

    def _free(self, tenant: str, now: float) -> None:
        """Places that this gateway does not need any more are the others' at once."""
        if Kind.CONCURRENT not in self._limits().get(tenant, {}):
            return
        self._freed.set()
        self._freed = asyncio.Event()
        gives = self._ledger.give_back(tenant, Kind.CONCURRENT, 0, now)
        if gives and self.fleet.owner(tenant) is not None and tenant not in self._telling:
            self._telling.add(tenant)
            task = asyncio.create_task(self._tell(tenant))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self, tenant: str) -> None:
        self._telling.discard(tenant)
        await self.fleet.tell(tenant)

    # -- its life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take what the process before knew, and begin."""
        try:
            told = self._kept.read()
            if told is not None and told["version"] == _VERSION:
                rows = (Row(r, t, Kind(k), int(p), int(u), int(a)) for r, t, k, p, u, a in told["rows"])
                # nobody of that process uses what it had not used, and its requests are Envoy's alone
                past = (row._replace(allowed=row.used) for row in rows if row.kind is not Kind.CONCURRENT)
                self._ledger.learn(past, self._wall())
        except (ValueError, KeyError, TypeError) as error:
            _log.error("what tenants had used cannot be read, and is left aside: %s", error)
        self._tasks.add(asyncio.create_task(self._run()))

    async def close(self) -> None:
        """Tell the others the last of it."""
        for task in list(self._tasks):
            task.cancel()
        await self.fleet.tell_all()
        self._keep()
        await asyncio.to_thread(self._write_months, self._changed_months())
        await self.fleet.close()

    async def _run(self) -> None:
        """Look around as long as there are limits."""
        while not self._limits():  # noqa: ASYNC110 -- what it waits for has no event, and nobody waits for it
            await asyncio.sleep(_IDLE)
        await self.fleet.look()
        # before this gateway owns anything
        stored = await asyncio.to_thread(self._months.read)
        self._take_stored(stored)
        self.fleet.knows = True
        await self.fleet.look()
        self._begun.set()
        task = asyncio.create_task(self._run_months(read=stored is not None))
        self._tasks.add(task)
        while True:
            pause = _IDLE
            if self._limits():
                pause = max(EVERY, self._turn() / _SHARE)
                await self.fleet.look()
                self._metrics.gateways.set(self.fleet.away().heard if self.fleet.settled else 0)
            await asyncio.sleep(pause)

    def _turn(self) -> float:
        """Give back, forget, keep, show; returns how long it took to keep."""
        now, limits = self._wall(), self._limits()
        for mark in self._ledger.overdue(now):
            self._ledger.settle(mark, None, now)
        self._ledger.look(now)
        self._show(limits, now)
        began = time.perf_counter()
        self._keep()
        return time.perf_counter() - began

    def _keep(self) -> None:
        try:
            self._kept.write({"version": _VERSION, "rows": self._ledger.rows()})
        except OSError as error:
            _log.error("what tenants have used cannot be kept: %s", error)

    def _show(self, limits: Mapping[str, Limits], now: float) -> None:
        months, shown = self._ledger.months(now), set()
        for tenant, (_, used) in months.items():
            limit = limits.get(tenant, {}).get(Kind.MONTH)
            if limit is not None and self.fleet.owner(tenant) is None:
                shown.add(tenant)
                self._metrics.left.labels(tenant).set(max(0, limit - used))
        for tenant in self._shown - shown:
            self._metrics.left.remove(tenant)
        self._shown = shown

    def _take_stored(self, stored: dict[str, tuple[int, int]] | None) -> None:
        if stored is not None:
            self._ledger.stored(stored, self._wall())
            self._written = stored

    async def _run_months(self, *, read: bool) -> None:
        """Store what tenants have used of the month; where that could not be read yet, read it."""
        while not read:
            await asyncio.sleep(_AGAIN)
            stored = await asyncio.to_thread(self._months.read)
            self._take_stored(stored)
            read = stored is not None
        while True:
            await asyncio.sleep(MONTHS_EVERY)
            self._ledger.forget_unlimited(self._limits())
            changed = self._changed_months()
            if await asyncio.to_thread(self._write_months, changed):
                self._written |= changed

    def _changed_months(self) -> dict[str, tuple[int, int]]:
        """Of the tenants that this gateway owns."""
        months = self._ledger.months(self._wall()).items()
        return {t: m for t, m in months if m != self._written.get(t) and self.fleet.owner(t) is None}

    def _write_months(self, changed: Mapping[str, tuple[int, int]]) -> bool:
        return bool(changed) and self._months.write(changed)


def quotas_of(
    fleet: Fleet, limits: Callable[[], Mapping[str, Limits]], folder: Path, months: Months, registry: CollectorRegistry
) -> Quotas:
    """The limits at a gateway whose containers share the folder."""
    kept = KeptState(folder / STATE, ROOM)
    return Quotas(fleet, limits, time.time, kept=kept, months=months, metrics=QuotaMetrics(registry))
