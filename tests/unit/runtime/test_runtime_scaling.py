"""Which bases are woken by what gateways say is asked: those whose pools would get more replicas."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.builders import T0, demand
from tests.unit.runtime.wakeful import Scene, base
from tuneyard.api.documents import RevisionDemand
from tuneyard.planning.demand import DemandView
from tuneyard.runtime.scaling import LOOKING, Scaling

SERVING = {"autoscaling": {"maxReplicas": 4, "targets": {"inFlightRequests": 10}}}


def scene(serving: dict[str, Any] = SERVING, **pool: Any) -> Scene:
    """A pool that should have two pods."""
    found = Scene()
    told = {"name": "base", "replicas": 2, "wantedReplicas": 2, **pool}
    found.base("base", serving=serving)
    item = {
        "metadata": {"name": "base", "namespace": "team", "uid": "uid-base", "generation": 1},
        "spec": {"source": {"volume": {"name": "v", "path": "p"}}, "serving": serving},
        "status": {"pools": [told]},
    }
    found.tell(found.world.base_models.informer, "MODIFIED", item)
    found.deployment("chat", {"v1": ("base", None)})
    return found


def concerned(found: Scene, view: DemandView) -> list[Any]:
    return Scaling(found.world, itertools.count(step=LOOKING).__next__, lambda: T0).concerned(view)


@pytest.mark.parametrize(
    ("in_flight", "pool", "woken"),
    [
        (20.0, {}, False),
        (23.0, {}, True),
        (23.0, {"scaling": {"higherSince": "2026-01-01T12:00:00Z"}}, False),
        (40.0, {}, True),
        (90.0, {"wantedReplicas": 4}, True),
        (90.0, {"wantedReplicas": 4, "scaling": {"limit": "MaxReplicas"}}, False),
        (40.0, {"asleepSince": "2026-01-01T12:00:00Z"}, False),
    ],
)
def test_a_base_is_woken_when_its_pool_needs_more(in_flight: float, pool: dict[str, Any], woken: bool) -> None:
    assert concerned(scene(**pool), demand({"v1": in_flight})) == ([base("base")] if woken else [])


def test_who_waits_counts_and_a_fixed_number_does_not() -> None:
    view = demand({"v1": 15.0})
    (report,) = view.reports
    said = report.deployments["team/chat"]

    def held(**by: int) -> DemandView:
        revisions = {**said.revisions, **{name: RevisionDemand(waiting=count) for name, count in by.items()}}
        waits = said.model_copy(update={"waiting": sum(by.values()), "revisions": revisions})
        return DemandView((report.model_copy(update={"deployments": {"team/chat": waits}}),), 1)

    view = held(v1=35)
    assert concerned(scene(), view) == [base("base")]
    assert concerned(scene(), held(v2=35)) == [], "for a revision that it does not serve"
    assert concerned(scene({"replicas": 2}), view) == []
    assert concerned(scene({"autoscaling": {"external": True}}), view) == []


def test_it_is_looked_at_no_more_often_than_that() -> None:
    scaling = Scaling(scene().world, iter([0.0, LOOKING / 2, LOOKING]).__next__, lambda: T0)
    found = [scaling.concerned(demand({"v1": 40.0})) for _ in range(3)]
    assert found == [[base("base")], [], [base("base")]]
