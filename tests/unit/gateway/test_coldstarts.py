"""What a gateway guesses of the rest of a start."""

from __future__ import annotations

import pytest

from tuneyard.gateway.coldstarts import LONGEST, ColdStarts

POOL, OTHER = ("default", "base"), ("default", "other")


@pytest.mark.parametrize(
    ("took", "since", "told"),
    [(90, 0, 90), (90, 20.5, 70), (90, 88, 5), (90, 300, 5), (2, 0, 5), (3000, 0, 600), (LONGEST + 1, 0, 5)],
)
def test_it_is_what_the_last_one_took(took: float, since: float, told: int) -> None:
    starts = ColdStarts()
    starts.waits(POOL, 0)
    starts.waits(POOL, took / 2)
    starts.serves(POOL, took)
    starts.serves(POOL, took + 1)
    assert starts.retry_after(POOL, took + 2) == 5, "nothing starts"
    starts.waits(POOL, 10_000)
    assert starts.retry_after(POOL, 10_000 + since) == told
    assert starts.retry_after(OTHER, 10_000) == 5


def test_a_start_that_never_ended_is_forgotten() -> None:
    starts = ColdStarts()
    starts.waits(POOL, 0)
    starts.waits(POOL, LONGEST + 10)
    starts.serves(POOL, LONGEST + 40)
    starts.waits(POOL, LONGEST + 100)
    assert starts.retry_after(POOL, LONGEST + 100) == 30
