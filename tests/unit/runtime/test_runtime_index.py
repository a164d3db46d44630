"""The index: who is in a group now, and who is concerned by a change, before and after."""

from __future__ import annotations

from tuneyard.runtime.index import Index


def test_members_follow_their_groups_and_the_old_ones_are_told_too() -> None:
    index: Index[tuple[str], str] = Index()
    assert index.put(("m",), ["a", "b"]) == {"a", "b"}
    assert index.put(("m",), ["b", "c"]) == {"a", "b", "c"}
    assert [index.of(group) for group in "abc"] == [(), (("m",),), (("m",),)]


def test_one_that_goes_is_in_no_group() -> None:
    index: Index[tuple[str], str] = Index()
    index.put(("m",), ["a"])
    assert index.put(("m",), []) == {"a"}
    assert index.of("a") == ()
    assert index.put(("m",), []) == frozenset()


def test_members_of_several_groups_are_sorted_and_named_once() -> None:
    index: Index[tuple[str], str] = Index()
    for name in ("c", "a", "b"):
        index.put((name,), ["x", name])
    assert index.of("x", "a", "nobody") == (("a",), ("b",), ("c",))
