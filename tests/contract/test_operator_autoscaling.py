"""Pools that are scaled, on a real API server: by what gateways say, by the next operator, and by somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import BASE_SPEC, Cluster, OperatorProcess, deployment_spec, eventually
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE

pytestmark = pytest.mark.apiserver

DEPLOYMENT = f"apps/v1:deployments/{names.pool_deployment('base')}"
SCALED = {
    "minReplicas": 1,
    "maxReplicas": 6,
    "targets": {"inFlightRequests": 10},
    "scaleDown": {"stabilizationWindow": "20s"},
}


def base_spec(**serving: Any) -> dict[str, Any]:
    given = {k: v for k, v in BASE_SPEC["serving"].items() if k != "replicas"}
    return {**BASE_SPEC, "serving": {**given, **serving}}


def served(apiserver: ApiServer, namespace: str, **serving: Any) -> Cluster:
    """A base with one deployment and one pod that serves."""
    cluster = Cluster(apiserver, namespace)
    cluster.apply("BaseModel", "base", base_spec(**serving))
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 100}, {"v1": None}))
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", "sha256:" + "ab" * 32)
    cluster.report("pod-0", "base", {})
    return cluster


def replicas(cluster: Cluster) -> int | None:
    found = cluster.child(DEPLOYMENT)
    return None if found is None else int(found["spec"]["replicas"])


def pool(cluster: Cluster) -> dict[str, Any]:
    pools = cluster.status("BaseModel", "base").get("pools") or [{}]
    found: dict[str, Any] = pools[0]
    return found


def events(cluster: Cluster, reason: str) -> list[str]:
    found = cluster.api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events")
    return [e["note"] for e in found["items"] if e["reason"] == reason]


def test_it_grows_with_its_load_and_the_next_operator_takes_it_back(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    with FakeGateway("one") as one, FakeGateway("two") as two:
        gateways = f"{one.entry},{two.entry}"
        with OperatorProcess(operator_apiserver, tmp_path / "a", identity="operator-0", gateways=gateways) as operator:
            cluster = served(operator_apiserver, "autoscaling", autoscaling=SCALED)
            where = f"{cluster.namespace}/m"
            eventually(lambda: replicas(cluster) == 1, "it begins with the fewest")
            passes = operator.metric("tuneyard_reconcile_passes_total")
            for number in range(20):
                one.demanded(where, v1=number / 4)
            assert operator.metric("tuneyard_reconcile_passes_total") - passes < 20, "what changes nothing wakes nobody"
            two.demanded(where, v1=10.0)
            one.demanded(where, v1=32.0, waiting=3)
            eventually(lambda: replicas(cluster) == 4, "both gateways' requests have their pods", 10)
            eventually(lambda: events(cluster, "ScaledUp"), "an event tells it")
            assert events(cluster, "ScaledUp") == [f"pool base: 1 → 4 replicas, {pool(cluster)['reason']}"]
            assert pool(cluster)["wantedReplicas"] == 4
            assert cluster.get("BaseModel", "base")["spec"] == base_spec(autoscaling=SCALED), "no spec is written"
            operator.kill()
        one.demanded(where, v1=8.0)
        two.demanded(where, v1=8.0)
        with OperatorProcess(operator_apiserver, tmp_path / "b", identity="operator-0", gateways=gateways) as operator:
            eventually(lambda: pool(cluster).get("scaling", {}).get("lowerSince"), "it sees that fewer would do", 40)
            assert replicas(cluster) == 4
            eventually(lambda: replicas(cluster) == 2, "after the window", 60)
            eventually(lambda: events(cluster, "ScaledDown"), "an event tells it")
            wanted = operator.metric("tuneyard_pool_wanted_replicas", f'namespace="{cluster.namespace}"')
            assert wanted == 2


def test_somebody_elses_number_is_theirs(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    with OperatorProcess(operator_apiserver, tmp_path, identity="operator-0"):
        cluster = served(operator_apiserver, "scaled-outside", replicas=3)
        eventually(lambda: replicas(cluster) == 3, "it has its own number")
        cluster.apply("BaseModel", "base", base_spec(autoscaling={"external": True}))
        eventually(lambda: pool(cluster).get("wantedReplicas") is None and generation_seen(cluster), "it has read that")
        assert replicas(cluster) == 3, "not the API server's default"
        name = names.pool_deployment("base")
        scale = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/{name}/scale"
        cluster.api.request(
            "PATCH", scale, body={"spec": {"replicas": 5}}, content_type=MERGE, query={"fieldManager": "hpa"}
        )
        eventually(lambda: "f:replicas" not in ours(cluster), "the operator leaves the field to them")
        eventually(lambda: pool(cluster).get("replicas") == 5, "the status says how many there are")
        spec = base_spec(autoscaling={"external": True}, maxModelLen=64)
        cluster.apply("BaseModel", "base", spec)
        eventually(lambda: generation_seen(cluster) and "64" in arguments(cluster), "another template is rolled out")
        assert replicas(cluster) == 5
        cluster.apply("BaseModel", "base", base_spec(autoscaling=SCALED))
        eventually(lambda: pool(cluster).get("wantedReplicas") == 5, "taken back, it goes on with what is there")


def generation_seen(cluster: Cluster) -> bool:
    found = cluster.get("BaseModel", "base")
    return bool((found.get("status") or {}).get("observedGeneration") == found["metadata"]["generation"])


def ours(cluster: Cluster) -> dict[str, Any]:
    """The fields of the Deployment's spec that the operator owns."""
    entries = (cluster.child(DEPLOYMENT) or {})["metadata"]["managedFields"]
    (mine,) = [e for e in entries if e["manager"] == names.FIELD_MANAGER and e["operation"] == "Apply"]
    found: dict[str, Any] = mine["fieldsV1"]["f:spec"]
    return found


def arguments(cluster: Cluster) -> list[str]:
    containers = (cluster.child(DEPLOYMENT) or {})["spec"]["template"]["spec"]["containers"]
    return [a for c in containers for a in (*(c.get("command") or ()), *(c.get("args") or ()))]
