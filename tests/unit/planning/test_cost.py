"""What tokens cost: how a pool's cost is shared, what it would have been otherwise, and what is not guessed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.planning.test_usage import record
from tuneyard.api.usage import UsageRecord
from tuneyard.planning.cost import ApiPrice, CostRow, Prices, Weights, cost_view
from tuneyard.planning.usage import Tokens

PRICES: dict[str, Any] = {
    "period": {"since": "2026-11-01", "until": "2026-11-11"},
    "nodes": {"l4": 1.0, "l4-spot": 0.25},
    "pools": [{"pool": "models/llama", "node": "l4", "hours": 240}],
}


def prices(**change: Any) -> Prices:
    return Prices.model_validate({**PRICES, **change})


def used(number: int, adapter: str = "a", **change: Any) -> UsageRecord:
    told = {"requestId": str(number), "time": "2026-11-05T00:00:00Z", "deployment": f"models/{adapter}"}
    tokens = {"promptTokens": 0, "cachedTokens": 0, "completionTokens": 0}
    return record(**{**told, **tokens, "adapter": adapter, **change})


def test_a_pools_cost_is_shared_by_the_work_of_tokens() -> None:
    """Ten generated tokens are the work of forty that were read, or of four hundred from the cache."""
    records = [
        used(1, "a", completionTokens=10),
        used(2, "b", promptTokens=40),
        used(3, "c", promptTokens=400, cachedTokens=400),
        used(4, "d", promptTokens=30, completionTokens=2, estimated=True),
    ]
    view = cost_view(records, prices(), "deployment")
    costs = {row.name: row.cost for row in view.rows}
    whole = 40 + 40 + 40 + 38
    assert costs == pytest.approx(
        {f"models/{n}": 240 * w / whole for n, w in zip("abcd", (40, 40, 40, 38), strict=True)}
    )
    assert sum(costs.values()) == pytest.approx(view.total.cost) == 240
    assert view.total.tokens == 482
    assert view.total.per_million == pytest.approx(240e6 / 482)
    assert view.tokens_per_hour == pytest.approx(482 / 240)


def test_idle_hours_are_part_of_what_tokens_cost_and_idle_pools_are_told() -> None:
    pools = [*PRICES["pools"], {"pool": "models/idle", "node": "l4-spot", "hours": 100}]
    view = cost_view([used(1, completionTokens=1)], prices(pools=pools), "adapter")
    assert [(row.name, row.cost) for row in view.rows] == [("a@sha256:aaaaaaaaaaaa", 240.0)]
    assert view.pools[0] == CostRow(name="models/idle", cost=25.0, tokens=0, per_million=None)
    assert (view.idle, view.total.cost) == (25.0, 265.0)


def test_a_pool_on_several_kinds_of_nodes_costs_both() -> None:
    pools = [*PRICES["pools"], {"pool": "models/llama", "node": "l4-spot", "hours": 40}]
    assert cost_view([used(1, promptTokens=1)], prices(pools=pools), "tenant").total.cost == 250.0


def test_alone_each_fine_tune_has_a_replica_for_the_whole_period() -> None:
    records = [used(n, f"a{n % 5}", completionTokens=1) for n in range(20)]
    view = cost_view(records, prices(), "deployment")
    assert (view.fine_tunes, view.alone, view.total.cost) == (5, 5 * 240.0, 240.0)


def test_only_the_period_counts_and_each_record_once() -> None:
    times = ("2026-10-31T23:59:59.999Z", "2026-11-01T00:00:00Z", "2026-11-10T23:59:59.9Z", "2026-11-11T00:00:00Z")
    records = [used(n, promptTokens=10**n, time=time) for n, time in enumerate(times)]
    assert cost_view([*records, *records], prices(), "tenant").total.tokens == 10 + 100


def test_what_has_no_price_is_told_and_in_no_sum() -> None:
    view = cost_view([used(1, promptTokens=5), used(2, promptTokens=7, pool="other")], prices(), "deployment")
    assert (view.total.tokens, view.unpriced) == (5, ["models/other"])


def test_an_api_costs_its_prices_and_breaks_even_where_both_cost_the_same() -> None:
    apis = [
        {"name": "x", "prompt": 2.0, "cached": 1.0, "completion": 4.0},
        {"name": "y", "prompt": 2.0, "completion": 4.0},
        {"name": "free", "prompt": 0, "completion": 0},
    ]
    tokens: dict[str, Any] = {"promptTokens": 3_000_000, "cachedTokens": 1_000_000, "completionTokens": 1_000_000}
    view = cost_view([used(1, **tokens)], prices(apis=apis), "deployment")
    x, y, free = view.apis
    assert (x.cost, y.cost, free.cost) == (9.0, 10.0, 0.0)
    assert free.break_even_tokens_per_hour is None
    # at that rate an hour of the API costs what an hour of the pools does
    assert x.break_even_tokens_per_hour is not None
    assert x.break_even_tokens_per_hour * x.cost / 4_000_000 == pytest.approx(view.total.cost / 240)


def test_without_usage_nothing_is_divided_by_nothing() -> None:
    view = cost_view([], prices(apis=[{"name": "x", "prompt": 1, "completion": 1}]), "deployment")
    assert (view.rows, view.idle, view.total.per_million, view.alone) == ([], 240.0, None, 0.0)
    assert view.apis[0].break_even_tokens_per_hour is None
    view = cost_view([used(1, "a"), used(2, "b")], prices(), "deployment")
    assert [row.cost for row in view.rows] == [120.0, 120.0], "requests without tokens share alike"


def test_weights_and_prices_of_a_cached_prompt() -> None:
    assert Weights().work(Tokens(1, 110, 10, 5)) == 100 + 1 + 20
    assert ApiPrice(name="x", prompt=1, completion=2).cost(Tokens(1, 1_000_000, 500_000, 500_000)) == 2.0


def test_where_pools_cost_nothing_no_api_breaks_even() -> None:
    apis = [{"name": "x", "prompt": 1, "completion": 1}]
    view = cost_view([used(1, promptTokens=9)], prices(nodes={"l4": 0}, apis=apis), "deployment")
    assert view.apis[0].break_even_tokens_per_hour is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": {}}, "nodes has no price for l4"),
        ({"period": {"since": "2026-11-11", "until": "2026-11-01"}}, "since must be before until"),
        ({"period": {"since": "soon", "until": "2026-11-01"}}, "soon is no time"),
        ({"nodes": {"l4": -1}}, "greater than or equal to 0"),
        ({"nodes": {"l4": float("inf")}}, "finite"),
    ],
)
def test_prices_that_make_no_sense_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        prices(**change)
