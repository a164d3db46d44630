"""One pass: what it asks the API server before it takes away or gives, and what it does when a write is refused."""

from __future__ import annotations

import json

import pytest

from tests.contract.operator_process import adapter_spec, deployment_spec
from tests.unit.runtime.stored import (
    BASE,
    NS,
    RECORD,
    M,
    Object,
    Scene,
    failing_pod,
    metadata,
    pod,
    pool_deployment,
    resource,
)
from tuneyard.api import names
from tuneyard.runtime.execute import NotLeadingError, RefusedError
from tuneyard.systems.kube.client import ApiError

UNUSED = {names.ANNOTATION_UNUSED_SINCE: "2026-01-01T11:00:00Z"}


def test_a_pool_is_deleted_when_the_api_server_too_knows_no_reference(scene: Scene) -> None:
    scene.see(pool_deployment(**UNUSED))
    scene.reconciler.reconcile(BASE)
    assert ("DELETE", "deployments/base-pool") in scene.api.written()
    body = next(body for method, _, body in scene.api.writes if method == "DELETE")
    assert body["preconditions"] == {"uid": "uid-base-pool", "resourceVersion": "10"}


def test_a_pool_stays_when_the_informers_have_missed_who_refers_to_it(scene: Scene) -> None:
    scene.see(pool_deployment(**UNUSED))
    scene.store(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.reconciler.reconcile(BASE)
    assert not [w for w in scene.api.written() if w[0] == "DELETE"]
    assert ("PATCH", "deployments/base-pool") in scene.api.written()


def test_a_pool_stays_while_a_deployment_cannot_be_read(scene: Scene) -> None:
    scene.see(pool_deployment(**UNUSED))
    scene.see(resource("ModelDeployment", "odd", {"revisions": "unheard of"}))
    scene.reconciler.reconcile(BASE)
    assert not [w for w in scene.api.written() if w[0] == "DELETE"]


def test_weights_are_reported_as_the_informers_have_them(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.see(pod(), stored=False)
    scene.reconciler.reconcile(M)
    assert [t["weight"] for t in scene.api.writes[-1][2]["status"]["traffic"]] == [100]
    assert scene.api.reads == [RECORD], "gateways give weight by what they see themselves"


def test_another_stable_revision_is_named_only_for_pods_that_the_api_server_has(scene: Scene) -> None:
    before = {"rollout": {"phase": "Progressing", "stable": "v0"}}
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 0, "v1": 100}), before))
    scene.see(pod(), stored=False)
    scene.reconciler.reconcile(M)
    assert scene.api.writes[-1][2]["status"]["rollout"]["stable"] == "v0"
    scene.store(pod())
    scene.reconciler._written.clear()
    scene.reconciler.reconcile(M)
    assert scene.api.writes[-1][2]["status"]["rollout"]["stable"] == "v1"


def test_a_verdict_is_given_only_for_what_the_api_server_says_too(scene: Scene) -> None:
    spec = deployment_spec("base", {"v0": 0, "v1": 100}, {"v1": "one"})
    spec["rollout"] = {"mode": "Progressive", "steps": [{"weight": 5}]}
    scene.see(resource("LoRAAdapter", "one", adapter_spec("base")))
    scene.see(resource("ModelDeployment", "m", spec, {"rollout": {"phase": "Progressing", "stable": "v0"}}))
    failing = failing_pod()
    scene.see(failing, stored=False)
    scene.store(pod())
    scene.reconciler.reconcile(M)
    assert "verdicts" not in scene.api.writes[-1][2]["status"]["rollout"], "the informers are behind"
    scene.store(failing)
    scene.reconciler._written.clear()
    scene.api.writes.clear()
    scene.reconciler.reconcile(M)
    assert [v["reason"] for v in scene.api.writes[0][2]["status"]["rollout"]["verdicts"]] == ["NonFiniteValues"]


