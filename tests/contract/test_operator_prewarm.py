"""Caches that are filled beforehand, on a real API server: made, told of, put back, changed and taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import (
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tuneyard.api import names
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE, ApiError

pytestmark = pytest.mark.apiserver

Object = dict[str, Any]
DIGEST = "sha256:" + "ab" * 32
ADAPTER_DIGEST = "sha256:" + "cd" * 32
DAEMON_SET = "apps/v1:daemonsets/base-prewarm"
CHILDREN = (
    "configmaps/base-prewarm",
    "rbac.authorization.k8s.io/v1:roles/base-prewarm",
    "rbac.authorization.k8s.io/v1:rolebindings/base-prewarm",
    DAEMON_SET,
)
HOST_PATH = {"hostPath": {"path": "/var/cache/tuneyard"}}


@pytest.fixture(scope="module")
def operator(operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    settings = {"allowedCacheHostPaths": ["/var/cache/tuneyard"]}
    with OperatorProcess(
        operator_apiserver, tmp_path_factory.mktemp("operator"), token="operator-0", settings=settings
    ) as process:
        eventually(lambda: "working" in process.said(), "the operator works")
        yield process


@pytest.fixture
def cluster(operator: OperatorProcess, operator_apiserver: ApiServer, request: pytest.FixtureRequest) -> Cluster:
    return Cluster.of(operator_apiserver, request)


def base_spec(**cache: Any) -> Object:
    return {"source": {"s3": {"uri": "s3://models/base/"}}, "serving": {"cache": {**HOST_PATH, **cache}}}


def plan(cluster: Cluster) -> Object:
    found: Object = json.loads((cluster.child("configmaps/base-prewarm") or {})["data"]["plan.json"])
    return found


def counted(cluster: Cluster, ready: int, chosen: int) -> None:
    """What the DaemonSet's controller would say."""
    generation = (cluster.child(DAEMON_SET) or {})["metadata"]["generation"]
    status = {"currentNumberScheduled": chosen, "numberMisscheduled": 0, "observedGeneration": generation}
    status |= {"desiredNumberScheduled": chosen, "numberReady": ready}
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/daemonsets/base-prewarm/status"
    cluster.api.request("PATCH", path, body={"status": status}, content_type=MERGE)


def keeping_pod(cluster: Cluster, name: str) -> None:
    """A pod as the DaemonSet's controller would make it: of its own template."""
    template = (cluster.child(DAEMON_SET) or {})["spec"]["template"]
    body = {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    cluster.api.request("POST", f"/api/v1/namespaces/{cluster.namespace}/pods", body=body)


def kept(cluster: Cluster, name: str, report: Object) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{name}"
    annotations = {names.ANNOTATION_ADAPTERS: json.dumps(report)}
    cluster.api.request("PATCH", path, body={"metadata": {"annotations": annotations}}, content_type=MERGE)


def told(cluster: Cluster) -> tuple[str | None, str | None]:
    status = cluster.status("BaseModel", "base")
    return status.get("prewarmed"), status.get("prewarmProgress")


def is_gone(cluster: Cluster, child: str) -> bool:
    return cluster.child(child) is None


def test_made_before_a_rollout_told_of_and_taken_away(cluster: Cluster) -> None:
    base = cluster.apply("BaseModel", "base", base_spec(prewarm={"nodeSelector": {"pool": "gpu"}}))
    for child in CHILDREN:
        made = eventually(partial(cluster.child, child), child)
        assert [o["uid"] for o in made["metadata"]["ownerReferences"]] == [base["metadata"]["uid"]], child
        assert made["metadata"]["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
    assert cluster.child("apps/v1:deployments/base-pool") is None
    counted(cluster, 0, 3)
    says = "no pod yet: see kubectl describe daemonset base-prewarm"
    eventually(lambda: told(cluster) == ("0/3", says), "the nodes are counted")

    keeping_pod(cluster, "keep-0")
    cluster.verified("keep-0", DIGEST)
    eventually(lambda: cluster.status("BaseModel", "base").get("digest") == DIGEST, "the first one's digest is pinned")
    eventually(lambda: plan(cluster).get("digest") == DIGEST, "and comes to the others by the plan")
    report = {"kept": 1, "wanted": 2, "reason": "AccessDenied", "message": "adapter tuned: the key is refused"}
    kept(cluster, "keep-0", report)
    counted(cluster, 2, 3)
    words = "AccessDenied: pod keep-0: adapter tuned: the key is refused"
    eventually(lambda: told(cluster) == ("2/3", words), "what fails is told")
    assert cluster.condition("BaseModel", "base", "Ready") == ("True", "NotUsed")
    kept(cluster, "keep-0", {"kept": 2, "wanted": 2})
    counted(cluster, 3, 3)
    eventually(lambda: told(cluster) == ("3/3", None), "all nodes are ready")

    cluster.apply("BaseModel", "base", base_spec())
    for child in CHILDREN:
        eventually(partial(is_gone, cluster, child), f"{child} goes")
    eventually(lambda: told(cluster) == (None, None), "nothing is said any more")


def test_the_plan_follows_the_pool_and_pods_do_not_roll_for_it(cluster: Cluster) -> None:
    cluster.apply("BaseModel", "base", base_spec(prewarm={}))
    made = eventually(lambda: cluster.child(DAEMON_SET), "the DaemonSet")
    remote = {"baseModel": "base", "source": {"s3": {"uri": "s3://models/tuned/"}}, "digest": ADAPTER_DIGEST}
    cluster.apply("LoRAAdapter", "tuned", remote)
    cluster.apply("LoRAAdapter", "local", adapter_spec("base"))
    adapters: dict[str, str | None] = {"v1": "tuned", "v2": "local"}
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 100, "v2": 0}, adapters))

    def planned() -> list[tuple[str, str]]:
        return [(a["name"], a["digest"]) for a in plan(cluster)["adapters"]]

    eventually(lambda: planned() == [("tuned", ADAPTER_DIGEST)], "the remote adapter is in the plan")
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the pool beside it")
    cluster.delete("ModelDeployment", "m")
    eventually(lambda: planned() == [], "what is not planned any more goes from it")
    assert (cluster.child(DAEMON_SET) or {})["metadata"]["generation"] == made["metadata"]["generation"]


