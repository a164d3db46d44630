"""A candidate whose base Jobs are still making."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import BASE, Situation, applied, at, base_model, deployment, digest, pinned, pod, revision
from tests.unit.planning.test_builds import built
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.planning.modeldeployment import plan_modeldeployment

KEY = "a" * 32


def comparing(build: BuildStatus) -> Situation:
    """An original that serves, and its quantised candidate."""
    rollout = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 5, "hold": "10m"}]})
    revisions = [revision("original", "v1"), revision("int8", base="small")]
    chat = deployment(revisions=revisions, traffic={"original": 0, "int8": 100}, rollout=rollout)
    small = built("small", {"quantize": {"baseModel": BASE, "scheme": "INT8"}}, status=build)
    return Situation(bases=(base_model(), small), adapters=(pinned("v1"),), deployments=(chat,), pods=(pod("a", "v1"),))


def after(situation: Situation, minutes: float) -> tuple[Situation, RolloutStatus]:
    """Some passes at that time, with gateways that follow."""
    situation = replace(situation, now=at(minutes))
    for _ in range(3):
        status = plan_modeldeployment(situation.deployment()).status
        assert isinstance(status, ModelDeploymentStatus)
        (chat,) = (d.model_copy(update={"status": status}) for d in situation.deployments)
        weights = {t.revision: t.weight for t in status.traffic or []}
        situation = replace(situation, deployments=(chat,), applied=(applied("g1", chat, weights),))
    rollout = situation.deployments[0].status.rollout
    assert rollout is not None
    return situation, rollout


@pytest.mark.parametrize("state", ["Waiting", "Running"])
def test_it_is_not_rejected_for_what_its_build_takes(state: str) -> None:
    situation, _ = after(comparing(BuildStatus(state=state, key=KEY, attempt=1, progress="building 40 %")), 0)
    situation, rollout = after(situation, 600)
    assert (rollout.stable, rollout.candidate, rollout.verdicts or []) == ("original", "int8", [])
    made = comparing(BuildStatus(state="Succeeded", key=KEY, attempt=1)).bases[1]
    made = made.model_copy(update={"status": made.status.model_copy(update={"digest": digest("small")})})
    situation = replace(situation, bases=(situation.bases[0], made))
    situation, rollout = after(situation, 601)
    assert rollout.waiting_since is not None, "from now on there is something to start"
    situation, rollout = after(situation, 662)
    assert [v.reason for v in rollout.verdicts or []] == ["ProgressDeadlineExceeded"]


def test_a_failed_build_is_told_after_the_deadline() -> None:
    situation, _ = after(comparing(BuildStatus(state="Failed", key=KEY, attempt=3, progress="out of memory")), 0)
    _, rollout = after(situation, 61)
    assert [v.reason for v in rollout.verdicts or []] == ["ProgressDeadlineExceeded"]
