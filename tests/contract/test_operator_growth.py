"""A hot adapter on a real API server: what gateways say is asked becomes copies, and the next operator knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import Cluster, OperatorProcess, adapter_spec, deployment_spec, eventually
from tests.contract.test_operator_spread import base_spec, load_share, places, plan
from tuneyard.planning.children import ANNOTATION_GROWN

pytestmark = pytest.mark.apiserver

PODS = ("pod-0", "pod-1", "pod-2")
HOT, COLD = "hot", "cold"


def calm_pool(apiserver: ApiServer) -> Cluster:
    """Two adapters with a copy each on three pods that serve."""
    cluster = Cluster(apiserver, "growth")
    cluster.apply("BaseModel", "base", base_spec(replicas=3, places=4, copies=1))
    for name in (HOT, COLD):
        cluster.apply("LoRAAdapter", name, adapter_spec("base", name))
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 50, "v2": 50}, {"v1": HOT, "v2": COLD}))
    for pod in PODS:
        cluster.pod(pod, "base")
        cluster.verified(pod, "sha256:" + "ab" * 32)
        cluster.report(pod, "base", {})
    eventually(lambda: all(len(p or ()) == 1 for p in places(cluster).values()) and places(cluster), "each has a pod")
    load_share(cluster, *PODS)
    eventually(lambda: cluster.status("LoRAAdapter", HOT).get("loaded") == "1/1", "it is loaded")
    return cluster


def spread_events(cluster: Cluster) -> list[dict[str, Any]]:
    found = cluster.api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events")
    return [e for e in found["items"] if e["reason"] == "AdapterSpread"]


def test_a_hot_adapter_spreads_and_the_next_operator_knows_it(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    with FakeGateway("one") as one, FakeGateway("two") as two:
        gateways = f"{one.entry},{two.entry}"
        with OperatorProcess(operator_apiserver, tmp_path / "a", identity="operator-0", gateways=gateways) as operator:
            cluster = calm_pool(operator_apiserver)
            where = f"{cluster.namespace}/m"
            before = places(cluster)
            passes = operator.metric("tuneyard_reconcile_passes_total")
            for number in range(20):
                one.demanded(where, v1=number / 10, v2=1.0)
            one.demanded(where, v1=3.0, v2=1.0)
            two.demanded(where, v1=6.5, v2=1.0)
            eventually(lambda: places(cluster)[HOT] == list(PODS), "it has a copy on every pod")
            assert places(cluster)[COLD] == before[COLD]
            assert operator.metric("tuneyard_reconcile_passes_total") - passes < 20, "what changes no plan wakes nobody"
            eventually(lambda: cluster.status("LoRAAdapter", HOT).get("loaded") == "1/3", "its status says so")
            assert cluster.condition("LoRAAdapter", HOT, "Ready") == ("True", "Ready")
            load_share(cluster, *PODS)
            eventually(lambda: cluster.status("LoRAAdapter", HOT).get("loaded") == "3/3", "it is loaded everywhere")
            eventually(lambda: spread_events(cluster), "an event tells it")
            event = spread_events(cluster)[-1]
            assert (event["regarding"]["kind"], event["regarding"]["name"]) == ("LoRAAdapter", HOT)
            assert event["note"].startswith("gets 3 of 3 pods for ")
            operator.kill()
        one.demanded(where, v1=0.0, v2=0.0)
        two.demanded(where, v1=0.0, v2=0.0)
        with OperatorProcess(operator_apiserver, tmp_path / "b", identity="operator-0", gateways=gateways) as operator:
            eventually(lambda: "working" in operator.said(), "the next operator works", 40)
            eventually(lambda: since(cluster), "it has seen that fewer would do")
            found = plan(cluster)
            assert found is not None
            assert {a.name: (a.pods, a.copies) for a in found.adapters}[HOT] == (list(PODS), 3)


def since(cluster: Cluster) -> str:
    """Since when the hot adapter deserves fewer copies, as it is remembered."""
    metadata = (cluster.child("configmaps/base-plan") or {})["metadata"]
    return str(json.loads(metadata["annotations"].get(ANNOTATION_GROWN, "{}"))[HOT]).partition(" ")[2]
