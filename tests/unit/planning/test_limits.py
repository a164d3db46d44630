"""Minutes and months, and what a request is thought to take."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tuneyard.planning.limits import Kind, month_number, month_text, period_of, seconds_left
from tuneyard.planning.tokenguess import Guess


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("kind", "now", "left"),
    [
        (Kind.REQUESTS, "2026-11-26T10:00:00", 60),
        (Kind.TOKENS, "2026-11-26T10:00:59.5", 1),
        (Kind.MONTH, "2026-11-30T23:59:00", 60),
        (Kind.MONTH, "2026-12-31T00:00:00", 86_400),
        (Kind.MONTH, "2028-02-28T00:00:00", 2 * 86_400),
        (Kind.CONCURRENT, "2026-11-26T10:00:30", 1),
    ],
)
def test_how_long_a_period_lasts_and_that_the_next_one_follows(kind: Kind, now: str, left: int) -> None:
    moment = at(now)
    assert seconds_left(kind, moment) == left
    expected = 0 if kind is Kind.CONCURRENT else 1
    assert period_of(kind, moment + left) - period_of(kind, moment) == expected


def test_a_month_is_written_and_read() -> None:
    month = period_of(Kind.MONTH, at("2026-12-31T23:59:59"))
    assert month_text(month) == "2026-12" and month_number("2026-12") == month
    with pytest.raises(ValueError, match="invalid literal"):
        month_number("december")


LIMITS = {Kind.REQUESTS: 5, Kind.CONCURRENT: 2, Kind.TOKENS: 1000, Kind.MONTH: 100_000}


@pytest.mark.parametrize(
    ("size", "most", "choices", "tokens", "month"),
    [
        (100, 200, 1, 250, 250),
        (100, 200, 3, 650, 650),
        (100, 5000, 1, 5050, 5050),  # said, and over the limit: to be refused
        (100, None, 1, 562, 562),
        (100, None, 9, 1000, 4658),  # only guessed: it may take all there is
        (4000, None, 1, 2000, 2512),  # the prompt alone is over it
        (100, 0, 1, 50, 50),
    ],
)
def test_what_a_request_may_take(size: int, most: int | None, choices: int, tokens: int, month: int) -> None:
    needs = Guess().needs(LIMITS, size, most, choices)
    assert needs == {Kind.REQUESTS: 1, Kind.CONCURRENT: 1, Kind.TOKENS: tokens, Kind.MONTH: month}


def test_a_guess_goes_up_at_once_and_down_slowly() -> None:
    guess = Guess()
    guess.learn(100, 90, 4000)
    assert (guess.per_byte, guess.answer) == (0.9, 4000)
    guess.learn(100, 10, 0)
    assert guess.per_byte == pytest.approx(0.86) and guess.answer == 3800
    guess.learn(0, 10, 0)
    assert guess.per_byte == pytest.approx(0.86)
    guess.learn(10, 500, 0)
    assert guess.per_byte == 1.0
