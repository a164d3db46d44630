"""What tokens have cost: from what pools cost in a period and whose tokens their engines generated, and from what
hosted APIs ask for theirs (hostedcost.py). Pure.

Rules:
- a pool costs its hours times the price of its nodes, whether anybody asked it or not: idle hours are part of what its
  tokens cost;
- that is shared by those who asked, by the work of their tokens. A generated token costs an engine more than one that
  it reads, and one from its cache next to nothing (Weights; measure your own). Estimates count: the engine has worked;
- what has no price is told and not guessed: usage of a pool whose hours are not given is in no sum;
- alone: what the same fine-tunes would have cost with a pool each, one replica for the whole period;
- an API's cost is that of the same tokens, those of the pools, at its prices. Break-even: the tokens an hour, in the
  same mix, at which it costs what the pools cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tuneyard.api.base import ApiModel
from tuneyard.api.usage import UsageRecord
from tuneyard.planning.hostedcost import MILLION, Costs, HostedUse, price_of_tokens
from tuneyard.planning.timestamps import parsed_time, rfc3339
from tuneyard.planning.usage import Tokens, tokens_of
from tuneyard.planning.usagereport import NAMES, By, answered, once, within

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _text(given: object) -> object:
    return given.isoformat() if isinstance(given, date) else given  # as YAML reads it


def _moment(text: str) -> str:
    moment = parsed_time(text)
    if moment is None:
        raise ValueError(f"{text} is no time: write 2026-11-01 or 2026-11-01T12:00:00Z")
    return rfc3339(moment)


Moment = Annotated[str, BeforeValidator(_text), AfterValidator(_moment)]
"""A day or a time; UTC where it does not say."""


class Period(ApiModel):
    """From when to when."""

    since: Moment
    until: Moment

    @model_validator(mode="after")
    def _ordered(self) -> Period:
        if self.hours <= 0:
            raise ValueError("since must be before until")
        return self

    @property
    def hours(self) -> float:
        """How long it is."""
        since, until = parsed_time(self.since), parsed_time(self.until)
        return (until - since).total_seconds() / 3600 if since and until else 0.0


class PoolHours(ApiModel):
    """What a pool used in the period."""

    pool: str
    """`namespace/name`."""
    node: str
    """One of `nodes`: what one replica runs on."""
    hours: Price
    """Replicas times hours."""


class ApiPrice(ApiModel):
    """What somebody else asks for a million tokens."""

    name: str
    prompt: Price
    cached: Price | None = None
    """Of a prompt's tokens that came from the cache; without it as the others."""
    completion: Price

    def cost(self, tokens: Tokens) -> float:
        """Of these."""
        return price_of_tokens(tokens, self.prompt, self.cached, self.completion)


class Weights(ApiModel):
    """How much of an engine's work a token is."""

    prompt: Price = 1.0
    cached: Price = 0.1
    completion: Price = 4.0

    def work(self, tokens: Tokens) -> float:
        """Of these."""
        fresh = tokens.prompt - tokens.cached
        return fresh * self.prompt + tokens.cached * self.cached + tokens.completion * self.completion


class Prices(ApiModel):
    """What `tuneyard cost` is told."""

    currency: str = "USD"
    period: Period
    nodes: dict[str, Price] = {}
    """Price of an hour by node type, for example `l4` and `l4-spot`."""
    pools: list[PoolHours] = []
    """None where everything is hosted."""
    apis: list[ApiPrice] = []
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _known(self) -> Prices:
        unknown = sorted({pool.node for pool in self.pools} - self.nodes.keys())
        if unknown:
            raise ValueError(f"nodes has no price for {', '.join(unknown)}")
        return self

    def cost_of(self, pool: PoolHours) -> float:
        """What it cost."""
        return pool.hours * self.nodes[pool.node]


class CostRow(ApiModel):
    """What one of them cost."""

    name: str
    cost: float
    hosted: float = 0.0
    """Of the cost, what APIs ask; the rest is the pools'."""
    tokens: int
    """Of prompts and answers."""
    per_million: float | None = None
    """Cost of a million tokens; None without any."""


class ApiRow(ApiModel):
    """The same tokens at somebody else's."""

    name: str
    cost: float
    break_even_tokens_per_hour: float | None = None
    """None where it or the pools cost nothing, or nothing was asked."""


class CostView(ApiModel):
    """What `tuneyard cost` shows."""

    currency: str
    by: By
    period: Period
    rows: list[CostRow]
    pools: list[CostRow]
    hosted_apis: list[CostRow]
    """APIs that served external revisions, by host."""
    own: CostRow
    """All pools."""
    hosted: CostRow
    """All those APIs."""
    total: CostRow
    idle: float
    """Cost of pools that nobody asked."""
    alone: float
    """With a pool for each fine-tune."""
    fine_tunes: int
    tokens_per_hour: float
    """Of the pools."""
    apis: list[ApiRow]
    unpriced: list[str]
    """Pools with usage in the period whose hours are not given."""
    unpriced_hosted: list[str]
    """External revisions with usage that has no price in this currency."""


