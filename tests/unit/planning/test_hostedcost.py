"""What hosted tokens cost: at the price of their time, beside the pools, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.planning.test_cost import prices, used
from tuneyard.api.usage import UsageRecord
from tuneyard.planning.cost import CostRow, cost_view
from tuneyard.planning.usagereport import By, usage_view

PRICE = {"inputPerMillion": 2.0, "cachedInputPerMillion": 1.0, "outputPerMillion": 8.0}
OWN_COST = 240.0


def hosted(number: int, price: dict[str, Any] | None = PRICE, **change: Any) -> UsageRecord:
    """As gateways write it of an external revision: no pool, no adapter, no base."""
    told = {"revision": "hosted", "external": "api.example", "price": price}
    nothing = {"pool": None, "adapter": None, "adapterDigest": None, "base": None, "baseDigest": None}
    return used(number, **{"deployment": "models/a", **nothing, **told, **change})


def million(prompt: float = 0, cached: float = 0, completion: float = 0) -> dict[str, Any]:
    told = {"promptTokens": prompt, "cachedTokens": cached, "completionTokens": completion}
    return {name: int(number * 1_000_000) for name, number in told.items()}


def test_hosted_tokens_cost_their_price_and_own_ones_their_pool() -> None:
    records = [used(1, "a", **million(3)), used(2, "b", **million(1)), hosted(3, **million(3, 1, 1))]
    view = cost_view(records, prices(), "deployment")
    assert [(row.name, row.cost, row.hosted, row.tokens) for row in view.rows] == [
        ("models/a", 180.0 + 13.0, 13.0, 7_000_000),
        ("models/b", 60.0, 0.0, 1_000_000),
    ]
    assert (view.own.cost, view.own.hosted, view.own.tokens) == (OWN_COST, 0.0, 4_000_000)
    assert (view.hosted.cost, view.hosted.hosted, view.hosted.tokens) == (13.0, 13.0, 4_000_000)
    assert (view.total.cost, view.total.hosted, view.total.tokens) == (253.0, 13.0, 8_000_000)
    assert view.total.per_million == pytest.approx(253 / 8)
    assert view.hosted_apis == [CostRow(name="api.example", cost=13.0, hosted=13.0, tokens=4_000_000, per_million=3.25)]
    assert (view.unpriced, view.unpriced_hosted) == ([], [])


def test_each_request_costs_what_it_did_when_it_came() -> None:
    dearer = {**PRICE, "outputPerMillion": 80.0}
    view = cost_view(
        [hosted(1, **million(completion=1)), hosted(2, dearer, **million(completion=1))], prices(), "revision"
    )
    assert [(row.name, row.hosted) for row in view.rows] == [("models/a hosted", 88.0)]


def test_without_a_price_of_its_own_what_is_cached_costs_as_the_rest() -> None:
    price = {"inputPerMillion": 2.0, "outputPerMillion": 8.0}
    assert cost_view([hosted(1, price, **million(3, 1))], prices(), "tenant").hosted.cost == 6.0
    free = price | {"cachedInputPerMillion": 0.0}
    assert cost_view([hosted(1, free, **million(3, 1))], prices(), "tenant").hosted.cost == 4.0


def test_estimates_count_and_each_record_once() -> None:
    records = [hosted(1, estimated=True, outcome="left", **million(completion=1))]
    assert cost_view([*records, *records], prices(), "tenant").hosted.cost == 8.0


def test_what_has_no_price_in_the_currency_is_told_and_in_no_sum() -> None:
    euros = {**PRICE, "currency": "EUR"}
    records = [
        hosted(1, None, **million(1)),
        hosted(2, euros, revision="other", **million(1)),
        hosted(3, None, revision="refused", status=429, outcome="refused"),
    ]
    view = cost_view(records, prices(), "deployment")
    assert (view.rows, view.hosted.cost, view.total.cost) == ([], 0.0, OWN_COST)
    assert view.unpriced_hosted == ["models/a hosted", "models/a other (EUR)"]
    view = cost_view(records, prices(currency="EUR"), "deployment")
    assert (view.hosted.cost, view.unpriced_hosted) == (2.0, ["models/a hosted"])
    # a price that names no currency is in dollars, whatever the sums are in
    assert cost_view([hosted(1, **million(1))], prices(currency="EUR"), "tenant").unpriced_hosted == [
        "models/a hosted (USD)"
    ]


def test_pools_are_held_against_an_api_by_their_own_tokens_alone() -> None:
    apis = [{"name": "x", "prompt": 2.0, "completion": 4.0}]
    own = [used(1, **million(1))]
    alone = cost_view(own, prices(apis=apis), "deployment")
    both = cost_view([*own, hosted(2, **million(9))], prices(apis=apis), "deployment")
    assert (both.apis, both.tokens_per_hour) == (alone.apis, alone.tokens_per_hour)
    assert (both.fine_tunes, both.alone) == (alone.fine_tunes, alone.alone) == (1, 240.0)


def test_no_pool_at_all() -> None:
    view = cost_view([hosted(1, **million(1))], prices(nodes={}, pools=[]), "deployment")
    assert (view.own.cost, view.own.per_million, view.hosted.cost, view.total.cost) == (0.0, None, 2.0, 2.0)
    assert (view.pools, view.fine_tunes, view.tokens_per_hour) == ([], 0, 0.0)


@pytest.mark.parametrize(
    ("by", "name"),
    [("tenant", "acme"), ("deployment", "models/a"), ("revision", "models/a hosted"), ("adapter", "api.example")],
)
def test_what_a_hosted_record_is_counted_under(by: By, name: str) -> None:
    records = [hosted(1, **million(1))]
    assert [row.name for row in cost_view(records, prices(), by).rows] == [name]
    assert [(row.name, row.prompt_tokens) for row in usage_view(records, by).rows] == [(name, 1_000_000)]
