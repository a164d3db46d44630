"""What the operator makes of custom resources on a real API server; pods are objects that the tests move by hand."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import MASTER, FakeGateway
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE, ApiError

pytestmark = pytest.mark.apiserver

Object = dict[str, Any]
DIGEST = "sha256:" + "ab" * 32
ADAPTER_DIGEST = "sha256:" + "cd" * 32
CHILDREN = (
    "serviceaccounts/tuneyard-agent",
    "rbac.authorization.k8s.io/v1:rolebindings/tuneyard-agent",
    "rbac.authorization.k8s.io/v1:rolebindings/tuneyard-gateway",
    "configmaps/base-plan",
    "secrets/base-engine-key",
    "networking.k8s.io/v1:networkpolicies/base-pool",
    "services/base-pool",
    "policy/v1:poddisruptionbudgets/base-pool",
    "apps/v1:deployments/base-pool",
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway("gateway-0") as found:
        yield found


@pytest.fixture(scope="module")
def operator(
    operator_apiserver: ApiServer, gateway: FakeGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    folder = tmp_path_factory.mktemp("operator")
    with OperatorProcess(operator_apiserver, folder, token="operator-0", gateways=gateway.entry) as process:
        eventually(lambda: "working" in process.said(), process.said() or "the operator works")
        yield process


@pytest.fixture
def cluster(operator: OperatorProcess, operator_apiserver: ApiServer, request: pytest.FixtureRequest) -> Cluster:
    return Cluster.of(operator_apiserver, request)


def serving(cluster: Cluster) -> None:
    """A base and an adapter that one pod serves, and a deployment with both, all weight on the base."""
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("LoRAAdapter", "tuned", adapter_spec("base"))
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100, "v1": 0}, {"v1": "tuned"}))
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the pool's Deployment")
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", DIGEST)
    cluster.report("pod-0", "base", {"tuned": ADAPTER_DIGEST})
    eventually(lambda: weights(cluster) == {"v0": 100, "v1": 0}, "the base serves")


def is_gone(cluster: Cluster, child: str) -> bool:
    return cluster.child(child) is None


def weights(cluster: Cluster, name: str = "m") -> dict[str, int]:
    return {t["revision"]: t["weight"] for t in cluster.status("ModelDeployment", name).get("traffic") or ()}


def ready(cluster: Cluster, name: str = "m") -> dict[str, int]:
    return {t["revision"]: t["readyEndpoints"] for t in cluster.status("ModelDeployment", name).get("traffic") or ()}


def test_applying_a_model_makes_its_pool_and_says_what_is_missing(cluster: Cluster) -> None:
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    eventually(
        lambda: cluster.condition("ModelDeployment", "m", "Accepted") == ("False", "BaseModelNotFound"),
        "the base is missed",
    )
    base = cluster.apply("BaseModel", "base", BASE_SPEC)
    for child in CHILDREN:
        made = eventually(partial(cluster.child, child), child)
        owners = made["metadata"]["ownerReferences"]
        assert [(o["kind"], o["uid"]) for o in owners] == [("BaseModel", base["metadata"]["uid"])], child
        managers = {m["manager"] for m in made["metadata"]["managedFields"]}
        assert managers == {names.FIELD_MANAGER}, child
    eventually(lambda: cluster.condition("ModelDeployment", "m", "Accepted")[0] == "True", "the base is found")
    eventually(
        lambda: cluster.condition("BaseModel", "base", "Ready") == ("False", "Resolving"), "the base's status says why"
    )
    eventually(lambda: cluster.status("BaseModel", "base").get("usedBy") == ["m"], "the base is in use")


def test_the_engine_key_is_in_the_secret_and_nowhere_else(cluster: Cluster, operator: OperatorProcess) -> None:
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    secret = eventually(lambda: cluster.child("secrets/base-engine-key"), "the key")
    key = names.engine_key(MASTER, cluster.namespace, "base")
    assert base64.b64decode(secret["data"]["key"]).decode() == key
    deployment = eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the Deployment")
    for text in (json.dumps(deployment), operator.said()):
        assert key not in text
        assert secret["data"]["key"] not in text
        assert MASTER.decode() not in text


def test_what_pods_report_becomes_status_and_traffic(cluster: Cluster, gateway: FakeGateway) -> None:
    serving(cluster)
    eventually(lambda: cluster.status("LoRAAdapter", "tuned").get("loaded") == "1/1", "the adapter is loaded")
    adapter = cluster.status("LoRAAdapter", "tuned")
    assert (adapter["digest"], adapter["rank"]) == (ADAPTER_DIGEST, 8)
    eventually(lambda: cluster.status("BaseModel", "base").get("digest") == DIGEST, "the base's digest is pinned")

    def planned() -> list[str | None]:
        plan = json.loads((cluster.child("configmaps/base-plan") or {})["data"]["plan.json"])
        return [a.get("digest") for a in plan["adapters"]]

    eventually(lambda: planned() == [ADAPTER_DIGEST], "the digest is pinned in the plan")
    stored = cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 90, "v1": 10}, {"v1": "tuned"}))
    eventually(lambda: weights(cluster) == {"v0": 90, "v1": 10}, "the edit shows")
    eventually(
        lambda: cluster.condition("ModelDeployment", "m", "TrafficApplied")[0] == "False", "nobody has applied it"
    )
    gateway.applied(stored, {"v0": 90, "v1": 10})
    eventually(lambda: cluster.condition("ModelDeployment", "m", "Ready") == ("True", "Ready"), "the gateway is heard")
    assert all(t["verified"] for t in cluster.status("ModelDeployment", "m")["traffic"])


def test_weight_goes_to_stable_when_a_revision_loses_its_pods_and_comes_back(cluster: Cluster) -> None:
    serving(cluster)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 90, "v1": 10}, {"v1": "tuned"}))
    eventually(lambda: weights(cluster) == {"v0": 90, "v1": 10}, "the edit shows")
    cluster.report("pod-0", "base", {})
    eventually(lambda: weights(cluster) == {"v0": 100, "v1": 0}, "the weight goes to stable")
    cluster.report("pod-0", "base", {"tuned": ADAPTER_DIGEST})
    eventually(lambda: weights(cluster) == {"v0": 90, "v1": 10}, "the weight is back")
    cluster.api.request(
        "DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/pod-0", query={"gracePeriodSeconds": "0"}
    )
    eventually(lambda: set(ready(cluster).values()) == {0}, "no endpoint is left")
    eventually(lambda: set(weights(cluster).values()) == {0}, "nothing is served")


def test_nothing_is_written_while_nothing_changes(
    cluster: Cluster, operator: OperatorProcess, operator_apiserver: ApiServer
) -> None:
    serving(cluster)
    quiet(operator)
    before = len(children_writes(operator_apiserver))
    passes = operator.metric("tuneyard_reconcile_passes_total")
    # something that wakes the base and the deployment and changes nothing; adapters do not look at a pod's readiness
    cluster.pod_status("pod-0", {"conditions": [{"type": "Ready", "status": "True"}]})
    eventually(lambda: operator.metric("tuneyard_reconcile_passes_total") >= passes + 2, "both are looked at")
    quiet(operator)
    assert children_writes(operator_apiserver)[before:] == []


def test_a_child_that_somebody_changes_or_deletes_is_made_again(cluster: Cluster) -> None:
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    plan = eventually(lambda: cluster.child("configmaps/base-plan"), "the plan")
    where = f"/api/v1/namespaces/{cluster.namespace}/configmaps/base-plan"
    cluster.api.request("DELETE", where)
    again = eventually(
        lambda: (
            (found := cluster.child("configmaps/base-plan"))
            and found["metadata"]["uid"] != plan["metadata"]["uid"]
            and found
        ),
        "the plan is made again",
    )
    assert again["data"] == plan["data"]


@pytest.mark.parametrize(
    ("child", "edit"),
    [
        ("apps/v1:deployments/base-pool", ("/apis/apps/v1/{}/deployments/base-pool/scale", {"spec": {"replicas": 0}})),
        (
            "apps/v1:deployments/base-pool",
            (
                "/apis/apps/v1/{}/deployments/base-pool",
                {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}},
            ),
        ),
        (
            "networking.k8s.io/v1:networkpolicies/base-pool",
            ("/apis/networking.k8s.io/v1/{}/networkpolicies/base-pool", {"spec": {"ingress": [{}]}}),
        ),
        ("configmaps/base-plan", ("/api/v1/{}/configmaps/base-plan", {"data": {"base-digest": "sha256:nothing"}})),
        (
            "rbac.authorization.k8s.io/v1:roles/base-plan",
            ("/apis/rbac.authorization.k8s.io/v1/{}/roles/base-plan", {"rules": []}),
        ),
    ],
    ids=["scaled", "template", "policy", "plan", "role"],
)
def test_a_field_that_somebody_changes_is_put_back_once(
    cluster: Cluster, operator: OperatorProcess, operator_apiserver: ApiServer, child: str, edit: tuple[str, Object]
) -> None:
    serving(cluster)
    quiet(operator)
    before = cluster.child(child)

    def writes() -> int:
        made = [w for w in children_writes(operator_apiserver) if f"/{cluster.namespace}/" in w]
        return sum(f"/{child.rpartition(':')[2]}?" in write for write in made)

    def contents() -> Object:
        return {k: v for k, v in (cluster.child(child) or {}).items() if k not in ("metadata", "status")}

    wanted, made = {k: v for k, v in (before or {}).items() if k not in ("metadata", "status")}, writes()
    path, change = edit[0].format(f"namespaces/{cluster.namespace}"), edit[1]
    cluster.api.request("PATCH", path, query={"fieldManager": "somebody"}, body=change, content_type=MERGE)
    eventually(lambda: writes() > made and contents() == wanted, "it is put back")
    quiet(operator)
    assert writes() == made + 1, "by one write and no more"


def test_a_deployment_that_is_created_again_is_another_object_with_a_status_of_its_own(cluster: Cluster) -> None:
    serving(cluster)
    pool = cluster.child("apps/v1:deployments/base-pool")
    first = cluster.get("ModelDeployment", "m")
    cluster.delete("ModelDeployment", "m")
    again = cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    assert again["metadata"]["uid"] != first["metadata"]["uid"]
    eventually(lambda: weights(cluster) == {"v0": 100}, "the new one is served")

    def kept() -> dict[str, Any]:
        return cluster.child("apps/v1:deployments/base-pool") or {"metadata": {}}

    assert pool and kept()["metadata"]["uid"] == pool["metadata"]["uid"]
    eventually(
        lambda: names.ANNOTATION_UNUSED_SINCE not in kept()["metadata"].get("annotations", {}), "the mark is taken off"
    )
    assert kept()["metadata"]["uid"] == pool["metadata"]["uid"]


def test_a_pool_that_nothing_refers_to_goes_after_its_grace_with_everything_it_had(cluster: Cluster) -> None:
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the pool")
    eventually(lambda: cluster.child("secrets/base-engine-key"), "its key")
    cluster.delete("ModelDeployment", "m")
    marked = eventually(
        lambda: (
            names.ANNOTATION_UNUSED_SINCE
            in ((cluster.child("apps/v1:deployments/base-pool") or {})["metadata"].get("annotations") or {})
        ),
        "the mark",
    )
    assert marked
    long_ago = {"metadata": {"annotations": {names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"}}}
    where = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/base-pool"
    cluster.api.request("PATCH", where, body=long_ago, content_type=MERGE)
    for child in ("apps/v1:deployments/base-pool", "configmaps/base-plan", "services/base-pool"):
        eventually(partial(is_gone, cluster, child), f"{child} is gone")
    eventually(lambda: cluster.status("BaseModel", "base").get("usedBy") is None, "the base is free")


def test_the_older_deployment_keeps_a_model_name(cluster: Cluster) -> None:
    serving(cluster)
    spec = {**deployment_spec("base", {"v0": 100}), "modelName": "shared"}
    cluster.apply("ModelDeployment", "a", spec)
    eventually(lambda: weights(cluster, "a") == {"v0": 100}, "the first one serves")
    time.sleep(1.1)  # creation times have whole seconds
    cluster.apply("ModelDeployment", "b", spec)
    eventually(
        lambda: cluster.condition("ModelDeployment", "b", "Accepted") == ("False", "ModelNameTaken"),
        "the second one is told",
    )
    cluster.delete("ModelDeployment", "a")
    eventually(lambda: weights(cluster, "b") == {"v0": 100}, "the second one serves")


def test_a_status_that_was_written_by_somebody_else_is_written_again(
    cluster: Cluster, operator: OperatorProcess
) -> None:
    serving(cluster)
    quiet(operator)
    before = cluster.status("ModelDeployment", "m")
    where = cluster.path("modeldeployments", "m") + "/status"
    cluster.api.request("PATCH", where, body={"status": {"reason": "Vandalised", "url": "x"}}, content_type=MERGE)
    eventually(lambda: cluster.status("ModelDeployment", "m") == before, "the status is whole again")
    cluster.api.request("PATCH", where, body={"status": None}, content_type=MERGE)
    eventually(lambda: weights(cluster) == {"v0": 100, "v1": 0}, "a status that was stripped is there again")


def test_a_stale_status_never_lands_on_a_newer_object(cluster: Cluster) -> None:
    from tuneyard.systems.kube.objects import apply_status

    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    old = eventually(lambda: (o := cluster.get("ModelDeployment", "m")).get("status") and o, "a status")
    cluster.delete("ModelDeployment", "m")
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    with pytest.raises(ApiError) as refused:
        apply_status(cluster.api, old, {"url": "stale", "conditions": [], "traffic": []})
    assert refused.value.conflict
    eventually(lambda: cluster.status("ModelDeployment", "m").get("observedGeneration") == 1, "its own status")
    assert cluster.status("ModelDeployment", "m").get("url") != "stale"


def test_edits_while_statuses_are_written_are_all_seen(cluster: Cluster) -> None:
    serving(cluster)
    tuned: dict[str, str | None] = {"v1": "tuned"}

    def edit(first: int) -> None:
        for weight in range(first, 60, 4):
            cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100 - weight, "v1": weight}, tuned))

    editors = [threading.Thread(target=edit, args=(n,)) for n in range(4)]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()
    final = {t["revision"]: t["weight"] for t in cluster.get("ModelDeployment", "m")["spec"]["traffic"]}
    eventually(lambda: weights(cluster) == final, "the last edit shows")
    generation = cluster.get("ModelDeployment", "m")["metadata"]["generation"]
    eventually(lambda: cluster.status("ModelDeployment", "m")["observedGeneration"] == generation, "and its generation")


def test_what_the_api_server_refuses_is_said_in_words(cluster: Cluster) -> None:
    base = json.loads(json.dumps(BASE_SPEC))
    base["serving"]["nodeSelector"] = {"kubernetes.io/hostname": "not a label value!"}
    cluster.apply("BaseModel", "base", base)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
    eventually(lambda: cluster.condition("BaseModel", "base", "Stalled")[0] == "True", "the base is stalled")
    stalled = next(c for c in cluster.status("BaseModel", "base")["conditions"] if c["type"] == "Stalled")
    assert "nodeSelector" in stalled["message"]


def test_events_tell_what_happened_once(cluster: Cluster) -> None:
    serving(cluster)

    def told() -> list[str]:
        where = f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events"
        found = cluster.api.request("GET", where)["items"]
        return sorted(f"{e['regarding']['kind']}/{e['regarding']['name']} {e['reason']}" for e in found)

    wanted = {
        "BaseModel/base PoolCreated",
        "BaseModel/base DigestPinned",
        "LoRAAdapter/tuned DigestPinned",
        "LoRAAdapter/tuned AdapterLoaded",
    }
    eventually(lambda: wanted <= set(told()), "the events")
    assert len(told()) == len(set(told()))


def test_health_and_metrics_are_served(operator: OperatorProcess) -> None:
    assert operator.ask("/healthz") == (200, "ok\n")
    assert operator.ask("/readyz") == (200, "ok\n")
    assert operator.metric("tuneyard_leader") == 1
    assert "tuneyard_watch_age_seconds" in operator.ask("/metrics")[1]


def test_kopf_writes_nothing(operator_apiserver: ApiServer, operator: OperatorProcess) -> None:
    own = ("fieldManager=tuneyard-operator", "/events", "/leases")
    patches = [e["requestURI"] for e in operator_apiserver.writes("operator-0") if e["verb"] == "patch"]
    assert patches
    assert [uri for uri in patches if not any(mark in uri for mark in own)] == []


def children_writes(server: ApiServer) -> list[str]:
    """What the operator wrote, but for its lease."""
    return [f"{e['verb']} {e['requestURI']}" for e in server.writes("operator-0") if "/leases" not in e["requestURI"]]


def quiet(operator: OperatorProcess) -> None:
    """Wait until the operator has looked at nothing for a while."""
    last = (-1.0, 0.0)

    def still() -> bool:
        nonlocal last
        passes = operator.metric("tuneyard_reconcile_passes_total")
        if passes != last[0]:
            last = (passes, time.monotonic())
        return time.monotonic() - last[1] > 0.7

    eventually(still, "the operator comes to rest", 30)
