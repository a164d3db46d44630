"""Whatever gateways ask for, in whatever order their messages come, and whichever end: tenants stay within limits.

`Toy` is a fleet whose messages are kept back, lost and taken twice as hypothesis likes. Its owner changes only where
that is said: what is given by one owner and unknown to the next one is bounded by time, which is not looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tuneyard.planning.limits import Kind, Limits
from tuneyard.planning.quotas import NOBODY, Ask, Away, Grant, Ledger, Row

EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "60"))
TENANT, GATEWAYS = "acme", ("a", "b", "c")
NOW = 1_800_000_000.0
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(1, 40)), max_size=120)


@dataclass
class Message:
    """On its way to the owner."""

    run: str
    seq: int
    rows: Sequence[Row]
    asks: Sequence[Ask]


@dataclass
class Toy:
    """Three gateways, the first one the owner."""

    limits: Limits
    now: float = NOW
    ledgers: dict[str, Ledger] = field(default_factory=lambda: {name: Ledger(name) for name in GATEWAYS})
    late: list[Message] = field(default_factory=list)
    under_way: list[tuple[str, str, int]] = field(default_factory=list)
    numbers: int = 0
    seqs: int = 0

    @property
    def owner(self) -> Ledger:
        return self.ledgers["a"]

    def deliver(self, message: Message) -> list[Grant]:
        if not self.owner.hear(message.run, message.seq, message.rows, self.now):
            return []
        away = Away(len(self.ledgers))
        return self.owner.grant(message.run, message.asks, {TENANT: self.limits}, away, self.now)

    def ask(self, name: str, needs: dict[Kind, int], want: int, *, lost: bool = False, unheard: bool = False) -> None:
        ledger = self.ledgers[name]
        lacking = ledger.lacking(TENANT, needs, self.now)
        asks = [ledger.ask(TENANT, kind, need, want, self.now) for kind, need in lacking.items()]
        if ledger is self.owner:
            ledger.granted(ledger.grant(name, asks, {TENANT: self.limits}, Away(3), self.now), self.now)
            return
        self.seqs += 1
        message = Message(name, self.seqs, ledger.own_rows(0), asks)
        if lost:
            self.late.append(message)
            return
        grants = self.deliver(message)
        if not unheard:
            ledger.granted(grants, self.now)

    def begin(self, name: str, size: int) -> bool:
        needs = {kind: size if kind in (Kind.TOKENS, Kind.MONTH) else 1 for kind in self.limits}
        self.numbers += 1
        if self.ledgers[name].take(TENANT, needs, str(self.numbers), self.now):
            return False
        self.under_way.append((name, str(self.numbers), size))
        return True

    def request(self, name: str, size: int, want: int) -> bool:
        if self.begin(name, size):
            return True
        self.ask(name, {kind: size if kind in (Kind.TOKENS, Kind.MONTH) else 1 for kind in self.limits}, want)
        return self.begin(name, size)

    def step(self, name: str, what: int, number: int) -> None:
        needs = {kind: number if kind in (Kind.TOKENS, Kind.MONTH) else 1 for kind in self.limits}
        if what <= 2:
            self.request(name, number, number if what else 0)
        elif what == 3 and self.under_way:
            at, request, size = self.under_way.pop(number % len(self.under_way))
            assert self.ledgers[at].settle(request, size * number // 40, self.now) == TENANT
        elif what == 4:
            self.ask(name, needs, number, lost=True)
        elif what == 5 and self.late:
            self.deliver(self.late[number % len(self.late)])
        elif what == 6:
            self.ask(name, needs, number, unheard=True)
        elif what == 7:
            self.ledgers[name].look(self.now)

    def used(self, kind: Kind) -> int:
        rows = [row for ledger in self.ledgers.values() for row in ledger.rows() if row.run == ledger.me]
        return sum(row.used for row in rows if row.kind is kind)

    def check(self) -> None:
        for kind, limit in self.limits.items():
            account = self.owner.account(TENANT, kind, self.now)
            assert account.free(limit) >= 0, "the owner has given more than there is"
            assert self.used(kind) <= limit
            for ledger in self.ledgers.values():
                own = next((r for r in ledger.rows() if (r.run, r.kind) == (ledger.me, kind)), None)
                known = account.shares.get(ledger.me)
                assert own is None or own.allowed <= (known.held if known else 0), "the owner knows of all it gave"


@settings(max_examples=EXAMPLES)
@given(STEPS, st.integers(1, 200))
def test_no_order_of_messages_passes_a_limit(steps: list[tuple[int, int, int]], limit: int) -> None:
    toy = Toy(dict.fromkeys(Kind, limit))
    for gateway, what, number in steps:
        toy.step(GATEWAYS[gateway], what, number)
        toy.check()


@settings(max_examples=EXAMPLES)
@given(STEPS, st.integers(1, 100))
def test_when_all_has_ended_everything_is_there_again(steps: list[tuple[int, int, int]], limit: int) -> None:
    """Nothing leaks: places come back, and so do tokens that no answer took."""
    toy = Toy({Kind.CONCURRENT: limit, Kind.TOKENS: limit * 40})
    for gateway, what, number in steps:
        toy.step(GATEWAYS[gateway], what, number)
    for at, request, _ in toy.under_way:
        toy.ledgers[at].settle(request, 0, toy.now)
    spent = toy.used(Kind.TOKENS)
    assert toy.used(Kind.CONCURRENT) == 0
    for _ in range(2):
        for name, ledger in toy.ledgers.items():
            ledger.look(toy.now)
            toy.ask(name, {}, 0)
    owner = toy.owner
    assert owner.account(TENANT, Kind.CONCURRENT, toy.now).free(limit) == limit
    assert owner.account(TENANT, Kind.TOKENS, toy.now).free(limit * 40) == limit * 40 - spent
    assert all(ledger.under_way == 0 for ledger in toy.ledgers.values())


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=200), st.integers(1, 60))
def test_what_is_left_is_found_by_whoever_asks_last(asking: list[tuple[int, int]], limit: int) -> None:
    """Nothing is out of reach: when everybody has given back, the whole limit can be used at one gateway."""
    toy = Toy({Kind.REQUESTS: limit})
    done = sum(toy.request(GATEWAYS[gateway], 1, want) for gateway, want in asking)
    for _ in range(2):
        for name, ledger in toy.ledgers.items():
            ledger.look(toy.now)
            toy.ask(name, {}, 0)
    while toy.request("c", 1, 0):
        done += 1
    assert done == limit


@settings(max_examples=EXAMPLES)
@given(STEPS, st.integers(1, 200), st.integers(0, 2))
def test_who_takes_over_gives_nothing_away_twice(steps: list[tuple[int, int, int]], limit: int, dead: int) -> None:
    """The owner ends after it has told the others; they go on with one of them."""
    toy = Toy(dict.fromkeys((Kind.REQUESTS, Kind.TOKENS, Kind.MONTH), limit))
    for gateway, what, number in steps:
        toy.step(GATEWAYS[gateway], what, number)
    before = {kind: toy.used(kind) for kind in toy.limits}
    heirs = [name for name in GATEWAYS if name != "a"]
    heir = toy.ledgers[heirs[dead % 2]]
    heir.learn(toy.owner.rows(), toy.now)
    for other in heirs:
        heir.hear(other, 10**6, toy.ledgers[other].own_rows(0), toy.now)
    for kind in toy.limits:
        while True:
            asks = [heir.ask(TENANT, kind, 1, 0, toy.now)]
            heir.granted(heir.grant(heir.me, asks, {TENANT: toy.limits}, Away(2), toy.now), toy.now)
            if heir.take(TENANT, {kind: 1}, f"more-{kind}", toy.now):
                break
            before[kind] += 1
        assert before[kind] <= limit


@settings(max_examples=EXAMPLES)
@given(st.integers(3, 500), st.integers(1, 4), st.integers(1, 4))
def test_two_halves_of_a_fleet_have_no_more_than_one_limit(limit: int, left: int, right: int) -> None:
    """A network in two parts from the beginning: each part has its share, of which nobody knows in the other."""
    total = 0
    for heard, silent in ((left, right), (right, left)):
        ledger, away = Ledger("a"), Away(heard, frozenset(f"s{n}" for n in range(silent)))
        while True:
            asks = [ledger.ask(TENANT, Kind.REQUESTS, 1, 0, NOW)]
            ledger.granted(ledger.grant("a", asks, {TENANT: {Kind.REQUESTS: limit}}, away, NOW), NOW)
            if ledger.take(TENANT, {Kind.REQUESTS: 1}, "r", NOW):
                break
            total += 1
    assert limit - 2 <= total <= limit or limit < left + right


def test_a_minute_that_ends_begins_anew_and_what_was_reserved_in_it_changes_nothing() -> None:
    toy = Toy({Kind.REQUESTS: 2, Kind.TOKENS: 100})
    assert [toy.request("b", 40, 0) for _ in range(3)] == [True, True, False]
    toy.now += 60
    assert toy.request("b", 40, 0)
    for at, request, _ in toy.under_way[:2]:
        toy.ledgers[at].settle(request, 1000, toy.now)
    assert toy.used(Kind.TOKENS) == 40
    assert NOBODY.part(7) == 7
