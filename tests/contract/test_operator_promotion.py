"""Promotions as a running operator records them: who, when, once, and again after either status was lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
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
from tests.contract.test_operator_reconcile import quiet
from tuneyard.systems.kube import objects

pytestmark = pytest.mark.apiserver

DIGESTS = {"one": "sha256:" + "ab" * 32, "two": "sha256:" + "cd" * 32}
ADAPTERS: dict[str, str | None] = {"v1": "one", "v2": "two"}


@pytest.fixture(scope="module")
def operator(operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    folder: Path = tmp_path_factory.mktemp("operator")
    with OperatorProcess(operator_apiserver, folder, token="operator-0") as process:
        eventually(lambda: "working" in process.said(), process.said() or "the operator works")
        yield process


@pytest.fixture(scope="module")
def cluster(operator_apiserver: ApiServer, operator: OperatorProcess) -> Cluster:
    """A base, two adapters on one pod, the first of which has all traffic."""
    del operator  # it works
    cluster = Cluster(operator_apiserver, "promotion")
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("LoRAAdapter", "one", adapter_spec("base"))
    cluster.apply("LoRAAdapter", "two", {**adapter_spec("base"), "lineage": {"parent": "one"}})
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 100, "v2": 0}, ADAPTERS))
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the pool's Deployment")
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", "sha256:" + "00" * 32)
    cluster.report("pod-0", "base", DIGESTS)
    return cluster


def promoted(cluster: Cluster, adapter: str) -> tuple[Any, Any]:
    status = cluster.status("LoRAAdapter", adapter)
    return status.get("promotedAt"), status.get("promotedBy")


def stable(cluster: Cluster) -> tuple[Any, Any]:
    rollout = cluster.status("ModelDeployment", "m").get("rollout") or {}
    return rollout.get("stable"), rollout.get("stableSince")


def lose(cluster: Cluster, kind: str, name: str) -> str:
    """Write an empty status, as a restored etcd would hold it; returns its resourceVersion."""
    stored = objects.apply_status(cluster.api, cluster.get(kind, name), {"conditions": []})
    return str(stored["metadata"]["resourceVersion"])


def is_other(cluster: Cluster, kind: str, name: str, version: str) -> bool:
    return bool(cluster.get(kind, name)["metadata"]["resourceVersion"] != version)


def test_a_parent_that_is_an_adapter_is_warned_of(cluster: Cluster) -> None:
    eventually(
        lambda: cluster.condition("LoRAAdapter", "two", "TrainedFromBase") == ("False", "ParentIsAdapter"),
        "the warning",
    )
    eventually(lambda: cluster.condition("LoRAAdapter", "two", "Ready")[0] == "True", "it is served all the same")


def status_writes(cluster: Cluster, plural: str) -> int:
    """How often the operator has changed a status here; what other tests have left is written to as well."""
    here = f"/namespaces/{cluster.namespace}/{plural}/"
    return sum(
        1
        for w in cluster.server.writes("operator")
        if here in w["requestURI"]
        and w["objectRef"].get("subresource") == "status"
        and w["responseStatus"]["code"] < 300
    )


def test_a_promotion_costs_one_write_and_comes_back_after_a_loss(cluster: Cluster, operator: OperatorProcess) -> None:
    eventually(lambda: promoted(cluster, "one")[1] == "m/v1", "the first revision's adapter is promoted")
    first = promoted(cluster, "one")
    assert stable(cluster) == ("v1", first[0])
    assert promoted(cluster, "two") == (None, None)

    quiet(operator)  # what the first promotion was written with may come behind it
    before = status_writes(cluster, "loraadapters")
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 0, "v2": 100}, ADAPTERS))
    eventually(lambda: promoted(cluster, "two")[1] == "m/v2", "the second one takes over")
    quiet(operator)
    assert status_writes(cluster, "loraadapters") == before + 1
    second = promoted(cluster, "two")
    assert stable(cluster) == ("v2", second[0])
    assert promoted(cluster, "one") == first, "what was, stays"

    for kind, name in (("LoRAAdapter", "two"), ("ModelDeployment", "m")):
        lost = lose(cluster, kind, name)
        eventually(partial(is_other, cluster, kind, name, lost), "a new status")
        eventually(lambda: (promoted(cluster, "two"), stable(cluster)) == (second, ("v2", second[0])), "the record")


def test_a_base_that_is_served_itself_is_promoted(cluster: Cluster) -> None:
    assert not cluster.status("BaseModel", "base").get("promotedAt"), "an adapter's promotion is not its base's"
    cluster.apply("ModelDeployment", "plain", deployment_spec("base", {"merged": 100}))
    eventually(lambda: cluster.status("BaseModel", "base").get("promotedBy") == "plain/merged", "the base is promoted")
    rollout = cluster.status("ModelDeployment", "plain")["rollout"]
    assert cluster.status("BaseModel", "base")["promotedAt"] == rollout["stableSince"]
    lost = lose(cluster, "BaseModel", "base")
    eventually(partial(is_other, cluster, "BaseModel", "base", lost), "a new status")
    eventually(
        lambda: cluster.status("BaseModel", "base").get("promotedAt") == rollout["stableSince"], "the record is back"
    )
