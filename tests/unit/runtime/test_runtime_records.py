"""One pass over a rollout: what is written first, and what it does with what outlives a ModelDeployment."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.operator_process import adapter_spec, deployment_spec
from tests.unit.runtime.stored import M, Object, Scene, failing_pod, metadata, resource
from tuneyard.api import names
from tuneyard.runtime.execute import RefusedError
from tuneyard.systems.kube.client import ApiError


def record_of_gone(**annotations: str) -> Object:
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_COMPONENT: names.ROLLOUT_RECORD}
    data = {"record.json": json.dumps({"deployment": "m"})}
    found = metadata("m-verdicts", labels=labels, annotations=annotations)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": found, "data": data}


def test_what_a_deployment_leaves_is_marked_and_goes_a_week_later(scene: Scene) -> None:
    scene.see(record_of_gone())
    assert scene.reconciler.reconcile(M) == 7 * 86400
    assert scene.api.written() == [("PATCH", "configmaps/m-verdicts")]
    assert scene.api.writes[-1][2]["metadata"]["annotations"][names.ANNOTATION_UNUSED_SINCE] == "2026-01-01T12:00:00Z"
    scene.see(record_of_gone(**{names.ANNOTATION_UNUSED_SINCE: "2025-12-25T11:59:59Z"}))
    assert scene.reconciler.reconcile(M) is None
    assert scene.api.written()[-1] == ("DELETE", "configmaps/m-verdicts")


@pytest.mark.parametrize("deployed", [False, True])
def test_somebody_elses_config_map_of_that_name_is_neither_read_nor_touched(scene: Scene, deployed: bool) -> None:
    verdict = {"revision": "v0", "contentHash": "x", "reason": "Aborted", "evidence": "", "at": "2026-01-01T00:00:00Z"}
    text = json.dumps({"deployment": "m", "verdicts": [verdict], "paused": True})
    found = metadata("m-verdicts", annotations={names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"})
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": found, "data": {"record.json": text}}
    scene.see(foreign) if not deployed else scene.store(foreign)
    if deployed:
        spec = {**deployment_spec("base", {"v0": 100}), "rollout": {"mode": "Progressive", "steps": [{"weight": 5}]}}
        scene.see(resource("ModelDeployment", "m", spec, {"rollout": {"stable": "v0"}}))
    scene.reconciler.reconcile(M)
    assert not [w for w in scene.api.written() if w[1] == "configmaps/m-verdicts"]
    for method, _, body in scene.api.writes:
        assert "paused" not in json.dumps(body), method


@pytest.mark.parametrize(("status", "reason"), [(500, "InternalError"), (429, "TooManyRequests")])
def test_a_rollout_s_status_does_not_wait_for_its_record(scene: Scene, status: int, reason: str) -> None:
    spec = {**deployment_spec("base", {"v0": 100}), "rollout": {"mode": "Progressive", "steps": [{"weight": 5}]}}
    scene.see(resource("ModelDeployment", "m", spec, {"rollout": {"stable": "v0"}}))
    scene.api.refuse["configmaps/m-verdicts"] = ApiError(status, reason, "later")
    with pytest.raises(ApiError, match="later"):
        scene.reconciler.reconcile(M)
    assert scene.api.written() == [("PATCH", "modeldeployments/m/status")]


def failing_candidate(scene: Scene, rollout: Object, **status: Any) -> None:
    """v1 of deployment m, which has 5 %, is refused by the engine."""
    spec = {**deployment_spec("base", {"v0": 0, "v1": 100}, {"v1": "one"}), "rollout": rollout}
    stored = {"phase": "Progressing", "stable": "v0", "allowed": {"v1": 5}, **status}
    scene.see(resource("LoRAAdapter", "one", adapter_spec("base")))
    scene.see(resource("ModelDeployment", "m", spec, {"rollout": stored}))
    scene.see(failing_pod())


JUDGED: Object = {
    "mode": "Progressive",
    "steps": [{"weight": 5}],
    "analysis": {"slo": {"errorRate": "1%"}},
    "gates": [{"name": "speed", "benchmark": {"max": {"ttftP95": "2x"}}}],
}


def told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reasons of the events that are told from now on."""
    reasons: list[str] = []
    monkeypatch.setattr(scene.events, "tell", lambda event: reasons.append(event.reason))
    return reasons


def test_a_rollback_is_written_before_everything_else(scene: Scene) -> None:
    failing_candidate(scene, JUDGED)
    assert scene.reconciler.reconcile(M) == 0, "the record of the verdict is written from the stored one"
    assert scene.api.written() == [
        ("PATCH", "modeldeployments/m/status"),
        ("PATCH", "configmaps/m-verdicts"),
        ("PATCH", "configmaps/m-evidence"),
    ]
    rollout = scene.api.writes[0][2]["status"]["rollout"]
    assert (rollout["phase"], rollout["allowed"]) == ("RolledBack", {"v1": 0})


@pytest.mark.parametrize("status", [403, 422, 500])
def test_a_rollback_happens_and_is_told_also_when_nothing_else_can_be_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    failing_candidate(scene, JUDGED)
    scene.api.refuse["/configmaps/"] = ApiError(status, "Refused", "full")
    reasons = told(scene, monkeypatch)
    with pytest.raises((ApiError, RefusedError)):
        scene.reconciler.reconcile(M)
    assert scene.api.written() == [("PATCH", "modeldeployments/m/status")]
    assert "RolledBack" in reasons


def test_nothing_else_is_done_for_a_rollback_that_came_too_late(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_candidate(scene, JUDGED)
    scene.api.refuse["modeldeployments/m/status"] = ApiError(409, "Conflict", "newer")
    reasons = told(scene, monkeypatch)
    again = scene.reconciler.reconcile(M)
    assert again is not None and 0 < again < 0.5
    assert (scene.api.written(), reasons) == ([], [])


def test_what_a_rollout_does_is_told_once_also_when_its_record_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**deployment_spec("base", {"v0": 100}), "rollout": {"mode": "Progressive", "steps": [{"weight": 5}]}}
    before = {"rollout": {"stable": "v0"}, "traffic": [{"revision": "v0", "specWeight": 100, "weight": 100}]}
    deployment = resource("ModelDeployment", "m", spec, before)
    scene.see(deployment)
    scene.api.refuse["configmaps/m-verdicts"] = ApiError(403, "Forbidden", "quota")
    reasons = told(scene, monkeypatch)
    for _ in range(3):
        with pytest.raises(RefusedError):
            scene.reconciler.reconcile(M)
        shown = {**deployment, "status": scene.api.writes[-1][2]["status"]}
        shown["metadata"] = {**deployment["metadata"], "resourceVersion": str(scene.api.revision)}
        scene.see(shown)
    assert reasons == ["WeightChanged"]


def test_what_a_deployment_left_and_nobody_can_read_is_not_deleted(scene: Scene) -> None:
    spoilt = record_of_gone(**{names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"})
    scene.see({**spoilt, "data": {"record.json": "{"}})
    assert scene.reconciler.reconcile(M) is None
    assert scene.api.written() == []


def test_nothing_a_deployment_left_is_touched_while_the_api_server_has_it(scene: Scene) -> None:
    scene.see(record_of_gone(**{names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"}))
    scene.store(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.reconciler.reconcile(M)
    assert not [w for w in scene.api.written() if w[0] == "DELETE"]
