"""Allowances of tenants, case by case; tests/property/test_quotas.py has the orders in which messages come."""

from __future__ import annotations

from tuneyard.planning.limits import Kind, period_of
from tuneyard.planning.quotas import (
    KEPT_RESERVATIONS,
    NOBODY,
    STORED,
    Ask,
    Away,
    Grant,
    Ledger,
    Row,
    Share,
    owner_of,
)

NOW = 1_800_000_000.0
MINUTE, MONTH = period_of(Kind.REQUESTS, NOW), period_of(Kind.MONTH, NOW)
LIMITS = {"acme": {Kind.REQUESTS: 100}}


def ask(need: int, want: int = 0, period: int = MINUTE) -> list[Ask]:
    return [Ask("acme", Kind.REQUESTS, period, need, want)]


def row(run: str, used: int, allowed: int = 0, kind: Kind = Kind.REQUESTS, period: int = MINUTE) -> Row:
    return Row(run, "acme", kind, period, used, allowed)


def test_every_tenant_has_one_owner_and_who_goes_takes_only_its_own() -> None:
    gateways = ["10.0.0.1:9443", "10.0.0.2:9443", "10.0.0.3:9443"]
    owners = {f"t{n}": owner_of(f"t{n}", gateways) for n in range(300)}
    assert owners == {tenant: owner_of(tenant, reversed(gateways)) for tenant in owners}
    assert min(list(owners.values()).count(gateway) for gateway in gateways) > 70
    moved = [t for t, owner in owners.items() if owner_of(t, gateways[:2]) != owner]
    assert moved == [t for t, owner in owners.items() if owner == gateways[2]]
    assert owner_of("acme", []) is None


def test_the_less_is_left_the_less_is_given_beyond_the_need() -> None:
    owner = Ledger("a")
    assert owner.grant("b", ask(1, 1000), LIMITS, Away(3), NOW) == [Grant("acme", Kind.REQUESTS, MINUTE, 8, 92)]
    # nothing more while it fits
    assert owner.grant("b", ask(8, 1000), LIMITS, Away(3), NOW)[0].allowed == 8
    assert owner.grant("c", ask(90, 1000), LIMITS, Away(3), NOW)[0] == Grant("acme", Kind.REQUESTS, MINUTE, 90, 2)
    assert owner.grant("c", ask(93), LIMITS, Away(3), NOW)[0].allowed == 90
    assert owner.grant("b", ask(9), LIMITS, Away(3), NOW)[0] == Grant("acme", Kind.REQUESTS, MINUTE, 9, 1)


def test_a_limit_that_was_lowered_gives_nothing_and_one_that_went_gives_everything() -> None:
    owner = Ledger("a")
    owner.grant("b", ask(50), LIMITS, NOBODY, NOW)
    assert owner.grant("c", ask(1), {"acme": {Kind.REQUESTS: 40}}, NOBODY, NOW)[0] == Grant(
        "acme", Kind.REQUESTS, MINUTE, 0, 0
    )
    assert owner.grant("c", ask(70), {}, NOBODY, NOW)[0].allowed == 70


def test_what_an_answer_took_too_much_is_nobody_elses() -> None:
    ledger, limits = Ledger("a"), {"acme": {Kind.TOKENS: 100}}
    ledger.granted(ledger.grant("a", [Ask("acme", Kind.TOKENS, MINUTE, 40, 0)], limits, NOBODY, NOW), NOW)
    assert ledger.take("acme", {Kind.TOKENS: 40}, "r", NOW) == {}
    assert ledger.settle("r", 90, NOW) == "acme"
    assert ledger.account("acme", Kind.TOKENS, NOW).free(100) == 10
    assert ledger.settle("r", 90, NOW) is None


def test_a_request_takes_everything_or_nothing() -> None:
    ledger = Ledger("a")
    ledger.granted([Grant("acme", Kind.REQUESTS, MINUTE, 5, 0)], NOW)
    assert ledger.take("acme", {Kind.REQUESTS: 1, Kind.MONTH: 7}, "r", NOW) == {Kind.MONTH: 7}
    assert ledger.under_way == 0
    ledger.granted([Grant("acme", Kind.MONTH, MONTH, 7, 0)], NOW)
    assert ledger.take("acme", {Kind.REQUESTS: 1, Kind.MONTH: 7}, "r", NOW) == {}
    assert {(r.kind, r.used) for r in ledger.own_rows(0)} == {(Kind.REQUESTS, 1), (Kind.MONTH, 7)}


def test_of_a_runs_messages_the_newest_counts_and_others_only_add() -> None:
    ledger = Ledger("a")
    assert ledger.hear("b", 2, [row("b", 10, 12), row("c", 99)], NOW)
    assert not ledger.hear("b", 1, [row("b", 50, 50)], NOW)
    assert ledger.account("acme", Kind.REQUESTS, NOW).shares == {"b": Share(10, 12)}
    ledger.learn([row("b", 11, 3), row("a", 77)], NOW)
    assert ledger.account("acme", Kind.REQUESTS, NOW).shares == {"b": Share(11, 12)}
    assert ledger.hear("b", 3, [row("b", 11, 11)], NOW)
    assert ledger.account("acme", Kind.REQUESTS, NOW).shares == {"b": Share(11, 11)}