def test_weight_is_taken_away_without_asking(scene: Scene) -> None:
    before = {"traffic": [{"revision": "v0", "specWeight": 100, "weight": 100}]}
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100}), before))
    scene.reconciler.reconcile(M)
    assert [t["weight"] for t in scene.api.writes[-1][2]["status"]["traffic"]] == [0]
    assert scene.api.reads == [RECORD], "a status without a rollout asks for what outlived it, and for nothing else"


def test_a_status_goes_with_the_version_and_uid_it_was_planned_from(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.reconciler.reconcile(M)
    [(method, where, body)] = scene.api.writes
    assert (method, where) == ("PATCH", "/apis/tuneyard.dev/v1alpha1/namespaces/team/modeldeployments/m/status")
    assert body["metadata"] == {"name": "m", "namespace": NS, "uid": "uid-m", "resourceVersion": "10"}


@pytest.mark.parametrize(("status", "reason"), [(409, "Conflict"), (404, "NotFound")])
def test_a_status_that_came_too_late_is_planned_again_soon(scene: Scene, status: int, reason: str) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.api.refuse["modeldeployments/m/status"] = ApiError(status, reason, "newer")
    again = scene.reconciler.reconcile(M)
    assert again is not None and 0 < again < 0.5


def test_the_next_pass_waits_until_the_informers_show_what_was_written(scene: Scene) -> None:
    deployment = resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    scene.see(deployment)
    assert scene.reconciler.reconcile(M) is None
    again = scene.reconciler.reconcile(M)
    assert again is not None and again < 0.5
    assert len(scene.api.writes) == 1
    shown = {**deployment, "status": scene.api.writes[0][2]["status"]}
    shown["metadata"] = {**deployment["metadata"], "resourceVersion": str(scene.api.revision)}
    scene.see(shown)
    assert scene.reconciler.reconcile(M) is None
    assert len(scene.api.writes) == 1


def test_a_change_that_the_informers_missed_is_read_from_the_api_server(scene: Scene) -> None:
    scene.store(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    assert scene.reconciler.reconcile(M) is None
    assert scene.api.writes == []
    scene.reconciler.distrust(M)
    scene.reconciler.reconcile(M)
    assert scene.api.written() == [("PATCH", "modeldeployments/m/status")]


def test_an_object_that_cannot_be_read_is_told_so(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", {"revisions": [], "traffic": "half"}))
    scene.reconciler.reconcile(M)
    conditions = scene.api.writes[-1][2]["status"]["conditions"]
    assert [(c["type"], c["status"], c["reason"]) for c in conditions] == [
        ("Ready", "False", "InvalidSpec"),
        ("Stalled", "True", "InvalidSpec"),
    ]
    assert "spec.revisions" in conditions[0]["message"]


def test_a_child_that_is_refused_stalls_its_base_in_the_api_servers_words(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.api.refuse["/deployments/"] = ApiError(422, "Invalid", "Deployment is invalid: spec.x: no such thing")
    with pytest.raises(RefusedError):
        scene.reconciler.reconcile(BASE)
    conditions = {c["type"]: c for c in scene.api.writes[-1][2]["status"]["conditions"]}
    assert conditions["Stalled"]["reason"] == "InvalidSpec"
    assert "spec.x: no such thing" in conditions["Stalled"]["message"]


def test_a_refused_secret_does_not_show_what_was_in_it(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.api.refuse["/secrets/"] = ApiError(422, "Invalid", "data.key: Invalid value: hunter2")
    with pytest.raises(RefusedError):
        scene.reconciler.reconcile(BASE)
    assert "hunter2" not in json.dumps(scene.api.writes[-1][2])


def test_what_may_pass_by_itself_is_not_blamed_on_anybody(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.api.refuse["/deployments/"] = ApiError(503, "ServiceUnavailable", "later")
    with pytest.raises(ApiError):
        scene.reconciler.reconcile(BASE)
    assert not [w for w in scene.api.written() if w[1] == "basemodels/base/status"]


def test_who_does_not_lead_writes_nothing(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.leads = False
    for key in (BASE, M):
        with pytest.raises(NotLeadingError):
            scene.reconciler.reconcile(key)
    assert scene.api.writes == []


def test_a_secret_is_applied_once_and_again_after_ten_minutes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.see(resource("LoRAAdapter", "tuned", adapter_spec("base")))
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.see(pool_deployment())

    def secrets() -> int:
        return sum(1 for w in scene.api.written() if w[1].startswith("secrets/"))

    clock = [0.0]
    monkeypatch.setattr(scene.world.applied, "_clock", lambda: clock[0])
    for _ in range(3):
        scene.reconciler._written.clear()
        scene.reconciler.reconcile(BASE)
    assert secrets() == 1
    clock[0] += 601
    scene.reconciler._written.clear()
    scene.reconciler.reconcile(BASE)
    assert secrets() == 2


def test_a_secret_that_a_pod_misses_is_applied_again_soon(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.see(pool_deployment())
    clock = [0.0]
    monkeypatch.setattr(scene.world.applied, "_clock", lambda: clock[0])

    def passed() -> tuple[int, float | None]:
        """How often the Secret was applied until now, and when the next look is."""
        scene.reconciler._written.clear()
        again = scene.reconciler.reconcile(BASE)
        return sum(1 for w in scene.api.written() if w[1].startswith("secrets/")), again

    assert passed() == (1, 600.0)
    scene.see(pod("CreateContainerConfigError"))
    assert passed() == (1, 10.0)
    clock[0] = 11.0
    assert passed() == (2, 10.0)
    assert passed() == (2, 10.0)
    scene.see(pod())
    clock[0] = 30.0
    assert passed() == (2, 600.0)


def test_the_key_of_a_pool_goes_with_the_rest_of_it(scene: Scene) -> None:
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base", names.LABEL_MANAGED_BY: names.MANAGED_BY}
    plan = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("base-plan", labels=labels), "data": {}}
    scene.see(plan)
    scene.reconciler.reconcile(BASE)
    gone = [where for method, where in scene.api.written() if method == "DELETE"]
    assert gone == ["secrets/base-engine-key", "configmaps/base-plan"]


def test_what_somebody_has_changed_is_applied_once(scene: Scene) -> None:
    scene.see(resource("ModelDeployment", "m", deployment_spec("base", {"v0": 100})))
    scene.reconciler.reconcile(BASE)
    # the API server's answers, as the informers show them: all is owned; then somebody opens the policy
    bodies = [
        body
        for method, _, body in scene.api.writes
        if method == "PATCH" and body["kind"] not in ("Secret", "BaseModel")
    ]
    for body in bodies:
        scene.see({**body, "metadata": {**body["metadata"], "uid": "uid"}}, stored=False)
    (policy,) = [b for b in bodies if b["kind"] == "NetworkPolicy"]
    fields: Object = {"f:spec": {"f:podSelector": {}, "f:policyTypes": {}}}
    ours = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields}
    opened = {**policy, "metadata": {**policy["metadata"], "uid": "uid", "managedFields": [ours]}}
    scene.see(opened, stored=False)
    scene.api.writes.clear()
    scene.reconciler._written.clear()
    scene.reconciler.reconcile(BASE)
    assert [w for w in scene.api.written() if "status" not in w[1]] == [("PATCH", "networkpolicies/base-pool")]


def test_nothing_of_a_pool_goes_while_the_api_server_has_its_deployment(scene: Scene) -> None:
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base", names.LABEL_MANAGED_BY: names.MANAGED_BY}
    plan = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("base-plan", labels=labels), "data": {}}
    scene.see(plan)
    scene.store(pool_deployment())
    scene.reconciler.reconcile(BASE)
    assert not [w for w in scene.api.written() if w[0] == "DELETE"]
