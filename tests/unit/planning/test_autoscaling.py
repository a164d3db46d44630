"""How many replicas a load asks for: decisions step by step, and what is remembered between them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.builders import T0, stamp
from tuneyard.api.autoscaling import Autoscaling, ScalingStatus
from tuneyard.planning.autoscaling import (
    LOOK,
    SUSTAINED_SECONDS,
    Measured,
    Metric,
    PoolNow,
    Scaled,
    decide,
    least_replicas,
    most_replicas,
)

BY_REQUESTS = {"targets": {"inFlightRequests": 10}}


def settings(**fields: Any) -> Autoscaling:
    return Autoscaling.from_dict({"minReplicas": 1, "maxReplicas": 8, **BY_REQUESTS, **fields})


def load(*missing: Metric, **values: float) -> Measured:
    """A load of which everything is known but what is missing."""
    found = {Metric(name): value for name, value in values.items()}
    return Measured(found, frozenset(Metric) - set(missing))


def asked(
    requests: float, replicas: int, state: ScalingStatus | None = None, after: float = 0.0, **fields: Any
) -> Scaled:
    now = T0 + timedelta(seconds=after)
    return decide(settings(**fields), load(inFlightRequests=requests), PoolNow(replicas, replicas), state, now)


@pytest.mark.parametrize(
    ("requests", "replicas", "wanted"),
    [
        (0, 1, 1),
        (10, 1, 1),
        (14, 1, 1),
        (18, 1, 2),
        (52, 1, 4),
        (44, 4, 4),
        (60, 5, 5),
        (400, 1, 5),
        (400, 3, 7),
        (400, 7, 8),
        (400, 8, 8),
    ],
)
def test_up_at_once_by_a_bounded_step(requests: float, replicas: int, wanted: int) -> None:
    assert asked(requests, replicas).wanted == wanted


def test_what_may_be_chance_has_to_last_a_minute() -> None:
    first = asked(14, 1)
    assert (first.wanted, first.state.higher_since, first.look) == (1, stamp(0), LOOK)
    assert asked(11, 1, first.state, after=45).state.higher_since is None
    assert asked(14, 1, first.state, after=45).wanted == 1
    assert asked(14, 1, first.state, after=60).wanted == 2
    most = asked(52, 1)
    assert (most.wanted, most.state.higher_since) == (4, stamp(0))
    assert asked(52, 4, most.state, after=59).wanted == 4
    assert asked(52, 4, most.state, after=60).wanted == 5


def test_a_step_is_all_that_comes_in_a_quarter_of_a_minute() -> None:
    first = asked(400, 1)
    assert (first.wanted, first.state.since, first.state.from_replicas) == (5, stamp(0), 1)
    assert first.reason == "inFlightRequests 400 in all, target 10 a replica"
    second = asked(400, 5, first.state, after=14)
    assert (second.wanted, second.look) == (5, 2.0)
    assert asked(400, 5, second.state, after=15).wanted == 8
    assert asked(45, 1, scaleUp={"maxStep": 1}).wanted == 2


def test_what_keeps_it_from_having_more_is_said() -> None:
    assert asked(400, 8).state.limit == "MaxReplicas"
    dear: dict[str, Any] = {"costCeiling": {"perHour": 13.0, "perReplicaHour": 4.0}}
    assert (asked(400, 1, **dear).wanted, asked(400, 3, **dear).state.limit) == (3, "CostCeiling")
    assert asked(24, 3, **dear).state.limit is None
    assert (most_replicas(settings(**dear)), least_replicas(settings(minReplicas=0))) == (3, 1)
    assert most_replicas(settings(costCeiling={"perHour": 0.3, "perReplicaHour": 0.1})) == 3


def test_up_waits_for_its_window_where_there_is_one() -> None:
    slow: dict[str, Any] = {"scaleUp": {"stabilizationWindow": "30s"}}
    first = asked(52, 1, **slow)
    assert (first.wanted, first.state.higher_since, first.look) == (1, stamp(0), LOOK)
    assert asked(5, 1, first.state, after=10, **slow).state.higher_since is None
    assert asked(52, 1, first.state, after=30, **slow).wanted == 4


def test_down_only_when_the_load_has_asked_for_less_through_all_of_the_window() -> None:
    state: ScalingStatus | None = None
    for after in range(0, 300, 15):
        found = asked(10 if after != 60 else 30, 6, state, after)
        assert found.wanted == 6, after
        state = found.state
    assert state is not None and state.lower_since == stamp(0)
    down = asked(10, 6, state, 300)
    assert (down.wanted, down.state.from_replicas) == (4, 6), "no further than the most that was asked for in it"
    assert down.reason == "inFlightRequests 10 in all, target 10 a replica: 4 would have done for 5m"
    assert asked(10, 4, down.state, 330).wanted == 4
    further = asked(10, 4, down.state, 390)
    assert further.wanted == 2, "the window goes on, and has forgotten the most"
    assert asked(10, 2, further.state, 2000).look == LOOK


def test_a_window_begins_anew_when_the_load_rises_or_nobody_knows_it() -> None:
    first = asked(10, 6)
    assert first.state.lower_since == stamp(0) and first.state.peaks
    for again in (
        asked(60, 6, first.state, 200),
        decide(settings(), load(Metric.IN_FLIGHT, inFlightRequests=1), PoolNow(6, 6), first.state, T0 + timedelta(200)),
        decide(settings(), load(inFlightRequests=1), PoolNow(6, 6, steady=False), first.state, T0 + timedelta(200)),
    ):
        assert (again.wanted, again.state.lower_since, again.state.peaks, again.look) == (6, None, None, LOOK)


def test_a_step_down_is_bounded_too() -> None:
    few: dict[str, Any] = {"scaleDown": {"maxStep": 2, "stabilizationWindow": "1m"}}
    state: ScalingStatus | None = None
    for after in (0, 15, 30, 45):
        state = asked(1, 8, state, after, **few).state
    down = asked(1, 8, state, 60, **few)
    assert (down.wanted, down.state.lower_since) == (6, None), "another window for the next one"


def test_half_knowledge_raises_and_never_lowers() -> None:
    now, unknown = PoolNow(2, 2), (Metric.IN_FLIGHT,)
    assert decide(settings(), load(*unknown, inFlightRequests=52), now, None, T0).wanted == 4
    quiet = decide(settings(), load(*unknown), now, ScalingStatus(lower_since=stamp(-60)), T0)
    assert (quiet.wanted, quiet.state.lower_since) == (2, None)


@pytest.mark.parametrize(
    ("replicas", "least", "wanted", "reason"),
    [
        (1, 3, 3, "m: v2 is about to get 50 %"),
        (1, 30, 8, "2 to 8 replicas are allowed"),
        (1, 0, 2, "2 to 8 replicas are allowed"),
        (12, 0, 8, "2 to 8 replicas are allowed"),
    ],
)
def test_bounds_hold_at_once(replicas: int, least: int, wanted: int, reason: str) -> None:
    pool = PoolNow(replicas, replicas, least=least, least_reason="m: v2 is about to get 50 %")
    found = decide(settings(minReplicas=2), Measured(), pool, None, T0)
    expected = reason if wanted == least else reason.replace("2 to", f"{min(8, max(2, least))} to")
    assert (found.wanted, found.reason) == (wanted, expected)


def test_the_target_that_needs_most_decides() -> None:
    several = settings(targets={"inFlightRequests": 10, "kvCacheUtilization": 80, "tokensPerSecond": 100})
    for values, wanted in (
        ({"inFlightRequests": 5, "kvCacheUtilization": 190}, 3),
        ({"inFlightRequests": 5, "tokensPerSecond": 430}, 4),
        ({"inFlightRequests": 30, "kvCacheUtilization": 60}, 2),
        ({"kvCacheUtilization": 87}, 1),
    ):
        assert decide(several, load(**values), PoolNow(1, 1), None, T0).wanted == wanted, values


# -- targets that say only that there are too few --------------------------------------------------------------------

QUEUE = {"targets": {"waitingRequests": 2}}
TTFT = {"targets": {"ttft": {"max": "2s"}}}


def queue(replicas: int, serving: int, state: ScalingStatus | None = None, after: float = 0, **values: float) -> Scaled:
    now = T0 + timedelta(seconds=after)
    return decide(settings(**QUEUE), load(**values), PoolNow(replicas, serving), state, now)


def test_a_queue_asks_for_more_only_when_all_that_was_asked_for_serves() -> None:
    assert queue(2, 2, waitingRequests=4, inFlightRequests=20).wanted == 2
    assert queue(2, 2, waitingRequests=9, inFlightRequests=20).wanted == 5
    assert queue(2, 1, waitingRequests=9, inFlightRequests=20).wanted == 2


def test_what_they_could_not_sustain_is_remembered_and_says_when_fewer_will_do() -> None:
    missed = queue(2, 2, waitingRequests=10, inFlightRequests=42)
    assert (missed.wanted, missed.state.sustained, missed.state.sustained_at) == (5, 16.0, stamp(0))
    state, wanted = missed.state, []
    for after in range(15, 330, 15):
        found = queue(5, 5, state, after, inFlightRequests=33)
        state = found.state
        wanted.append(found.wanted)
    assert wanted == [5] * 20 + [3], "33 requests at 0.8 of 16 a replica"
    assert queue(5, 5, missed.state, SUSTAINED_SECONDS, inFlightRequests=33).state.sustained is None


def test_while_nobody_knows_that_one_less_is_tried() -> None:
    assert queue(5, 5, waitingRequests=0, inFlightRequests=3).state.peaks[0].replicas == 4  # type: ignore[index]
    assert queue(5, 5, waitingRequests=7, inFlightRequests=3).state.peaks is None, "not while much of it is used"
    unknown = decide(settings(**QUEUE), load(Metric.IN_FLIGHT), PoolNow(5, 5), None, T0)
    assert unknown.state.peaks is None


def test_what_is_sustained_rises_with_what_is_seen() -> None:
    known = ScalingStatus(sustained=5.0, sustained_at=stamp(0))
    found = queue(2, 2, known, 60, waitingRequests=0, inFlightRequests=18)
    assert (found.state.sustained, found.state.sustained_at) == (9.0, stamp(1))
    same = queue(2, 2, known, 60, waitingRequests=0, inFlightRequests=10.5)
    assert (same.state.sustained, same.state.sustained_at) == (5.0, stamp(0))


def test_a_late_first_token_asks_for_twice_as_many_at_most() -> None:
    by_time = settings(**TTFT)
    for milliseconds, wanted in ((0, 3), (2100, 3), (2300, 4), (3000, 5), (60_000, 6)):
        found = decide(by_time, load(ttft=milliseconds, inFlightRequests=16), PoolNow(3, 3), None, T0)
        assert found.wanted == wanted, milliseconds
    late = decide(by_time, load(ttft=2300, inFlightRequests=9), PoolNow(3, 3), None, T0)
    assert late.reason == "ttft 2300 ms, target 2000 ms, 9 under way"


def late(replicas: int, requests: float, state: ScalingStatus | None = None, after: float = 0, **more: Any) -> Scaled:
    """A pool whose first tokens come in 3 s, where 2 s are asked for."""
    now, found = T0 + timedelta(seconds=after), load(ttft=3000, inFlightRequests=requests, **more)
    return decide(settings(**TTFT), found, PoolNow(replicas, replicas), state, now)


def test_a_late_first_token_asks_for_no_more_replicas_than_there_are_requests() -> None:
    """A long prompt alone on its replica takes as long beside a hundred idle ones."""
    assert (late(1, 1).wanted, late(1, 0).wanted) == (1, 1)
    assert late(1, 1).state.higher_since is None
    assert late(4, 3.2).wanted == 4
    assert late(1, 1, waitingRequests=1).wanted == 2, "it waits for more than its prompt"
    some = load(Metric.IN_FLIGHT, ttft=3000, inFlightRequests=1)
    assert decide(settings(**TTFT), some, PoolNow(1, 1), None, T0).wanted == 2, "there may be others"
    other = settings(targets={"ttft": {"max": "2s"}, "inFlightRequests": 1})
    assert decide(other, load(ttft=3000, inFlightRequests=9), PoolNow(1, 1), None, T0).wanted == 5, "as without it"


def test_requests_that_come_by_chance_have_to_stay_a_minute_for_a_replica_each() -> None:
    first = late(3, 5)
    assert (first.wanted, first.state.higher_since) == (3, stamp(0))
    assert late(3, 2, first.state, after=30).state.higher_since is None
    assert late(3, 5, first.state, after=60).wanted == 5


def test_replicas_that_no_request_is_left_for_go_as_the_window_says() -> None:
    state, wanted = None, []
    for after in range(0, 330, 15):
        found = late(8, 3 if after == 60 else 1, state, after)
        state = found.state
        wanted.append(found.wanted)
    assert wanted == [8] * 20 + [4, 4], "3 requests and one more by chance"
    assert late(8, 3, waitingRequests=1).state.lower_since is None
    assert late(2, 1).wanted == 2, "what it gives back it would not ask for again, and the other way round"
