"""A pod that is deleted while it has what no other pod has: the plan names it until somebody else serves that."""

from __future__ import annotations

from dataclasses import replace

from tests.builders import Situation, pod
from tests.unit.planning.basemodels import applied_to
from tests.unit.planning.test_poolplan import places, rested, spread, the_plan, without
from tuneyard.planning.handover import with_leaving
from tuneyard.planning.placing import Host


def leaving(situation: Situation, name: str, **fields: object) -> Situation:
    pods = (replace(p, deleted=True, **fields) if p.name == name else p for p in situation.pods)  # type: ignore[arg-type]
    return replace(situation, pods=tuple(pods))


def loading(situation: Situation, *adapters: str) -> Situation:
    """The pods that stay have loaded these of what the plan gives them, besides what they had."""
    plan = the_plan(situation)
    pods = []
    for known in situation.pods:
        mine = {a.name for a in plan.share(known.name).adapters}
        had = set(known.report.adapters) if known.report else set()
        pods.append(known if known.deleted else pod(known.name, *sorted(mine & (had | set(adapters)))))
    return replace(situation, pods=tuple(pods))


def test_it_keeps_what_nobody_else_serves_and_others_get_it_as_if_it_were_gone() -> None:
    before = rested(spread())
    share = sorted(n for n, pods in places(before).items() if pods == ["a"])
    assert len(share) >= 2
    first, *rest = share
    situation = applied_to(leaving(before, "a"))
    gone = places(applied_to(without(before, "a")))
    assert the_plan(situation).pods == ["b", "c"], "it is not one to spread over any more"
    assert places(situation) == {n: sorted({*(p or ()), *(["a"] if n in share else [])}) for n, p in gone.items()}

    situation = applied_to(loading(situation, first))
    assert "a" not in (places(situation)[first] or ())
    assert all("a" in (places(situation)[name] or ()) for name in rest)
    situation = applied_to(loading(situation, *share))
    assert places(situation) == gone


def test_one_that_does_not_serve_keeps_nothing() -> None:
    before = rested(spread())
    gone = places(applied_to(without(before, "a")))
    assert places(applied_to(leaving(before, "a", ready=False))) == gone, "its node does not answer"
    assert places(applied_to(leaving(before, "a", report=pod("a", engine="Draining").report))) == gone


def test_with_a_copy_elsewhere_nothing_is_waited_for() -> None:
    before = rested(spread(copies=2))
    after = applied_to(leaving(before, "a"))
    assert places(after) == places(applied_to(without(before, "a")))


def test_two_that_leave_together_keep_the_same() -> None:
    hosts = [Host("c", loaded=frozenset({"y"}))]
    leave = [Host("a", loaded=frozenset({"x", "y"})), Host("b", loaded=frozenset({"x"}))]
    assert with_leaving({"x": ("c",), "y": ("c",), "z": ()}, hosts, leave) == {
        "x": ("a", "b", "c"),
        "y": ("c",),
        "z": (),
    }
