"""What tokens of hosted APIs have cost: each request at the price that its revision had when it came. Pure.

Rules:
- the price is in the record. What somebody sets later changes no sum of what was asked before;
- estimates count, as they do for pools: the API has worked;
- what has no price, or one in another currency than the sums, is told and not guessed.
"""

from __future__ import annotations

from tuneyard.api.external import DEFAULT_CURRENCY, ExternalPricing
from tuneyard.api.usage import UsageRecord
from tuneyard.planning.usage import Tokens, tokens_of

MILLION = 1_000_000
Costs = dict[str, tuple[float, Tokens]]
"""Cost and tokens by name."""


def price_of_tokens(tokens: Tokens, prompt: float, cached: float | None, completion: float) -> float:
    """What these cost at an API's prices of a million; without one for the cache these are as the others."""
    fresh = tokens.prompt - tokens.cached
    of_cached = prompt if cached is None else cached
    return (fresh * prompt + tokens.cached * of_cached + tokens.completion * completion) / MILLION


class HostedUse:
    """Tokens that APIs have generated and read, in one currency."""

    def __init__(self, currency: str) -> None:
        self._currency = currency
        self._used: dict[tuple[str, str, ExternalPricing], Tokens] = {}
        self._unpriced: set[str] = set()

    def add(self, record: UsageRecord, name: str) -> None:
        """A record of an external revision, whose cost is `name`'s."""
        tokens, price = tokens_of(record), record.price
        currency = (price.currency if price else None) or DEFAULT_CURRENCY
        if price is not None and currency == self._currency:
            key = name, record.external or "-", price
            self._used[key] = self._used.get(key, Tokens()).plus(tokens)
        elif tokens.prompt or tokens.completion:  # what was refused has cost nothing
            other = f" ({currency})" if price is not None else ""
            self._unpriced.add(f"{record.deployment} {record.revision}{other}")

    @property
    def unpriced(self) -> list[str]:
        """Revisions with tokens whose cost nobody knows."""
        return sorted(self._unpriced)

    def by_name(self) -> Costs:
        """By what sums are asked for."""
        return self._by(0)

    def by_api(self) -> Costs:
        """By the API's host."""
        return self._by(1)

    def _by(self, part: int) -> Costs:
        sums: Costs = {}
        for key, tokens in self._used.items():
            price, of = key[2], str(key[part])
            cost = price_of_tokens(
                tokens, price.input_per_million, price.cached_input_per_million, price.output_per_million
            )
            before, had = sums.get(of, (0.0, Tokens()))
            sums[of] = before + cost, had.plus(tokens)
        return sums
