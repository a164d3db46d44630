"""What tenants have used of their limits, at one gateway of several. Pure: time is an argument.

Each tenant has an owner among the gateways (`owner_of`), who alone gives allowances; every gateway takes requests by
its own. Rules:
- a share is what one gateway process (a run) has used in a period, and up to where it may: whole numbers since the
  period's begin, not differences. So a message that is lost or comes twice changes nothing;
- what the owner counts as gone is of each run the larger of the two. It never gives more than is left (`grant`):
  whatever the gateways do with it, and whichever of them ends, together they stay within the limit. What passes it is
  an answer that took more than was reserved for it;
- beyond what is needed now the owner gives little, the less the fewer are left; what a gateway does not use it gives
  back by itself (`give_back`), and only by itself: the owner takes nothing away that may be in use;
- a run speaks for itself, and what others tell of it only adds. Of two messages of a run the newer one counts (`seq`);
- a run that has ended keeps what it had until the period's end, and its requests under way until nobody has heard of
  it for a while (`forget_slots`);
- gateways that say nothing and may still serve (a network in two parts) have their part of each limit, and so has this
  one (`Away`): nobody gives away what may be in use over there, and nobody refuses everything;
- periods come from each gateway's clock and go forward only; one that is ahead by one is followed, by more it is not:
  a clock that is far wrong must not use up anybody's future.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tuneyard.planning.limits import TOKENS, Kind, Limits, period_of

STORED = ""
"""The run that stands for all whose counts are only known as a sum, from before."""
KEPT_RESERVATIONS = 900.0
"""Seconds after which a request counts as ended although nobody has told so: it may stream on, or its end was lost."""


def owner_of(tenant: str, gateways: Iterable[str]) -> str | None:
    """Who owns a tenant: all who know the same gateways say the same, and one that goes takes only its own along."""
    return max(gateways, key=lambda one: hashlib.blake2b(f"{one} {tenant}".encode()).digest(), default=None)


class Share(NamedTuple):
    """What a run has used, and up to where it may."""

    used: int = 0
    allowed: int = 0

    @property
    def held(self) -> int:
        """What nobody else can have of it."""
        return max(self)


class Away(NamedTuple):
    """Of the gateways: how many are heard (this one among them), and whose runs are silent and may still serve."""

    heard: int = 1
    silent: frozenset[str] = frozenset()

    def part(self, limit: int) -> int:
        """What those that are heard may use of a limit."""
        return max(1, limit * self.heard // (self.heard + len(self.silent))) if self.silent else limit


NOBODY = Away()


class Row(NamedTuple):
    """A share, as gateways tell each other."""

    run: str
    tenant: str
    kind: Kind
    period: int
    used: int
    allowed: int


class Ask(NamedTuple):
    """What a gateway needs at once, and what it could use soon."""

    tenant: str
    kind: Kind
    period: int
    need: int
    want: int


class Grant(NamedTuple):
    """Up to where it may use in a period, and what is left for everybody."""

    tenant: str
    kind: Kind
    period: int
    allowed: int
    left: int


class Account:
    """One limit of one tenant."""

    def __init__(self, period: int) -> None:
        self.period = period
        self.shares: dict[str, Share] = {}
        self.left: int | None = None
        """What the owner has last said."""
        self.seen = 0
        """What this gateway had used at its last look, and between the last two."""
        self.pace = 0

    def roll(self, period: int) -> None:
        """Time goes by."""
        if period > self.period:
            self.period, self.shares, self.left, self.seen = period, {}, None, 0

    def free(self, limit: int, away: Away = NOBODY) -> int:
        """What nobody has; below 0 where answers took more than was reserved, or the limit is a lower one now."""
        held = sum(share.held for run, share in self.shares.items() if run not in away.silent)
        return away.part(limit) - held

    def grant(self, run: str, need: int, want: int, limit: int, away: Away) -> Share:
        """Give a run what it needs, if that much is left, and of what it wants a small part of what is."""
        share, free = self.shares.get(run, Share()), self.free(limit, away)
        lacking = share.used + need - share.held
        if 0 < lacking <= free:
            more = max(lacking, min(lacking + want, free // (4 * away.heard)))
            share = Share(share.used, share.held + more)
            self.shares[run] = share
        return share


@dataclass
class Reservation:
    """What a request under way has taken."""

    tenant: str
    taken: Mapping[Kind, tuple[int, int]]
    """By limit: how many, in which period."""
    begun: float


@dataclass
class _Changes:
    """Which accounts have changed in this gateway's own share, the oldest change first."""

    number: int = 0
    of: OrderedDict[tuple[str, Kind], int] = field(default_factory=OrderedDict)

    def mark(self, key: tuple[str, Kind]) -> None:
        self.number += 1
        self.of[key] = self.number
        self.of.move_to_end(key)

    def since(self, number: int) -> Iterator[tuple[str, Kind]]:
        for key in reversed(self.of):
            if self.of[key] <= number:
                return
            yield key


