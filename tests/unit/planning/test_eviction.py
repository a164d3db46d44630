"""Which artifacts go from a cache: the least recently used that are not in use, no more than needed, none in vain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneyard.planning.eviction import Disk, Evictions, Stored, attainable, no_room, plan_evictions

OLD = Stored("blobs/old", 10, 1.0, in_use=False)
MIDDLE = Stored("blobs/middle", 20, 2.0, in_use=False)
YOUNG = Stored("blobs/young", 30, 3.0, in_use=False)
USED = Stored("blobs/used", 40, 0.0, in_use=True)
COMING = Stored("partials/coming", 5, 0.0, in_use=True, coming_bytes=15)
ALL = (YOUNG, USED, OLD, MIDDLE)
PLENTY = 10_000


@pytest.mark.parametrize(
    ("stored", "needed", "disk", "victims", "missing"),
    [
        pytest.param(ALL, 1000, Disk(None, PLENTY, 0), (), 0, id="nothing bounds it"),
        pytest.param(ALL, 10, Disk(110, PLENTY, 0), (), 0, id="it fits exactly"),
        pytest.param(ALL, 11, Disk(110, PLENTY, 0), (OLD,), 0, id="the oldest goes"),
        pytest.param(ALL, 25, Disk(110, PLENTY, 0), (OLD, MIDDLE), 0, id="two go"),
        pytest.param(ALL, 70, Disk(110, PLENTY, 0), (OLD, MIDDLE, YOUNG), 0, id="all but what is used"),
        pytest.param(ALL, 71, Disk(110, PLENTY, 0), (), 1, id="none in vain"),
        pytest.param(ALL, 0, Disk(95, PLENTY, 0), (OLD,), 0, id="over the limit after a download"),
        pytest.param((USED,), 0, Disk(30, PLENTY, 0), (), 10, id="what is used is over the limit"),
        pytest.param(ALL, 10, Disk(None, 15, 5), (), 0, id="the disk has it, and the reserve stays"),
        pytest.param(ALL, 11, Disk(None, 15, 5), (OLD,), 0, id="the reserve is not used"),
        pytest.param(ALL, 80, Disk(None, 15, 5), (), 10, id="the disk has it not"),
        pytest.param(ALL, 25, Disk(1000, 5, 0), (OLD, MIDDLE), 0, id="the disk is the narrower bound"),
        pytest.param((OLD, COMING), 10, Disk(40, PLENTY, 0), (), 0, id="a download counts with all that will come"),
        pytest.param((OLD, COMING), 11, Disk(40, PLENTY, 0), (OLD,), 0, id="also where it has not come yet"),
        pytest.param((OLD, COMING), 10, Disk(None, 24, 0), (OLD,), 0, id="the disk must take what comes too"),
        pytest.param((), 5, Disk(4, PLENTY, 0), (), 1, id="larger than the cache"),
    ],
)
def test_what_goes(
    stored: tuple[Stored, ...], needed: int, disk: Disk, victims: tuple[Stored, ...], missing: int
) -> None:
    assert plan_evictions(stored, needed, disk) == Evictions(victims, missing)


def test_of_equally_old_ones_the_order_is_of_names() -> None:
    twins = [Stored(name, 10, 1.0, in_use=False) for name in ("b", "a", "c")]
    assert [v.name for v in plan_evictions(twins, 15, Disk(30, PLENTY, 0)).victims] == ["a", "b"]


def test_why_there_is_no_room_is_said_with_all_figures() -> None:
    used = [Stored(f"blobs/{n}", n << 30, 0.0, in_use=True) for n in range(1, 8)]
    text = no_room([*used, OLD], 20 << 30, Disk(40 << 30, 90 << 30, 0))
    assert f"20.0 GiB needed ({20 << 30} bytes)" in text
    assert f"12.0 GiB free ({12 << 30} bytes)" in text
    assert "limited to 40.0 GiB" in text and "its disk has 90.0 GiB left" in text
    assert "in use are blobs/7 7.0 GiB, blobs/6 6.0 GiB" in text and "2 more" in text
    assert "blobs/old" not in text and "serving.cache" in text
    empty = no_room([], 5, Disk(None, 4, 0))
    assert "without a limit" in empty and "none of its artifacts" in empty


sizes = st.integers(min_value=0, max_value=50)
things = st.builds(Stored, st.uuids().map(str), sizes, st.floats(0, 9), st.booleans(), st.just(0))


@pytest.mark.lasting
@given(st.lists(things, max_size=8), sizes, st.none() | st.integers(0, 200), sizes, sizes)
def test_whatever_lies_there(stored: list[Stored], needed: int, limit: int | None, free: int, reserve: int) -> None:
    disk = Disk(limit, free, reserve)
    plan = plan_evictions(stored, needed, disk)
    freed = sum(v.size_bytes for v in plan.victims)
    total = sum(s.size_bytes for s in stored)
    if plan.missing:
        assert plan.victims == ()
        assert needed > attainable(stored, disk) or attainable(stored, disk) == 0
        return
    assert not any(v.in_use for v in plan.victims)
    left = [s for s in stored if not s.in_use and s not in plan.victims]
    assert all(v.last_used <= s.last_used for v in plan.victims for s in left)
    assert free + freed - reserve >= needed and (limit is None or total - freed + needed <= limit)
    if plan.victims:
        fewer = freed - plan.victims[-1].size_bytes
        assert free + fewer - reserve < needed or (limit is not None and total - fewer + needed > limit)
