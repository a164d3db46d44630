"""Which bases are woken by what gateways say is asked: those whose plan would be another one."""

from __future__ import annotations

import itertools

import pytest

from tests.builders import demand
from tests.unit.runtime.test_runtime_wakes import plan_of
from tests.unit.runtime.wakeful import Scene, base
from tuneyard.planning.demand import DemandView
from tuneyard.runtime.growing import LOOKING, Growing


@pytest.fixture
def scene() -> Scene:
    """A pool of ten pods that hold two copies of each adapter."""
    scene = Scene()
    scene.base("base", serving={"replicas": 10, "lora": {"copies": 2, "maxCopies": 6}})
    scene.adapter("one")
    scene.adapter("two")
    scene.deployment("chat", {"v0": ("base", None), "v1": ("base", "one"), "v2": ("base", "two")})
    plan_of(scene, "one", "two", copies=2)
    return scene


def growing_in(scene: Scene) -> Growing:
    """One for which enough time passes between any two looks."""
    return Growing(scene.world, itertools.count(step=LOOKING).__next__)


def asked(deployment: str = "chat", **in_flight: float) -> DemandView:
    return demand(in_flight, deployment=deployment)


def test_a_base_is_woken_when_an_adapter_deserves_more_copies_than_it_is_to_have(scene: Scene) -> None:
    growing = growing_in(scene)
    assert growing.concerned(asked(v1=8.0)) == [], "two copies of four requests"
    assert growing.concerned(asked(v1=8.5)) == [base("base")]
    plan_of(scene, "one", "two", copies=2, one=3)
    assert growing.concerned(asked(v1=8.5)) == []
    assert growing.concerned(asked(v1=13.0)) == [base("base")]
    plan_of(scene, "one", "two", copies=2, one=6)
    assert growing.concerned(asked(v1=100.0)) == [], "maxCopies"
    assert growing.concerned(asked(v1=100.0, v2=100.0)) == [base("base")]


@pytest.mark.parametrize(
    "view",
    [
        DemandView(),
        asked(v0=100.0),  # the base itself is on every pod
        asked(deployment="gone", v1=100.0),
        asked(v9=100.0),
    ],
)
def test_nobody_is_woken_for_what_no_plan_follows_from(scene: Scene, view: DemandView) -> None:
    assert growing_in(scene).concerned(view) == []


def test_nobody_is_woken_while_there_is_no_plan_or_it_has_the_adapter_everywhere_or_nowhere(scene: Scene) -> None:
    growing = growing_in(scene)
    plan_of(scene, "one", "two", copies=None)
    assert growing.concerned(asked(v1=100.0)) == []
    plan_of(scene, "two", copies=2)
    assert growing.concerned(asked(v1=100.0)) == []
    scene.base("base", "DELETED")
    assert growing.concerned(asked(v2=100.0)) == []
    bare = Scene()
    bare.base("base")
    bare.deployment("chat", {"v1": ("base", "one")})
    assert growing_in(bare).concerned(asked(v1=100.0)) == []


def test_it_looks_once_a_second_however_many_gateways_speak(scene: Scene) -> None:
    now = [100.0]
    growing = Growing(scene.world, lambda: now[0])
    assert growing.concerned(asked(v1=1.0)) == []
    assert growing.concerned(asked(v1=50.0)) == []
    now[0] += LOOKING
    assert growing.concerned(asked(v1=50.0)) == [base("base")]


def test_namespaces_that_are_not_watched_are_left_alone() -> None:
    scene = Scene(watchNamespaces=["another"])
    scene.base("base", serving={"replicas": 10})
    scene.deployment("chat", {"v1": ("base", "one")})
    plan_of(scene, "one", copies=2)
    assert growing_in(scene).concerned(asked(v1=100.0)) == []
