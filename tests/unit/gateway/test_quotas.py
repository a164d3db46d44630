"""Requests of tenants with limits at gateway processes that tell each other: in this process, without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.gateway import quotafleet
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.quotafleet import Fleet
from tuneyard.gateway.quotamonths import Months
from tuneyard.gateway.quotarefusals import Refusal
from tuneyard.gateway.quotas import QuotaMetrics, Quotas
from tuneyard.planning.limits import Kind, Limits, month_number
from tuneyard.planning.quotas import Ledger
from tuneyard.systems.envoy.quotas import UNASKED, Spent

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
MONTH = month_number("2027-01")


class Stored(Months):
    """The ConfigMap."""

    def __init__(self, **totals: int) -> None:
        self.totals = {tenant: (MONTH, total) for tenant, total in totals.items()}

    def read(self) -> dict[str, tuple[int, int]] | None:
        return dict(self.totals)

    def write(self, totals: Mapping[str, tuple[int, int]]) -> bool:
        self.totals |= totals
        return True


class Wired(Fleet):
    """A fleet whose messages are calls, as JSON."""

    network: dict[str, Wired]
    down: dict[str, Exception]

    async def _post(self, address: str, message: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if address in self.down:
            raise self.down[address]
        answer = self.network[address].take(json.loads(json.dumps(message)))
        await asyncio.sleep(0)
        found: dict[str, Any] = json.loads(json.dumps(answer))
        return found


class Gateways:
    """Some of them, with the same tenants."""

    def __init__(self, folder: Path, limits: dict[str, Limits], count: int = 3, stored: Stored | None = None) -> None:
        self.folder, self.limits, self.stored = folder, limits, stored or Stored()
        self.addresses = [f"10.0.0.{n}:9443" for n in range(count)]
        self.network: dict[str, Wired] = {}
        self.down: dict[str, Exception] = {}
        self.now = NOW
        self.all = [self.made(n, address) for n, address in enumerate(self.addresses)]

    def made(self, number: int, address: str, run: str = "one") -> Quotas:
        async def addresses() -> list[str]:
            return self.addresses

        fleet = Wired(Ledger(f"gateway-{number}-{run}"), lambda: self.limits, addresses, "token", lambda: self.now)
        fleet.network, fleet.down = self.network, self.down
        self.network[address] = fleet
        kept = KeptState(self.folder / f"{number}.json", 1000)
        metrics = QuotaMetrics(CollectorRegistry())
        return Quotas(
            fleet,
            lambda: self.limits,
            lambda: self.now,
            kept=kept,
            months=self.stored,
            metrics=metrics,
        )

    async def start(self) -> None:
        for one in self.all:
            one.start()
        async with asyncio.timeout(10):
            while not self.agree():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def agree(self) -> bool:
        """Whether all of them say the same of who owns whom."""
        here = zip(self.addresses, self.all, strict=True)
        owners = {tuple(one.fleet.owner(f"t{n}") or address for n in range(40)) for address, one in here}
        return len(owners) == 1 and (len(self.all) == 1 or len(set(*owners)) == len(self.all))

    async def close(self) -> None:
        for one in self.all:
            await one.close()


@pytest.fixture
async def make(tmp_path: Path) -> Any:
    made: list[Gateways] = []

    async def start(limits: dict[str, Limits], **more: Any) -> Gateways:
        made.append(Gateways(tmp_path, limits, **more))
        await made[-1].start()
        return made[-1]

    yield start
    for one in made:
        await one.close()


Make = Callable[..., Awaitable[Gateways]]


async def ask(gateways: Gateways, number: int, tenant: str, mark: str, most: int | None = 10) -> Refusal | None:
    return await gateways.all[number].admit(tenant, mark, 100, most, 1)


async def ask_all(gateways: Gateways, each: int, tenant: str) -> int:
    """How many may go on."""
    asking = (ask(gateways, n % len(gateways.all), tenant, f"m{n}") for n in range(each * len(gateways.all)))
    return sum(refused is None for refused in await asyncio.gather(*asking))


@pytest.mark.lasting
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_all_at_once_get_the_limit_and_no_more_and_no_less(make: Make, limit: int) -> None:
    tenants = {f"t{n}": {Kind.REQUESTS: limit} for n in range(6)}
    gateways = await make(tenants)
    owners = {gateways.all[0].fleet.owner(tenant) for tenant in tenants}
    assert len(owners) > 1
    for tenant in tenants:
        assert await ask_all(gateways, limit + 5, tenant) == limit
    gateways.now += 60
    for tenant in tenants:
        assert await ask_all(gateways, limit + 5, tenant) == limit


@pytest.mark.lasting
async def test_a_place_is_free_as_soon_as_somebody_has_ended(make: Make) -> None:
    gateways = await make({"acme": {Kind.CONCURRENT: 1}})
    for turn in range(9):
        assert await ask(gateways, turn % 3, "acme", f"m{turn}") is None
        waiting = asyncio.create_task(ask(gateways, (turn + 1) % 3, "acme", f"w{turn}"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        gateways.all[turn % 3].ended([Spent(f"m{turn}", "acme", 100, 0, 0, counted=False)])
        assert await waiting is None
        gateways.all[(turn + 1) % 3].ended([Spent(f"w{turn}", "acme", 100, 0, 0, counted=False)])
    assert await ask(gateways, 0, "acme", "last") is None
    refused = await ask(gateways, 1, "acme", "too many")
    assert refused is not None and refused.headers == {"retry-after": "1"}


@pytest.mark.lasting
async def test_tokens_come_back_and_what_was_not_asked_for_counts(make: Make) -> None:
    gateways = await make({"acme": {Kind.TOKENS: 1000}})
    assert await ask(gateways, 0, "acme", "m1", 900) is None
    refused = await ask(gateways, 1, "acme", "m2", 100)
    assert refused is not None and (refused.type, refused.headers["x-ratelimit-remaining-tokens"]) == ("tokens", "50")
    gateways.all[0].ended([Spent("m1", "acme", 100, 20, 30, counted=True)])
    gateways.all[0].ended(
        [Spent(UNASKED, "acme", 100, 20, 30, counted=True), Spent("-?", "acme", 1, 1, 1, counted=True)]
    )
    await asyncio.sleep(quotafleet.EVERY * 1.5)
    assert await ask(gateways, 1, "acme", "m3", 700) is None
    assert (await ask(gateways, 2, "acme", "m4", 60)) is not None


async def test_a_request_that_can_never_be_made_is_told_so(make: Make) -> None:
    gateways = await make({"acme": {Kind.MONTH: 1000, Kind.TOKENS: 500}})
    refused = await ask(gateways, 0, "acme", "m1", 600)
    assert refused is not None and "may take 650 tokens, and the limit is 500 a minute" in refused.message
    assert refused.headers == {"x-should-retry": "false"}
    assert await ask(gateways, 0, "acme", "m2", 450) is None
    assert await ask(gateways, 0, "nobody", "m3") is None


@pytest.mark.lasting
async def test_a_dead_owners_tenants_go_to_the_next_one_who_knows_what_was_used(make: Make) -> None:
    gateways = await make({"acme": {Kind.REQUESTS: 30}, "slots": {Kind.CONCURRENT: 2}})
    assert await ask_all(gateways, 7, "acme") == 21
    owner = gateways.all[0].fleet.owner("acme") or gateways.addresses[0]
    dead = gateways.addresses.index(owner)
    assert await ask(gateways, dead, "slots", "s1") is None
    await asyncio.sleep(quotafleet.EVERY * 1.5)
    gateways.down[owner] = ConnectionRefusedError(111, "refused")
    left = [n for n in range(3) if n != dead]
    came = [await ask(gateways, left[n % 2], "acme", f"l{n}") for n in range(14)]
    # what it was allowed and had not used stays its own for this minute
    assert 7 <= sum(refused is None for refused in came) <= 9
    assert {gateways.all[n].fleet.owner("acme") for n in left} <= {None, *(gateways.addresses[n] for n in left)}
    assert gateways.all[left[0]].fleet.away().heard == 2


async def test_whoever_has_just_asked_knows_what_its_owner_knew(make: Make) -> None:
    """Before any of them has looked around: all of it within one burst."""
    gateways = await make({"acme": {Kind.REQUESTS: 30}})
    owner = gateways.all[0].fleet.owner("acme") or gateways.addresses[0]
    assert await ask_all(gateways, 15, "acme") == 30
    gateways.down[owner] = ConnectionRefusedError(111, "refused")
    left = [n for n, address in enumerate(gateways.addresses) if address != owner]
    gateways.now += 0.5
    await asyncio.sleep(0.11)
    assert all([await ask(gateways, left[n % 2], "acme", f"l{n}") for n in range(10)])


async def test_who_says_nothing_keeps_its_part(make: Make) -> None:
    gateways = await make({"acme": {Kind.REQUESTS: 30}})
    for address in gateways.addresses[1:]:
        gateways.down[address] = TimeoutError()
    for address in gateways.addresses[1:]:  # and nothing comes from there either
        gateways.network[address].down = dict.fromkeys(gateways.addresses[:1], TimeoutError())
    await asyncio.gather(*(one.fleet.look() for one in gateways.all))
    alone = [await ask(gateways, 0, "acme", f"a{n}") for n in range(40)]
    others = [await ask(gateways, 1 + n % 2, "acme", f"o{n}") for n in range(40)]
    assert (sum(r is None for r in alone), sum(r is None for r in others)) == (10, 20)


async def test_a_month_is_what_was_stored_and_a_minute_what_the_process_before_kept(make: Make, tmp_path: Path) -> None:
    first = await make({"acme": {Kind.MONTH: 1000, Kind.REQUESTS: 5}}, count=1, stored=Stored(acme=700, gone=5))
    assert [await ask(first, 0, "acme", f"m{n}", 30) is None for n in range(4)] == [True, True, True, False]
    for number in range(3):
        first.all[0].ended([Spent(f"m{number}", "acme", 100, 20, 30, counted=True)])
    await first.close()
    assert first.stored.totals["acme"] == (MONTH, 850)
    again = Gateways(tmp_path, first.limits, count=0, stored=first.stored)
    again.addresses = first.addresses
    again.all = [again.made(0, first.addresses[0], run="two")]
    await again.start()
    # 50 + 20 for each, of 150; two requests of five
    assert [await ask(again, 0, "acme", f"m{n}", 20) is None for n in range(3)] == [True, True, False]
    await again.close()


def test_a_message_that_makes_no_sense_is_refused() -> None:
    async def run() -> None:
        async def nobody() -> list[str]:
            return []

        fleet = Fleet(Ledger("a"), dict, nobody, "token", lambda: NOW)
        for message in ({}, {"run": "b", "rows": [[1]]}, {"run": "b", "rows": [], "asks": [["t", "wrong", 0, 1, 1]]}):
            with pytest.raises((ValueError, KeyError, TypeError)):
                fleet.take(message)

    asyncio.run(run())