def test_what_somebody_changes_or_deletes_is_put_back(cluster: Cluster) -> None:
    cluster.apply("BaseModel", "base", base_spec(prewarm={"nodeSelector": {"pool": "gpu"}}))
    eventually(lambda: cluster.child(DAEMON_SET), "the DaemonSet")
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/daemonsets/base-prewarm"
    selector = {"spec": {"template": {"spec": {"nodeSelector": {"pool": "all"}}}}}
    cluster.api.request("PATCH", path, body=selector, content_type=MERGE, query={"fieldManager": "somebody"})

    def selects() -> Object:
        spec: Object = (cluster.child(DAEMON_SET) or {"spec": {"template": {"spec": {}}}})["spec"]["template"]["spec"]
        return spec.get("nodeSelector") or {}

    eventually(lambda: selects() == {"pool": "gpu"}, "the selector is put back")
    cluster.api.request("DELETE", path)
    eventually(lambda: selects() == {"pool": "gpu"}, "the DaemonSet is made again")
    cluster.apply("BaseModel", "base", base_spec(prewarm={"nodeSelector": {"pool": "next"}}))
    eventually(lambda: selects() == {"pool": "next"}, "other nodes are chosen")


def test_a_folder_that_the_chart_does_not_allow_is_told_of(cluster: Cluster) -> None:
    elsewhere = {"hostPath": {"path": "/etc"}, "prewarm": {}}
    cluster.apply("BaseModel", "base", base_spec(**elsewhere))
    eventually(lambda: (told(cluster)[1] or "").startswith("HostPathNotAllowed: "), "the reason")
    assert cluster.child(DAEMON_SET) is None


CLAIM = {"persistentVolumeClaim": {"claimName": "cache"}}
VOLUME = {"volume": {"name": "models", "path": "base"}}
PREWARM = {"cache": {**HOST_PATH, "prewarm": {}}}
REVISION = {"name": "v1", "baseModel": "base"}


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        (
            "BaseModel",
            {"source": base_spec()["source"], "serving": {"cache": {**CLAIM, "prewarm": {}}}},
            "cache.prewarm fills the nodes' own folders, so it needs cache.hostPath",
        ),
        (
            "BaseModel",
            {"source": base_spec()["source"], "serving": {"cache": {"prewarm": {}}}},
            "so it needs cache.hostPath",
        ),
        (
            "BaseModel",
            {"source": VOLUME, "serving": PREWARM},
            "serving.cache.prewarm fetches what comes over the network",
        ),
        (
            "ModelDeployment",
            {"revisions": [REVISION], "traffic": [{"revision": "v1", "weight": 100}], "serving": PREWARM},
            "serving.cache.prewarm belongs to a base model",
        ),
        (
            "ModelDeployment",
            {"revisions": [{**REVISION, "serving": PREWARM}], "traffic": [{"revision": "v1", "weight": 100}]},
            "serving.cache.prewarm belongs to a base model",
        ),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(
    operator_apiserver: ApiServer, kind: str, spec: Object, words: str
) -> None:
    with pytest.raises(ApiError) as refused:
        objects.apply(
            operator_apiserver.api(),
            {
                "apiVersion": names.API_VERSION,
                "kind": kind,
                "metadata": {"name": "x", "namespace": "default"},
                "spec": spec,
            },
        )
    assert words in str(refused.value)
