"""Which adapters deserve more copies, when they get them and when they give them back."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.builders import BASE, T0, at, demand, deployment, revision
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.growth import (
    QUIET,
    SHRINK_AFTER,
    Bounds,
    Grown,
    Loads,
    bounds,
    deserved,
    grown,
    grows,
    pool_loads,
    remembered,
)
from tuneyard.planning.resolvedserving import resolved_serving


def later(seconds: float) -> datetime:
    return at(seconds / 60)


TEN = Bounds(least=2, most=10, pods=10)


def loads(**adapters: float) -> Loads:
    return Loads(sum(adapters.values()), dict(adapters))


def after(
    found: Loads, had: dict[str, Grown], now: datetime = T0, *, known: bool = True, limits: Bounds = TEN
) -> dict[str, Grown]:
    return grown(sorted(found.adapters.keys() | had.keys()), found, had, limits, known=known, now=now)


@pytest.mark.parametrize(
    ("of", "others", "copies"),
    [
        (0, 0, 2),
        (2 * QUIET, 0, 2),  # a quiet pool: whatever part of it the adapter is
        (2 * QUIET + 1, 0, 3),
        (20, 20, 5),  # at most QUIET for each copy
        (100, 0, 10),  # more than there are pods: all of them
        (23, 500, 2),  # a busy pool: 26 for each copy
        (100, 500, 4),
        (60, 540, 2),  # one of ten that are alike
        (200, 400, 7),
    ],
)
def test_no_copy_should_have_more_than_half_of_what_a_pod_has(of: float, others: float, copies: int) -> None:
    assert deserved(of, loads(a=of, b=others), TEN) == copies


def test_where_all_are_alike_nobody_grows() -> None:
    found = loads(**{f"a{n}": 30.0 for n in range(20)})
    assert after(found, {}) == {}


def test_it_grows_at_once() -> None:
    assert after(loads(hot=40.0, b=1.0), {}) == {"hot": Grown(10)}
    assert after(loads(hot=40.0, b=1.0), {"hot": Grown(3, T0)}) == {"hot": Grown(10)}


def test_it_grows_also_while_a_gateway_is_silent_and_shrinks_only_when_all_answer() -> None:
    assert after(loads(hot=20.0), {}, known=False) == {"hot": Grown(5)}
    assert after(loads(), {"hot": Grown(5, T0)}, later(3600), known=False) == {"hot": Grown(5)}


def test_it_shrinks_by_one_copy_at_a_time_when_it_has_deserved_fewer_for_long() -> None:
    had = {"hot": Grown(5)}
    had = after(loads(hot=1.0), had, later(0))
    assert had == {"hot": Grown(5, later(0))}
    had = after(loads(hot=1.0), had, later(SHRINK_AFTER - 1))
    assert had == {"hot": Grown(5, later(0))}
    had = after(loads(hot=1.0), had, later(SHRINK_AFTER))
    assert had == {"hot": Grown(4, later(SHRINK_AFTER))}
    had = after(loads(hot=1.0), had, later(2 * SHRINK_AFTER))
    had = after(loads(hot=1.0), had, later(3 * SHRINK_AFTER))
    assert had == {}, "it has as many as the others again"


def test_a_little_less_is_no_reason_to_shrink_and_a_burst_begins_the_time_anew() -> None:
    had = {"hot": Grown(5)}
    assert after(loads(hot=9.0), had, later(0)) == {"hot": Grown(5)}, "3 would do, 5 at half the load"
    assert after(loads(hot=8.0), had, later(0)) == {"hot": Grown(5, later(0))}
    assert after(loads(hot=15.0), {"hot": Grown(5, later(0))}, later(1)) == {"hot": Grown(5)}


def test_bounds_hold_also_where_they_have_changed() -> None:
    fewer = Bounds(least=2, most=4, pods=4)
    assert after(loads(hot=90.0), {"hot": Grown(9)}, limits=fewer) == {"hot": Grown(4)}
    assert after(loads(hot=90.0), {}, limits=Bounds(3, 3, 10)) == {}
    assert after(loads(hot=90.0), {"hot": Grown(3)}, limits=Bounds(5, 10, 10)) == {"hot": Grown(10)}


def test_max_copies_bounds_growth_and_equal_to_copies_turns_it_off() -> None:
    def limits(most: int | None, replicas: int = 10) -> Bounds:
        block = ServingSpec(replicas=replicas, lora=LoRASettings(copies=2, max_copies=most))
        return bounds(resolved_serving(block), 2)

    assert limits(None) == Bounds(2, 10, 10)
    assert limits(5) == Bounds(2, 5, 10)
    assert limits(50) == Bounds(2, 10, 10)
    assert after(loads(hot=100.0), {}, limits=limits(2)) == {}
    assert after(loads(hot=100.0), {}, limits=limits(None, replicas=0)) == {}


def test_who_is_not_of_the_pool_any_more_is_forgotten() -> None:
    assert grown(["other"], loads(hot=50.0), {"hot": Grown(5)}, TEN, known=True, now=T0) == {}


def test_those_are_named_that_deserve_more_than_they_are_to_have() -> None:
    found = loads(hot=40.0, warm=9.0, cold=1.0)
    assert grows(found, {}, TEN) == ["hot", "warm"]
    assert grows(found, {"hot": Grown(10), "warm": Grown(2)}, TEN) == ["warm"]
    assert grows(found, {"hot": Grown(10), "warm": Grown(3)}, TEN) == []


def test_what_is_remembered_is_bounded_and_who_has_grown_stays() -> None:
    names = [f"adapter-{n:05}" for n in range(2000)]
    found = Loads(0.0, {name: 50.0 + n for n, name in enumerate(names)})
    limits = Bounds(1, 10, 10)
    kept = grown(names, found, {names[0]: Grown(3)}, limits, known=True, now=T0)
    assert sum(len(name) + len(g.mark) + 8 for name, g in kept.items()) < 32 << 10
    assert names[0] in kept
    assert names[-1] in kept
    assert names[1] not in kept
    many = grown(names[:500], found, {}, Bounds(1, 900, 900), known=True, now=T0)
    assert sum(g.copies - 1 for g in many.values()) <= 20_000


@pytest.mark.parametrize(("hot", "pods"), [(2000, 10), (60, 900)], ids=["too many marks", "too many copies"])
def test_who_finds_no_room_to_be_remembered_is_not_named_again(hot: int, pods: int) -> None:
    found = Loads(0.0, {f"adapter-{n:05}": 5000.0 + n for n in range(hot)})
    limits = Bounds(1, pods, pods)
    assert grows(found, {}, limits)
    had = after(found, {}, limits=limits)
    assert 0 < len(had) < hot
    assert grows(found, had, limits) == []
    assert after(found, had, limits=limits) == had


def test_marks_are_read_again_and_nonsense_is_left_out() -> None:
    for one in (Grown(3), Grown(4, T0)):
        assert remembered({"hot": one.mark}) == {"hot": one}
    assert remembered({"a": "many", "b": "", "c": "-1", "d": "3 soon"}) == {"d": Grown(3)}
    assert remembered({"a": "9" * 5000, "b": "9" * 7, "c": "9" * 6}) == {"c": Grown(999_999)}


def test_requests_are_added_up_by_the_pool_that_serves_them() -> None:
    own = ServingSpec(replicas=1)
    chat = deployment(revisions=[revision("v1", "a"), revision("v2", "b"), revision("plain")])
    code = deployment("code", revisions=[revision("v1", "a"), revision("v2", "b", serving=own)])
    view = demand({"v1": 3.0, "v2": 2.0, "plain": 1.0})
    assert pool_loads([chat, code], view) == {("team", BASE): Loads(6.0, {"a": 3.0, "b": 2.0})}
    found = pool_loads([chat, code], demand({"v1": 3.0, "v2": 2.0}, deployment="code"))
    assert sorted(found.values(), key=lambda x: x.total) == [Loads(2.0, {"b": 2.0}), Loads(3.0, {"a": 3.0})]
    assert pool_loads([chat], demand({"v1": 9.0}, deployment="other")) == {}
