"""A rehearsal that nobody removed ends by itself: its candidate gets nothing, and the object says what to do."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import T0, deployment
from tests.toyworld.rollouts import PROGRESSIVE, WHOLE, RolloutWorld, reasons
from tuneyard.api import names
from tuneyard.api.drill import Fault
from tuneyard.planning.evidence import Objective, Tally
from tuneyard.planning.rehearsal import rehearsal_left, rehearsal_over

ANALYSIS = {"slo": {"errorRate": "1%"}, "minRequests": 300}
LASTS = 1200


def rehearsal(traffic: dict[str, int], **fault: Any) -> RolloutWorld:
    """v2 is spoiled, and begins where `traffic` gives it something; nobody asks either of them."""
    world = RolloutWorld(rollout={**PROGRESSIVE, "analysis": ANALYSIS})
    world.ready["v2"] = True
    told = json.dumps(Fault(revision="v2", errors=100, lasts_seconds=LASTS).to_dict() | fault)
    meta = world.now.metadata.model_copy(update={"annotations": {names.ANNOTATION_DRILL: told}})
    world.stored = world.now.model_copy(update={"metadata": meta})
    world.spec(traffic)
    world.settle()
    world.events.clear()
    return world


def test_its_candidate_gets_nothing_once_it_is_over():
    world = rehearsal(WHOLE)
    assert world.weights["v2"] == 5
    assert 0 < (world.plan.requeue_after or 0) <= LASTS
    world.clock = T0 + timedelta(seconds=LASTS - 1)
    world.settle()
    assert world.weights["v2"] == 5
    assert world.plan.requeue_after == 1
    world.clock = T0 + timedelta(seconds=LASTS)
    world.settle()
    assert world.weights == {"v1": 100}
    assert (world.status.verdicts or [])[0].reason == "RehearsalOver"
    assert world.conditions["Stalled"] == ("True", "RehearsalOver")
    message = next(c.message for c in world.now.status.conditions if c.type == "Stalled")
    meta = world.now.metadata
    assert f"kubectl delete modeldeployment {meta.name} -n {meta.namespace}" in message
    assert "RehearsalOver" in reasons(world)


def test_one_that_never_began_says_that_it_is_there():
    world = rehearsal({"v1": 100, "v2": 0})
    assert world.conditions["Ready"][0] == "True"
    world.clock = T0 + timedelta(seconds=LASTS)
    world.settle()
    assert world.conditions["Stalled"] == ("True", "RehearsalOver")
    assert not world.status.verdicts


def test_until_then_it_is_judged_by_its_answers_and_the_end_changes_nothing():
    world = rehearsal(WHOLE)
    for _ in range(12):
        world.clock += timedelta(seconds=5)
        for gateway in world.counting.values():
            gateway.count("v1", Tally(95), Objective.ERROR_RATE)
            gateway.count("v2", Tally(5, 5, 4, 4), Objective.ERROR_RATE)
        world.settle()
    assert [v.reason for v in world.status.verdicts or ()] == ["AnalysisFailed"]
    world.clock = T0 + timedelta(seconds=LASTS)
    world.settle()
    assert [v.reason for v in world.status.verdicts or ()] == ["AnalysisFailed"]


@pytest.mark.parametrize("annotation", [None, "{", json.dumps({"revision": "v2", "errors": 100})])
def test_what_is_no_rehearsal_or_says_no_end_has_none(annotation: str | None) -> None:
    made = deployment()
    if annotation is not None:
        meta = made.metadata.model_copy(update={"annotations": {names.ANNOTATION_DRILL: annotation}})
        made = made.model_copy(update={"metadata": meta})
    later = T0 + timedelta(days=9)
    assert (rehearsal_left(made, later), rehearsal_over(made, later)) == (None, None)


def test_how_long_it_may_last_is_no_part_of_what_it_serves() -> None:
    assert Fault(revision="v2", errors=9, lasts_seconds=60).mark == Fault(revision="v2", errors=9).mark
    assert Fault(revision="v2", errors=9).mark == Fault(revision="v2", errors=9).to_dict()
