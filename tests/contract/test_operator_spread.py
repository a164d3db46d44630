"""Adapters over several pods, as the operator plans them on a real API server; pods are moved by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tuneyard.api.documents import PACKED_PLAN_KEY, PLAN_KEY, PoolPlan, plan_text

pytestmark = pytest.mark.apiserver

Object = dict[str, Any]


@pytest.fixture(scope="module")
def operator(operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    with OperatorProcess(operator_apiserver, tmp_path_factory.mktemp("operator"), token="operator-0") as process:
        eventually(lambda: "working" in process.said(), process.said() or "the operator works")
        yield process


def base_spec(replicas: int, places: int, copies: int) -> Object:
    lora = {"maxCpuLoras": places, "copies": copies}
    return {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], "replicas": replicas, "lora": lora}}


def digest_of(name: str) -> str:
    return "sha256:" + name.encode().hex().ljust(64, "0")[:64]


def plan(cluster: Cluster) -> PoolPlan | None:
    text = plan_text(cluster.child("configmaps/base-plan") or {})
    return PoolPlan.model_validate_json(text) if text else None


def load_share(cluster: Cluster, *pods: str) -> None:
    """The pods' agents have done what the plan says."""
    found = plan(cluster)
    assert found is not None
    for pod in pods:
        cluster.report(pod, "base", {a.name: digest_of(a.name) for a in found.share(pod).adapters})


def places(cluster: Cluster) -> dict[str, list[str] | None]:
    found = plan(cluster)
    return {a.name: a.pods for a in found.adapters} if found else {}


def test_adapters_are_spread_over_pods_and_move_with_the_last_pod_that_has_them(
    operator_apiserver: ApiServer, operator: OperatorProcess
) -> None:
    cluster = Cluster(operator_apiserver, "spread")
    cluster.apply("BaseModel", "base", base_spec(replicas=2, places=3, copies=1))
    names = ["a", "b", "c", "d"]
    for name in names:
        cluster.apply("LoRAAdapter", name, adapter_spec("base", name))
    weights = dict.fromkeys(names, 25)
    cluster.apply("ModelDeployment", "m", deployment_spec("base", weights, {n: n for n in names}))
    eventually(lambda: places(cluster) == {n: [] for n in names}, "they are planned for pods that are to come")
    for pod in ("pod-0", "pod-1"):
        cluster.pod(pod, "base")
        cluster.verified(pod, "sha256:" + "ab" * 32)
        cluster.report(pod, "base", {})
    eventually(lambda: (found := plan(cluster)) and found.pods == ["pod-0", "pod-1"], "the pods count")
    eventually(lambda: all(len(p or ()) == 1 for p in places(cluster).values()), "each has a pod")
    load_share(cluster, "pod-0", "pod-1")
    for name in names:
        eventually(lambda n=name: cluster.status("LoRAAdapter", n).get("loaded") == "1/1", f"{name} is loaded")  # type: ignore[misc]
    before = places(cluster)
    where = f"/api/v1/namespaces/{cluster.namespace}/pods/pod-1"
    cluster.api.request("DELETE", where, query={"gracePeriodSeconds": "0"})
    eventually(lambda: (found := plan(cluster)) and found.pods == ["pod-0"], "the pod does not count any more")
    after = places(cluster)
    assert all(after[name] == ["pod-0"] for name in names if before[name] == ["pod-0"])
    assert sum(after[name] == ["pod-0"] for name in names) == 3, "one pod has three places"
    assert operator.running()


def test_a_long_plan_is_packed_applied_once_and_readable_again_when_it_is_short(
    operator_apiserver: ApiServer, operator: OperatorProcess
) -> None:
    cluster = Cluster(operator_apiserver, "packed")
    names = [f"tenant-{n}" for n in range(320)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cluster.apply("LoRAAdapter", n, adapter_spec("base", f"{'x' * 400}/{n}")), names))
        groups = [names[at : at + 16] for at in range(0, len(names), 16)]
        specs = [deployment_spec("base", {g[0]: 100, **dict.fromkeys(g[1:], 0)}, {n: n for n in g}) for g in groups]
        list(pool.map(lambda s: cluster.apply("ModelDeployment", f"m{s[0]}", s[1]), enumerate(specs)))
    cluster.apply("BaseModel", "base", base_spec(replicas=4, places=200, copies=2))
    eventually(lambda: len(places(cluster)) == len(names), "all are planned")
    stored = cluster.child("configmaps/base-plan") or {}
    assert PLAN_KEY not in stored["data"]
    assert len(json.dumps(stored)) < 60_000
    passes = operator.metric("tuneyard_reconcile_passes_total")
    cluster.pod("other", "base", pool="another")
    eventually(lambda: operator.metric("tuneyard_reconcile_passes_total") > passes, "the base is looked at again")
    version = (cluster.child("configmaps/base-plan") or {})["metadata"]["resourceVersion"]
    assert version == stored["metadata"]["resourceVersion"], "it is as it was applied"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cluster.delete("LoRAAdapter", n), names[200:]))
    eventually(lambda: len(places(cluster)) == 200, "the others are gone")
    stored = cluster.child("configmaps/base-plan") or {}
    assert PLAN_KEY in stored["data"]
    assert PACKED_PLAN_KEY not in (stored.get("binaryData") or {})