def test_a_clock_that_is_a_little_ahead_is_followed_and_one_that_is_wrong_is_not() -> None:
    ledger = Ledger("a")
    ledger.hear("b", 1, [row("b", 5)], NOW)
    ledger.hear("c", 1, [row("c", 7, period=MINUTE + 9), row("c", 7, period=MINUTE - 1)], NOW)
    assert ledger.account("acme", Kind.REQUESTS, NOW).shares == {"b": Share(5, 0)}
    ledger.hear("b", 2, [row("b", 1, period=MINUTE + 1)], NOW)
    account = ledger.account("acme", Kind.REQUESTS, NOW)
    assert (account.period, account.shares) == (MINUTE + 1, {"b": Share(1, 0)})
    assert ledger.grant("b", ask(1, period=MINUTE + 2), LIMITS, NOBODY, NOW)[0].period == MINUTE + 2
    ledger.granted([Grant("acme", Kind.REQUESTS, MINUTE + 9, 50, 50)], NOW)
    assert "a" not in ledger.account("acme", Kind.REQUESTS, NOW).shares


def test_what_is_not_used_goes_back_and_places_at_once() -> None:
    ledger = Ledger("a")
    ledger.granted([Grant("acme", Kind.REQUESTS, MINUTE, 50, 0), Grant("acme", Kind.CONCURRENT, 0, 9, 0)], NOW)
    for number in range(4):
        ledger.take("acme", {Kind.REQUESTS: 1, Kind.CONCURRENT: 1}, str(number), NOW)
    ledger.settle("0", 0, NOW)
    ledger.look(NOW)
    assert {(r.kind, r.used, r.allowed) for r in ledger.own_rows(0)} == {
        (Kind.REQUESTS, 4, 8),  # as many again as between two looks
        (Kind.CONCURRENT, 3, 3),
    }
    ledger.look(NOW)
    assert {(r.kind, r.allowed) for r in ledger.own_rows(0)} == {(Kind.REQUESTS, 4), (Kind.CONCURRENT, 3)}
    changes = ledger.changes
    ledger.look(NOW)
    assert ledger.own_rows(changes) == []


def test_requests_of_the_dead_and_the_forgotten_end() -> None:
    ledger = Ledger("a")
    ledger.hear("b", 1, [row("b", 3, 3, Kind.CONCURRENT, 0), row("b", 3, 3)], NOW)
    assert ledger.slots_of() == {"b"}
    ledger.forget_slots(["b"])
    assert ledger.slots_of() == set()
    assert ledger.account("acme", Kind.REQUESTS, NOW).shares == {"b": Share(3, 3)}
    ledger.granted([Grant("acme", Kind.CONCURRENT, 0, 1, 0)], NOW)
    ledger.take("acme", {Kind.CONCURRENT: 1}, "lost", NOW)
    assert ledger.overdue(NOW + KEPT_RESERVATIONS - 1) == []
    assert ledger.overdue(NOW + KEPT_RESERVATIONS) == ["lost"]


def test_what_takes_longer_than_anybody_waits_gives_back_its_place_and_no_tokens() -> None:
    ledger = Ledger("a")
    grants = [Grant("acme", Kind.CONCURRENT, 0, 1, 0), Grant("acme", Kind.MONTH, MONTH, 70, 0)]
    ledger.granted(grants, NOW)
    assert ledger.take("acme", {Kind.CONCURRENT: 1, Kind.MONTH: 70}, "long", NOW) == {}
    (long,) = ledger.overdue(NOW + KEPT_RESERVATIONS)
    assert ledger.settle(long, None, NOW + KEPT_RESERVATIONS) == "acme"
    assert {(r.kind, r.used) for r in ledger.own_rows(0)} == {(Kind.CONCURRENT, 0), (Kind.MONTH, 70)}
    assert ledger.under_way == 0


def test_of_a_stored_month_only_what_nobody_knows_is_added() -> None:
    ledger = Ledger("a")
    ledger.hear("b", 1, [row("b", 300, 350, Kind.MONTH, MONTH)], NOW)
    ledger.stored({"acme": (MONTH, 1000), "beta": (MONTH - 1, 70)}, NOW)
    assert ledger.account("acme", Kind.MONTH, NOW).shares[STORED] == Share(650, 0)
    ledger.stored({"acme": (MONTH, 900)}, NOW)
    assert ledger.months(NOW) == {"acme": (MONTH, 950), "beta": (MONTH, 0)}


def test_what_went_by_unasked_counts_all_the_same() -> None:
    ledger = Ledger("a")
    limits = {Kind.REQUESTS: 9, Kind.CONCURRENT: 9, Kind.TOKENS: 9}
    ledger.count("acme", limits, 50, NOW)
    assert {(r.kind, r.used) for r in ledger.own_rows(0)} == {(Kind.REQUESTS, 1), (Kind.TOKENS, 50)}


def test_accounts_go_with_their_limits_but_not_at_once() -> None:
    ledger = Ledger("a")
    ledger.hear("b", 1, [row("b", 3)], NOW)
    ledger.forget_unlimited({})
    assert ledger.rows() == [row("b", 3)]
    ledger.forget_unlimited(LIMITS)
    ledger.forget_unlimited({})
    assert ledger.rows() == [row("b", 3)]
    ledger.forget_unlimited({})
    assert ledger.rows() == []
