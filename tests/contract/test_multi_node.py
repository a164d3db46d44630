"""A pool whose replicas span nodes, with the real LeaderWorkerSet controller: groups of pods come, are replaced whole,
roll without serving less than before, and go.

Marked slow: the controller has to be built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from zlib import crc32

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.leaderworkersets import LABELS, Kubelets, controllers, is_ready
from tests.contract.operator_process import BASE_SPEC, Cluster, OperatorProcess, deployment_spec, eventually
from tuneyard.api import names
from tuneyard.systems.kube.client import ApiError

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

Object = dict[str, Any]
GROUPS = "leaderworkerset.x-k8s.io/v1:leaderworkersets/base-group"
DEPLOYMENT = "apps/v1:deployments/base-pool"
POLICY = "networking.k8s.io/v1:networkpolicies/base-group"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server, the controllers, and an operator that may make groups."""
    folder = tmp_path_factory.mktemp("multi-node")
    with ApiServer() as server:
        server.install_crds()
        server.namespace("tuneyard-system")
        with (
            controllers(server, folder),
            FakeGateway("gateway-0") as gateway,
            OperatorProcess(
                server,
                folder / "operator",
                token="operator-0",
                gateways=gateway.entry,
                settings={"leaderWorkerSets": True},
            ) as operator,
        ):
            eventually(lambda: "working" in operator.said(), operator.said)
            yield server


@pytest.fixture
def cluster(world: ApiServer, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cluster = Cluster.of(world, request)
    yield cluster
    for kind, name in (("ModelDeployment", "m"), ("BaseModel", "base")):
        try:
            cluster.delete(kind, name)
        except ApiError as error:
            assert error.not_found, str(error)


@pytest.fixture
def kubelets(world: ApiServer, cluster: Cluster) -> Iterator[Kubelets]:
    with Kubelets(world, cluster.namespace) as kubelets:
        yield kubelets


def serving(cluster: Cluster, *, nodes: int = 2, replicas: int = 1, **fields: Any) -> None:
    """The base's pool is wanted like this."""
    block = {**BASE_SPEC["serving"], "replicas": replicas, "tensorParallelSize": 4, "pipelineParallelSize": 2}
    cluster.apply("BaseModel", "base", {**BASE_SPEC, "serving": {**block, "nodesPerReplica": nodes, **fields}})
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))


def leaders(kubelets: Kubelets) -> dict[str, Object]:
    """The pods that others know of."""
    return {n: p for n, p in kubelets.pods().items() if names.LABEL_POOL in p["metadata"]["labels"]}


def groups_serve(cluster: Cluster, kubelets: Kubelets, number: int) -> bool:
    """Whether so many leaders, and no more, are ready; their agents say so."""
    found = leaders(kubelets)
    for name, pod in found.items():
        said = names.ANNOTATION_ADAPTERS in (pod["metadata"].get("annotations") or {})
        if is_ready(pod) and not said:
            cluster.report(name, "base", address=f"10.0.{crc32(name.encode()) % 256}.10:8080")
    return len(found) == number and all(is_ready(p) for p in found.values())


def at_rest(cluster: Cluster) -> bool:
    return cluster.condition("BaseModel", "base", "Ready") == ("True", "Ready")


def is_gone(cluster: Cluster, child: str) -> bool:
    return cluster.child(child) is None


def rests(cluster: Cluster, kubelets: Kubelets, number: int) -> None:
    """Wait until so many groups serve and the base says that nothing is left to do."""
    eventually(
        lambda: groups_serve(cluster, kubelets, number) and at_rest(cluster),
        lambda: json.dumps(
            {
                "pods": {n: p.get("status", {}).get("phase") for n, p in kubelets.pods().items()},
                "status": cluster.status("BaseModel", "base"),
                "groups": (cluster.child(GROUPS) or {}).get("status"),
            }
        ),
        90,
    )


