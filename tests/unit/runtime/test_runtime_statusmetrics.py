"""How often rollouts have ended how, and that series end with their object."""

from __future__ import annotations

import pytest

from tests.builders import deployment, stamp
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import Outcome, RolloutSpec, RolloutStatus, Step
from tuneyard.runtime.statusmetrics import OUTCOMES, Objects, StatusMetrics

PROGRESSIVE = RolloutSpec(mode="Progressive", steps=[Step(weight=10)])
STABLE = Outcome(revision="v1", content_hash="a", outcome="Stable", at=stamp(0))
REJECTED = Outcome(revision="v2", content_hash="b", outcome="Rejected", at=stamp(9), reason="AnalysisFailed")
AGAIN = Outcome(revision="v2", content_hash="b", outcome="Rejected", at=stamp(10), reason="AnalysisFailed")


def ended(*history: Outcome) -> ModelDeploymentResource:
    rollout = RolloutStatus(history=list(history)) if history else None
    return deployment(rollout=PROGRESSIVE, status=ModelDeploymentStatus(rollout=rollout))


class Scene:
    def __init__(self) -> None:
        self.objects: list[ModelDeploymentResource] = []
        self.metrics = StatusMetrics(lambda: Objects((), (), self.objects))

    def ends(self, *objects: ModelDeploymentResource) -> dict[str, float]:
        """What a page says of the one deployment, when these objects are there."""
        self.objects = list(objects)
        pages = {family.name: family.samples for family in self.metrics.collect()}
        return {s.labels["outcome"]: s.value for s in pages[OUTCOMES]}


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_happened_before_does_not_count(scene: Scene) -> None:
    assert scene.ends(ended(STABLE)) == {"Stable": 0, "Rejected": 0}
    assert scene.ends(ended(STABLE, REJECTED)) == {"Stable": 0, "Rejected": 1}
    assert scene.ends(ended(STABLE, REJECTED)) == {"Stable": 0, "Rejected": 1}
    assert scene.ends(ended(STABLE, REJECTED, AGAIN)) == {"Stable": 0, "Rejected": 2}


def test_the_first_end_of_a_new_deployment_counts(scene: Scene) -> None:
    scene.ends(ended())
    assert scene.ends(ended(STABLE)) == {"Stable": 1, "Rejected": 0}


def test_a_history_that_comes_back_counts_once(scene: Scene) -> None:
    scene.ends(ended())
    scene.ends(ended(STABLE))
    assert scene.ends(ended()) == {"Stable": 1, "Rejected": 0}
    assert scene.ends(ended(STABLE, REJECTED)) == {"Stable": 1, "Rejected": 1}


def test_series_end_with_their_object(scene: Scene) -> None:
    scene.ends(ended())
    assert scene.ends() == {}
    assert scene.ends(ended(STABLE)) == {"Stable": 0, "Rejected": 0}
    assert scene.ends(deployment()) == {}, "mode Manual has no outcomes"