class Ledger:
    """All tenants with limits, as one run of one gateway knows them."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._accounts: dict[tuple[str, Kind], Account] = {}
        self._reservations: OrderedDict[str, Reservation] = OrderedDict()
        self._seqs: dict[str, int] = {}
        self._changes = _Changes()
        self._unlimited: set[tuple[str, Kind]] = set()

    def account(self, tenant: str, kind: Kind, now: float) -> Account:
        """The account in the period that it is."""
        period, key = period_of(kind, now), (tenant, kind)
        found = self._accounts.get(key)
        if found is None:
            found = self._accounts[key] = Account(period)
        found.roll(period)
        return found

    # -- this gateway's requests -----------------------------------------------------------------------------------

    def lacking(self, tenant: str, needs: Mapping[Kind, int], now: float) -> dict[Kind, int]:
        """Of which limits this gateway has not been allowed as much as a request needs."""
        found = {}
        for kind, need in needs.items():
            own = self.account(tenant, kind, now).shares.get(self.me, Share())
            if own.used + need > own.allowed:
                found[kind] = need
        return found

    def take(self, tenant: str, needs: Mapping[Kind, int], request: str, now: float) -> dict[Kind, int]:
        """Begin a request: it takes all that it needs, or nothing; returns what is lacking."""
        lacking = self.lacking(tenant, needs, now)
        if not lacking:
            taken = {}
            for kind, need in needs.items():
                taken[kind] = need, self._add(tenant, kind, need, now)
            self._reservations[request] = Reservation(tenant, taken, now)
        return lacking

    def _add(self, tenant: str, kind: Kind, by: int, now: float) -> int:
        """More of this gateway's own use, or less; returns the period."""
        account = self.account(tenant, kind, now)
        own = account.shares.get(self.me, Share())
        account.shares[self.me] = Share(max(0, own.used + by), own.allowed)
        self._changes.mark((tenant, kind))
        return account.period

    def settle(self, request: str, tokens: int | None, now: float) -> str | None:
        """A request has ended with so many tokens; returns whose it was, None where it took nothing here.

        `tokens` None: nobody knows how many, and what it took counts: a long answer must not be free. Tokens count when
        their request began: in a period that is over nothing is changed any more.
        """
        reservation = self._reservations.pop(request, None)
        if reservation is None:
            return None
        for kind, (number, period) in reservation.taken.items():
            if period != self.account(reservation.tenant, kind, now).period:
                continue
            if kind in TOKENS:
                self._add(reservation.tenant, kind, 0 if tokens is None else tokens - number, now)
            elif kind is Kind.CONCURRENT:
                self._add(reservation.tenant, kind, -number, now)
        return reservation.tenant

    def count(self, tenant: str, limits: Limits, tokens: int, now: float) -> None:
        """A request went by without having been asked for: it counts all the same."""
        for kind in limits:
            if kind is not Kind.CONCURRENT:
                self._add(tenant, kind, tokens if kind in TOKENS else 1, now)

    def overdue(self, now: float) -> list[str]:
        """Requests of which nothing has been heard for KEPT_RESERVATIONS."""
        found = []
        for request, reservation in self._reservations.items():
            if now - reservation.begun < KEPT_RESERVATIONS:
                break
            found.append(request)
        return found

    @property
    def under_way(self) -> int:
        """Requests that have taken something and not ended."""
        return len(self._reservations)

    # -- allowances ------------------------------------------------------------------------------------------------

    def grant(self, run: str, asks: Iterable[Ask], limits: Mapping[str, Limits], away: Away, now: float) -> list[Grant]:
        """As the owner: what a run is allowed. One whose tenant has no such limit (any more) gets what it asks for."""
        found = []
        for ask in asks:
            account = self.account(ask.tenant, ask.kind, now)
            if ask.period == account.period + 1:
                account.roll(ask.period)
            limit = limits.get(ask.tenant, {}).get(ask.kind)
            if limit is None:
                share = account.shares.get(run, Share())
                found.append(Grant(ask.tenant, ask.kind, account.period, share.held + ask.need, ask.need))
                continue
            share = account.grant(run, ask.need, ask.want, limit, away)
            left = max(0, account.free(limit, away))
            if run == self.me:
                account.left = left
                self._changes.mark((ask.tenant, ask.kind))
            found.append(Grant(ask.tenant, ask.kind, account.period, share.allowed, left))
        return found

    def ask(self, tenant: str, kind: Kind, need: int, want: int, now: float) -> Ask:
        """What to ask the owner for. The share is to be told again after that: what is given may never come here."""
        self._changes.mark((tenant, kind))
        return Ask(tenant, kind, self.account(tenant, kind, now).period, need, want)

    def granted(self, grants: Iterable[Grant], now: float) -> None:
        """As one who asked."""
        for grant in grants:
            account = self.account(grant.tenant, grant.kind, now)
            account.left = grant.left
            if not account.period <= grant.period <= account.period + 1:
                continue
            account.roll(grant.period)
            own = account.shares.get(self.me, Share())
            account.shares[self.me] = Share(own.used, grant.allowed)
            self._changes.mark((grant.tenant, grant.kind))

    def give_back(self, tenant: str, kind: Kind, keep: int, now: float) -> bool:
        """Keep so much beyond what is used; returns whether there was more."""
        account = self.account(tenant, kind, now)
        own = account.shares.get(self.me, Share())
        if own.allowed <= own.used + keep:
            return False
        account.shares[self.me] = Share(own.used, own.used + keep)
        self._changes.mark((tenant, kind))
        return True

    def look(self, now: float) -> None:
        """Once in a while: give back what was not used between two looks, and note how much was."""
        for tenant, kind in list(self._accounts):
            account = self.account(tenant, kind, now)
            own = account.shares.get(self.me, Share())
            account.pace, account.seen = max(0, own.used - account.seen), own.used
            self.give_back(tenant, kind, 0 if kind is Kind.CONCURRENT else account.pace, now)

    def forget_slots(self, gone: Iterable[str]) -> None:
        """These runs have ended, and so have their requests."""
        ended = set(gone)
        for (_, kind), account in self._accounts.items():
            if kind is Kind.CONCURRENT:
                account.shares = {run: share for run, share in account.shares.items() if run not in ended}

    def slots_of(self) -> set[str]:
        """The runs that have requests under way."""
        return {run for (_, kind), a in self._accounts.items() if kind is Kind.CONCURRENT for run in a.shares}

    def forget_unlimited(self, limits: Mapping[str, Limits]) -> None:
        """Forget the accounts of limits that are no more, and were none at the last call: not those of policies that
        others have read a moment earlier.
        """
        unlimited = {key for key in self._accounts if key[1] not in limits.get(key[0], {})}
        for key in unlimited & self._unlimited:
            del self._accounts[key]
            self._changes.of.pop(key, None)
        self._unlimited = unlimited

    # -- between gateways ------------------------------------------------------------------------------------------

    @property
    def changes(self) -> int:
        """Number of the newest change of this gateway's own shares."""
        return self._changes.number

    def own_rows(self, since: int) -> list[Row]:
        """This gateway's shares that have changed since that change."""
        found = []
        for tenant, kind in self._changes.since(since):
            account = self._accounts[tenant, kind]
            found.append(Row(self.me, tenant, kind, account.period, *account.shares.get(self.me, Share())))
        return found

    def rows(self) -> list[Row]:
        """Everything that is known of everybody."""
        return [
            Row(run, tenant, kind, account.period, *share)
            for (tenant, kind), account in self._accounts.items()
            for run, share in account.shares.items()
        ]

    def rows_of(self, asks: Iterable[Ask], now: float) -> list[Row]:
        """What is known of everybody in the accounts that are asked about: who asks may be the next owner.

        Not of requests under way: what others tell of a run is only ever added to, and these accounts never end.
        """
        return [
            Row(run, ask.tenant, ask.kind, account.period, *share)
            for ask in asks
            if ask.kind is not Kind.CONCURRENT
            for account in (self.account(ask.tenant, ask.kind, now),)
            for run, share in account.shares.items()
        ]

    def hear(self, run: str, seq: int, rows: Iterable[Row], now: float) -> bool:
        """A run tells of itself; False: what is newer has been heard before."""
        if seq <= self._seqs.get(run, -1):
            return False
        self._seqs[run] = seq
        self._learn((row for row in rows if row.run == run), now, by_itself=True)
        return True

    def learn(self, rows: Iterable[Row], now: float) -> None:
        """Somebody tells what he knows of others, or a process before this one did."""
        self._learn((row for row in rows if row.run != self.me), now, by_itself=False)

    def _learn(self, rows: Iterable[Row], now: float, *, by_itself: bool) -> None:
        for row in rows:
            account = self.account(row.tenant, row.kind, now)
            if not account.period <= row.period <= account.period + 1:
                continue
            account.roll(row.period)
            told, before = Share(row.used, row.allowed), account.shares.get(row.run, Share())
            if not by_itself:
                told = Share(max(told.used, before.used), max(told.allowed, before.allowed))
            account.shares[row.run] = told

    def stored(self, totals: Mapping[str, tuple[int, int]], now: float) -> None:
        """What tenants are known to have used (month, tokens): nobody who is here knows of the difference."""
        for tenant, (month, total) in totals.items():
            account = self.account(tenant, Kind.MONTH, now)
            known = sum(share.held for share in account.shares.values())
            if month == account.period and total > known:
                before = account.shares.get(STORED, Share()).used
                account.shares[STORED] = Share(before + total - known, 0)

    def months(self, now: float) -> dict[str, tuple[int, int]]:
        """By tenant: the month, and the tokens that all have used in it."""
        found = {}
        for tenant, kind in list(self._accounts):
            if kind is Kind.MONTH:
                account = self.account(tenant, kind, now)
                found[tenant] = account.period, sum(share.used for share in account.shares.values())
        return found
