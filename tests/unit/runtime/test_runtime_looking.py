"""Who is woken for other answers, and how often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import deployment
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.runtime.looking import Looking

ANALYSIS = {"slo": {"errorRate": "1%"}}
KEY = Key(MODEL_DEPLOYMENT, "team", "chat")


def judged(candidate: str | None, analysis: Any = ANALYSIS) -> ModelDeploymentResource:
    rollout = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 5}], "analysis": analysis})
    return deployment(rollout=rollout, status=ModelDeploymentStatus(rollout=RolloutStatus(candidate=candidate)))


class Scene:
    """One ModelDeployment, a clock, and the seconds after which it was woken."""

    def __init__(self, stored: ModelDeploymentResource) -> None:
        self.stored = {("team", "chat"): stored}
        self.woken: list[float] = []
        self.now = 0.0
        deployments = SimpleNamespace(get=lambda namespace, name: self.stored.get((namespace, name)))
        world: Any = SimpleNamespace(deployments=deployments, in_scope=lambda _: True)
        self.looking = Looking(world, lambda _, seconds: self.woken.append(round(seconds, 3)), lambda: self.now)

    def told(self, now: float, *keys: Key) -> None:
        """Gateways tell other answers."""
        self.now = now
        self.looking.concerns(keys or [KEY])


@pytest.mark.parametrize(
    ("candidate", "expected"), [("v2", [0.0, 0.6, 0.0]), (None, [0.0, 59.6, 58.8])], ids=["rollout", "quiet"]
)
def test_a_rollout_is_looked_at_once_a_second_and_stable_alone_now_and_then(candidate, expected):
    scene = Scene(judged(candidate))
    for moment in (0.0, 0.4, 1.2):
        scene.told(moment)
    assert scene.woken == expected


def test_who_has_no_objectives_or_is_gone_is_not_woken():
    scene = Scene(judged("v2", analysis=None))
    scene.told(0.0, KEY, Key(MODEL_DEPLOYMENT, "team", "gone"))
    assert scene.woken == []


def test_a_candidate_that_comes_does_not_wait_for_the_quiet_time():
    scene = Scene(judged(None))
    scene.told(0.0)
    scene.stored["team", "chat"] = judged("v2")
    scene.told(0.5)
    assert scene.woken == [0.0, 1.0]