def _pool_of(record: UsageRecord) -> str:
    return f"{record.deployment.partition('/')[0]}/{record.pool or '-'}"


def cost_view(records: Iterable[UsageRecord], prices: Prices, by: By) -> CostView:
    """Who cost what in the period."""
    hosted = HostedUse(prices.currency)
    used, tuned = _used(records, prices.period, by, hosted)
    pools, costs = _pools(prices)
    of_pool: dict[str, dict[str, Tokens]] = {}
    for (pool, name), tokens in used.items():
        of_pool.setdefault(pool, {})[name] = tokens
    sums: Costs = {}
    for pool in sorted(of_pool.keys() & costs.keys()):
        _share(sums, of_pool[pool], costs[pool], prices.weights)
    own = _sum(tokens for _, tokens in sums.values())
    whole, hours, apis = sum(costs.values()), prices.period.hours, hosted.by_api()
    asked = sum(cost for cost, _ in apis.values())
    of_apis = _sum(tokens for _, tokens in apis.values())
    alone = sum(prices.nodes[pools[pool].node] * hours for pool, _ in tuned if pool in costs)
    return CostView(
        currency=prices.currency,
        by=by,
        period=prices.period,
        rows=_both(sums, hosted.by_name()),
        pools=[_row(name, cost, _sum(of_pool.get(name, {}).values())) for name, cost in sorted(costs.items())],
        hosted_apis=_both({}, apis),
        own=_row("own", whole, own),
        hosted=_row("hosted", asked, of_apis, asked),
        total=_row("total", whole + asked, own.plus(of_apis), asked),
        idle=sum(cost for name, cost in costs.items() if name not in of_pool),
        alone=alone,
        fine_tunes=len([pool for pool, _ in tuned if pool in costs]),
        tokens_per_hour=_size(own) / hours,
        apis=[_api(api, own, whole, hours) for api in prices.apis],
        unpriced=sorted(of_pool.keys() - costs.keys()),
        unpriced_hosted=hosted.unpriced,
    )


def _used(
    records: Iterable[UsageRecord], period: Period, by: By, hosted: HostedUse
) -> tuple[dict[tuple[str, str], Tokens], set[tuple[str, str]]]:
    """Tokens by pool and name, and the fine-tunes of each pool; what no pool has served goes to `hosted`."""
    used: dict[tuple[str, str], Tokens] = {}
    tuned: set[tuple[str, str]] = set()
    for record in once(records):
        if not within(record, period.since, period.until):
            continue
        if record.external is not None:
            hosted.add(record, NAMES[by](record))
        else:
            key = _pool_of(record), NAMES[by](record)
            used[key] = used.get(key, Tokens()).plus(tokens_of(record))
            tuned.add((key[0], answered(record)))
    return used, tuned


def _pools(prices: Prices) -> tuple[dict[str, PoolHours], dict[str, float]]:
    """The pools by name, and what each cost: one that has run on several kinds of nodes is listed several times."""
    costs: dict[str, float] = {}
    for pool in prices.pools:
        costs[pool.pool] = costs.get(pool.pool, 0.0) + prices.cost_of(pool)
    return {pool.pool: pool for pool in reversed(prices.pools)}, costs


def _share(sums: Costs, used: dict[str, Tokens], cost: float, weights: Weights) -> None:
    """Add what each of them cost in one pool; where nobody's tokens were any work, each cost the same."""
    work = {name: weights.work(tokens) for name, tokens in used.items()}
    whole = sum(work.values())
    for name, tokens in used.items():
        share = work[name] / whole if whole else 1 / len(used)
        before, had = sums.get(name, (0.0, Tokens()))
        sums[name] = before + cost * share, had.plus(tokens)


def _sum(found: Iterable[Tokens]) -> Tokens:
    total = Tokens()
    for tokens in found:
        total = total.plus(tokens)
    return total


def _size(tokens: Tokens) -> int:
    return tokens.prompt + tokens.completion


def _both(own: Costs, hosted: Costs) -> list[CostRow]:
    """What each cost in pools and at APIs together, the dearest first."""
    nothing = 0.0, Tokens()
    rows = []
    for name in own.keys() | hosted.keys():
        (cost, tokens), (asked, others) = own.get(name, nothing), hosted.get(name, nothing)
        rows.append(_row(name, cost + asked, tokens.plus(others), asked))
    return sorted(rows, key=lambda row: (-row.cost, row.name))


def _row(name: str, cost: float, tokens: Tokens, hosted: float = 0.0) -> CostRow:
    size = _size(tokens)
    each = cost * MILLION / size if size else None
    return CostRow(name=name, cost=cost, hosted=hosted, tokens=size, per_million=each)


def _api(api: ApiPrice, tokens: Tokens, whole: float, hours: float) -> ApiRow:
    cost, size = api.cost(tokens), _size(tokens)
    even = whole / hours / (cost / size) if cost and whole else None
    return ApiRow(name=api.name, cost=cost, break_even_tokens_per_hour=even)