def test_groups_come_up_with_the_ranks_of_one_engine(cluster: Cluster, kubelets: Kubelets) -> None:
    serving(cluster, replicas=2)
    rests(cluster, kubelets, 2)
    pods = kubelets.pods()
    assert sorted(pods) == ["base-group-0", "base-group-0-1", "base-group-1", "base-group-1-1"]
    for name, pod in pods.items():
        (engine,) = pod["spec"]["containers"]
        given = {e["name"]: e.get("value") for e in engine["env"]}
        number, rank = name.split("-")[2], name.split("-")[3:] or ["0"]
        assert given["LWS_WORKER_INDEX"] == rank[0]
        assert given["LWS_LEADER_ADDRESS"] == f"base-group-{number}.base-group.{cluster.namespace}"
        assert [c["name"] for c in pod["spec"]["initContainers"]] == (
            ["verify"] if rank != ["0"] else ["verify", "front", "agent"]
        )
        assert ("--headless" in engine["args"]) == (rank != ["0"])
        assert engine["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    service = cluster.child("services/base-group")
    assert service is not None
    assert service["spec"]["publishNotReadyAddresses"], "ranks find their leader before it is ready"
    assert service["spec"]["selector"] == {f"{LABELS}/name": "base-group"}
    assert cluster.child(DEPLOYMENT) is None
    generation = (cluster.child(GROUPS) or {})["metadata"]["generation"]
    cluster.report("base-group-0", "base", address="10.0.0.77:8080")
    eventually(lambda: at_rest(cluster), "still at rest")
    assert (cluster.child(GROUPS) or {})["metadata"]["generation"] == generation, "nothing is applied again"


@pytest.mark.parametrize("lost", ["base-group-1-1", "base-group-1"])
def test_a_lost_pod_takes_its_whole_group_and_no_other(cluster: Cluster, kubelets: Kubelets, lost: str) -> None:
    serving(cluster, replicas=2)
    rests(cluster, kubelets, 2)
    before = {n: p["metadata"]["uid"] for n, p in kubelets.pods().items()}
    cluster.api.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/{lost}")

    def replaced() -> bool:
        now = {n: p["metadata"]["uid"] for n, p in kubelets.pods().items()}
        fresh = {n for n in before if now.get(n, before[n]) != before[n]}
        return fresh == {"base-group-1", "base-group-1-1"} and set(now) == set(before)

    eventually(replaced, lambda: str(sorted(kubelets.pods())))
    rests(cluster, kubelets, 2)


@pytest.mark.parametrize(("update", "replicas", "least"), [("Surge", 2, 2), ("Surge", 1, 1), ("Replace", 2, 1)])
def test_a_change_rolls_by_groups_and_never_below_what_serves(
    cluster: Cluster, kubelets: Kubelets, update: str, replicas: int, least: int
) -> None:
    serving(cluster, replicas=replicas, update=update)
    rests(cluster, kubelets, replicas)
    old = {p["metadata"]["annotations"][names.ANNOTATION_TEMPLATE] for p in leaders(kubelets).values()}
    del kubelets.history[:]
    serving(cluster, replicas=replicas, update=update, maxModelLen=4096)

    def rolled() -> bool:
        found = leaders(kubelets).values()
        return groups_serve(cluster, kubelets, replicas) and not any(
            p["metadata"]["annotations"][names.ANNOTATION_TEMPLATE] in old for p in found
        )

    eventually(rolled, lambda: json.dumps((cluster.child(GROUPS) or {}).get("status")), 120)
    rests(cluster, kubelets, replicas)
    assert min(len(ready) for ready, _ in kubelets.history) >= least
    assert max(len(made) for _, made in kubelets.history) <= replicas + (update == "Surge")


def test_scaling_and_leaving_leaves_nothing(cluster: Cluster, kubelets: Kubelets) -> None:
    serving(cluster)
    rests(cluster, kubelets, 1)
    serving(cluster, replicas=3)
    rests(cluster, kubelets, 3)
    serving(cluster, replicas=1)
    rests(cluster, kubelets, 1)
    cluster.delete("ModelDeployment", "m")
    cluster.delete("BaseModel", "base")
    for child in (GROUPS, POLICY, "services/base-group", "services/base-pool", "apps/v1:statefulsets/base-group"):
        eventually(partial(is_gone, cluster, child), f"{child} goes with its base")
    eventually(lambda: not kubelets.pods(), "all pods go")


@pytest.mark.parametrize("update", ["Surge", "Replace"])
def test_a_pool_goes_over_to_groups_and_back(cluster: Cluster, kubelets: Kubelets, update: str) -> None:
    serving(cluster, nodes=1, update=update)
    rests(cluster, kubelets, 1)
    (single,) = leaders(kubelets)
    del kubelets.history[:]
    serving(cluster, nodes=2, update=update)
    eventually(
        lambda: groups_serve(cluster, kubelets, 1) and single not in leaders(kubelets),
        lambda: str(sorted(kubelets.pods())),
    )
    rests(cluster, kubelets, 1)
    assert cluster.child(DEPLOYMENT) is None
    assert min(len(ready) for ready, _ in kubelets.history) == (1 if update == "Surge" else 0)
    serving(cluster, nodes=1, update=update)
    # a pod that surges takes the place of the group once its agent has said that it serves
    eventually(lambda: groups_serve(cluster, kubelets, 1) and cluster.child(GROUPS) is None, "the LeaderWorkerSet goes")
    eventually(lambda: cluster.child(POLICY) is None, "and the policy between its pods")
    rests(cluster, kubelets, 1)
