"""Counters of gateways that come, go and begin anew, as what has come since the last look."""

from __future__ import annotations

import pytest

from tuneyard.planning.evidence import (
    NOTHING,
    Objective,
    Pair,
    Position,
    Reading,
    Series,
    Tally,
    forgotten,
    growth,
    pairs,
    prompt_bucket,
    warmed,
)

V2, V3 = Series("v2", Objective.ERROR_RATE), Series("v3", Objective.ERROR_RATE)
SLOW = Series("v3", Objective.TTFT)


def reading(process: str, *, started: float = 0.0, **judged: int) -> Reading:
    return Reading(process, started, {Series(name, Objective.ERROR_RATE): Tally(n) for name, n in judged.items()})


def looks(*rounds: list[Reading]) -> list[dict[str, int]]:
    """What each look brings, one every ten seconds from 10 on."""
    position, found = Position(), []
    for number, readings in enumerate(rounds, 1):
        position, counts = growth(position, readings, number * 10.0)
        found.append({series.revision: tally.judged for series, tally in counts.items()})
    return found


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        pytest.param([[reading("a", v2=5)], [reading("a", v2=7)]], [{}, {"v2": 2}], id="what came since"),
        pytest.param([[reading("a", v2=5)], [reading("a", v2=5)]], [{}, {}], id="nothing came"),
        pytest.param(
            [[reading("a", v2=5), reading("b", v2=1)], [reading("a", v2=6), reading("b", v2=4)]],
            [{}, {"v2": 4}],
            id="two gateways add up",
        ),
        pytest.param(
            [[reading("a", v2=5)], [reading("a2", started=15, v2=3)]],
            [{}, {"v2": 3}],
            id="a new process from its start",
        ),
        pytest.param(
            [[reading("a", v2=5)], [reading("b", started=1, v2=900)], [reading("b", started=1, v2=902)]],
            [{}, {}, {"v2": 2}],
            id="an old process from now on",
        ),
        pytest.param(
            [[reading("a", v2=5, v3=1)], [], [reading("a", v2=25, v3=3)]],
            [{}, {}, {"v2": 20, "v3": 2}],
            id="one that was silent is late for both",
        ),
        pytest.param([[reading("a", v2=5)], [reading("a", v2=2)]], [{}, {"v2": 2}], id="a counter that began anew"),
        pytest.param([[reading("a", v2=5)], [reading("a", v2=5, v3=1)]], [{}, {"v3": 1}], id="a new revision"),
    ],
)
def test_what_a_look_brings(rounds, expected):
    assert looks(*rounds) == expected


def test_runs_are_counted_like_the_rest():
    before, now = Tally(10, 4, 3, 2), Tally(20, 9, 8, 6)
    assert now.since(before) == Tally(10, 5, 5, 4)
    assert (now.calm, now.starts, now.rate) == (12, 3, 0.45)
    assert NOTHING.rate == 0


def test_a_gateway_that_is_gone_is_forgotten():
    position, _ = growth(Position(), [reading("a", v2=1), reading("b", v2=1)], 1.0)
    assert set(forgotten(position, ["b", "c"]).seen or {}) == {"b"}


def test_latencies_wait_for_warm_caches_and_errors_do_not():
    counts = {V3: Tally(3), SLOW: Tally(3, 3)}
    assert warmed(counts, 59.0, 60.0) == {V3: Tally(3)}
    assert warmed(counts, 60.0, 60.0) == counts


def test_both_revisions_by_prompt_length():
    long = V2._replace(prompts=2)
    counts = {V2: Tally(8), V3: Tally(2), long: Tally(1), SLOW: Tally(9), Series("v1", Objective.ERROR_RATE): Tally(4)}
    found = pairs(counts, Objective.ERROR_RATE, "v3", "v2")
    assert found == {0: Pair(Tally(2), Tally(8)), 2: Pair(NOTHING, Tally(1))}


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 0), (256, 0), (257, 1), (1024, 1), (16384, 3), (16385, 4)])
def test_prompt_lengths(tokens, bucket):
    assert prompt_bucket(tokens) == bucket
