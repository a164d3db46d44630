"""One pass: what it asks the API server before it takes away or gives, and what it does when a write is refused."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration

from tests.contract.operator_process import BASE_SPEC, adapter_spec, deployment_spec
from tuneyard.api import names
from tuneyard.planning.observations import EngineKeys
from tuneyard.planning.settings import Settings
from tuneyard.runtime.execute import Executor, NotLeadingError, RefusedError
from tuneyard.runtime.gather import GatewayView
from tuneyard.runtime.keys import BASE_MODEL, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.metrics import Metrics
from tuneyard.runtime.reconcile import Reconciler
from tuneyard.runtime.wakes import Wakes
from tuneyard.runtime.world import World
from tuneyard.systems.kube.client import Api, ApiError
from tuneyard.systems.kube.events import Events
from tuneyard.systems.kube.objects import PLURALS, path

Object = dict[str, Any]
NS = "team"
BASE = Key(BASE_MODEL, NS, "base")
M = Key(MODEL_DEPLOYMENT, NS, "m")
RECORD = f"/api/v1/namespaces/{NS}/configmaps/m-verdicts"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class StoredApi(Api):
    """An API server's answers from a dictionary of paths; writes are kept as (method, path, body)."""

    def __init__(self) -> None:
        super().__init__(Configuration(host="http://127.0.0.1:1"))
        self.stored: dict[str, Object] = {}
        self.writes: list[tuple[str, str, Any]] = []
        self.reads: list[str] = []
        self.refuse: dict[str, ApiError] = {}
        self.revision = 1000

    def request(self, method: str, path: str, **options: Any) -> Object:
        for part, error in self.refuse.items():
            if part in path and method != "GET":
                raise error
        if method == "GET":
            self.reads.append(path)
            if path in self.stored:
                return copy.deepcopy(self.stored[path])
            if path.rsplit("/", 1)[-1] in PLURALS.values():
                inside = [v for k, v in self.stored.items() if k.rpartition("/")[0] == path]
                return {"items": copy.deepcopy(inside)}
            raise ApiError(404, "NotFound", path)
        self.writes.append((method, path, options.get("body")))
        self.revision += 1
        body = copy.deepcopy(options.get("body") or {})
        metadata = {"uid": "uid", "resourceVersion": str(self.revision), **body.get("metadata", {})}
        return {**body, "metadata": {**metadata, "resourceVersion": str(self.revision)}}

    def written(self) -> list[tuple[str, str]]:
        return [(method, where.rpartition("/namespaces/team/")[2]) for method, where, _ in self.writes]


class Scene:
    def __init__(self) -> None:
        self.api = StoredApi()
        self.world = World(self.api, Settings())
        self.wakes = Wakes(self.world, lambda _: None, lambda _: None)
        self.leads = True
        self.metrics = Metrics()
        self.events = Events(self.api, "test")
        executor = Executor(self.api, self.events, self.world.applied, self.metrics, lambda: self.leads)
        self.reconciler = Reconciler(
            self.api,
            self.world,
            self.wakes,
            executor,
            keys=EngineKeys(b"0123456789abcdef"),
            settings=Settings(),
            gateways=GatewayView,
            now=lambda: NOW,
        )

    def see(self, item: Object, *, stored: bool = True) -> None:
        """The informers show it; the API server has it too unless `stored` is False."""
        kind = (item["apiVersion"], item["kind"])
        informers: dict[tuple[str, str], Any] = {
            (names.API_VERSION, "BaseModel"): self.world.base_models,
            (names.API_VERSION, "LoRAAdapter"): self.world.adapters,
            (names.API_VERSION, "ModelDeployment"): self.world.deployments,
            ("v1", "Pod"): self.world.pods,
            **self.world.children,
        }
        informers[kind].informer._tell("ADDED", copy.deepcopy(item))
        if stored:
            self.store(item)

    def store(self, item: Object) -> None:
        self.api.stored[path(item["apiVersion"], item["kind"], NS, item["metadata"]["name"])] = item


def resource(kind: str, name: str, spec: Object, status: Object | None = None) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": metadata(name),
        "spec": spec,
        **({"status": status} if status else {}),
    }


def metadata(name: str, **fields: Any) -> Object:
    common = {
        "uid": f"uid-{name}",
        "resourceVersion": "10",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"name": name, "namespace": NS, **common, **fields}


def pool_deployment(**annotations: str) -> Object:
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base", names.LABEL_MANAGED_BY: names.MANAGED_BY}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("base-pool", labels=labels, annotations=annotations),
        "spec": {"replicas": 1},
        "status": {},
    }


def pod(waiting: str | None = None) -> Object:
    report = {"address": "10.0.0.1:8080", "engine": "Ready", "baseModel": "base", "adapters": {}}
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base"}
    annotations = {names.ANNOTATION_ADAPTERS: json.dumps(report)}
    told = metadata("p", labels=labels, annotations=annotations)
    state = {"containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": waiting}}}]} if waiting else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": told, "status": state}


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.see(resource("BaseModel", "base", BASE_SPEC))
    return scene


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
    failing = pod()
    report = json.loads(failing["metadata"]["annotations"][names.ANNOTATION_ADAPTERS])
    report["adapters"]["one"] = {"state": "Failed", "reason": "NonFiniteValues", "message": "a weight is NaN"}
    failing["metadata"]["annotations"][names.ANNOTATION_ADAPTERS] = json.dumps(report)
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
    failing = pod()
    report = json.loads(failing["metadata"]["annotations"][names.ANNOTATION_ADAPTERS])
    report["adapters"]["one"] = {"state": "Failed", "reason": "NonFiniteValues", "message": "a weight is NaN"}
    failing["metadata"]["annotations"][names.ANNOTATION_ADAPTERS] = json.dumps(report)
    scene.see(resource("LoRAAdapter", "one", adapter_spec("base")))
    scene.see(resource("ModelDeployment", "m", spec, {"rollout": stored}))
    scene.see(failing)


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
