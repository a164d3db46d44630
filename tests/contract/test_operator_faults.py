"""Operators that are killed, paused, replaced or cut off from a real API server come to the same end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    OperatorProcess,
    adapter_spec,
    all_of,
    deployment_spec,
    eventually,
)
from tuneyard.api import names
from tuneyard.systems.kube.lease import DURATION, LeaderLease

pytestmark = pytest.mark.apiserver

Object = dict[str, Any]
DIGEST = "sha256:" + "ab" * 32
PLACES = (
    ("/api/v1", ("serviceaccounts", "configmaps", "secrets", "services")),
    ("/apis/rbac.authorization.k8s.io/v1", ("roles", "rolebindings")),
    ("/apis/networking.k8s.io/v1", ("networkpolicies",)),
    ("/apis/policy/v1", ("poddisruptionbudgets",)),
    ("/apis/apps/v1", ("deployments",)),
)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """One for each test: they break it, or their operators would meet."""
    with ApiServer() as found:
        found.install_crds()
        found.namespace(NAMESPACE)
        yield found


def operator(server: ApiServer, folder: Path, number: int = 0) -> OperatorProcess:
    name = f"operator-{number}"
    return OperatorProcess(server, folder, token=name, identity=name)


def populate(cluster: Cluster) -> None:
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("LoRAAdapter", "tuned", adapter_spec("base"))
    spec = deployment_spec("base", {"v0": 90, "v1": 10}, {"v1": "tuned"})
    cluster.apply("ModelDeployment", "m", spec)
    cluster.apply("ModelDeployment", "own", {**spec, "serving": {"replicas": 2}})


def outcome(cluster: Cluster) -> Object:
    """Everything the operator made and said, without what differs between any two runs."""
    found: Object = {}
    for root, plurals in PLACES:
        for plural in plurals:
            items = cluster.api.request("GET", f"{root}/namespaces/{cluster.namespace}/{plural}")["items"]
            for item in items:
                labels = item["metadata"].get("labels", {})
                if labels.get(names.LABEL_MANAGED_BY) != names.MANAGED_BY:
                    continue
                content = {k: v for k, v in item.items() if k not in ("metadata", "status", "spec")}
                found[f"{plural}/{item['metadata']['name']}"] = {**content, "labels": labels}
    for kind, name in (
        ("BaseModel", "base"),
        ("LoRAAdapter", "tuned"),
        ("ModelDeployment", "m"),
        ("ModelDeployment", "own"),
    ):
        status = cluster.status(kind, name)
        conditions = {c["type"]: (c["status"], c["reason"]) for c in status.pop("conditions", [])}
        found[f"{kind}/{name}"] = {**status, "conditions": conditions}
    return _named_alike(found, cluster.namespace)


def _named_alike(found: Object, namespace: str) -> Object:
    """Keys are derived from the namespace, and model names hold it."""
    for name, content in found.items():
        if name.startswith("secrets/"):
            content["data"] = sorted(content["data"])
        if content.get("subjects"):
            content["subjects"] = [
                {**s, "namespace": s["namespace"].replace(namespace, "ns")} for s in content["subjects"]
            ]
        if "modelName" in content:
            content["modelName"] = content["modelName"].replace(namespace, "ns")
    return found


def writes_in(server: ApiServer, namespace: str) -> int:
    return sum(1 for e in server.writes("operator-") if f"/namespaces/{namespace}/" in e["requestURI"])


def settled(server: ApiServer, cluster: Cluster, *processes: OperatorProcess) -> Object:
    """The outcome once one of the processes has looked at everything, and nothing has been written for a while."""

    def said() -> bool:
        pairs = (("BaseModel", "base"), ("LoRAAdapter", "tuned"), ("ModelDeployment", "m"), ("ModelDeployment", "own"))
        objects = [cluster.get(*pair) for pair in pairs]
        return all((o.get("status") or {}).get("observedGeneration") == o["metadata"]["generation"] for o in objects)

    eventually(lambda: any(p.metric("tuneyard_reconcile_passes_total") >= 4 for p in processes), "somebody works")
    eventually(said, "every object has a status")
    last = ((-1.0, -1.0), time.monotonic())

    def still() -> bool:
        nonlocal last
        passes = sum(p.metric("tuneyard_reconcile_passes_total") for p in processes)
        seen = (passes, float(writes_in(server, cluster.namespace)))
        if seen != last[0]:
            last = (seen, time.monotonic())
        return time.monotonic() - last[1] > 1.5

    eventually(still, "nothing is looked at or written any more")
    return outcome(cluster)


def test_an_operator_killed_after_any_write_is_continued_by_the_next(server: ApiServer, tmp_path: Path) -> None:
    whole = Cluster(server, "whole")
    with operator(server, tmp_path / "whole") as process:
        populate(whole)
        expected = settled(server, whole, process)
    assert expected["deployments/base-pool"]
    for writes in (1, 2, 4, 7, 11, 16, 22):
        cluster = Cluster(server, f"killed-{writes}")
        killed = operator(server, tmp_path / cluster.namespace)
        populate(cluster)
        with killed:
            eventually(lambda c=cluster, w=writes: writes_in(server, c.namespace) >= w, f"{writes} writes")  # type: ignore[misc]
        with operator(server, tmp_path / cluster.namespace) as process:
            assert settled(server, cluster, process) == expected, f"after {writes} writes"


def test_a_new_operator_finds_nothing_to_do_but_its_secrets(server: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(server, "again")
    with operator(server, tmp_path) as first:
        populate(cluster)
        before = settled(server, cluster, first)
    count = writes_in(server, cluster.namespace)
    with operator(server, tmp_path) as second:
        assert settled(server, cluster, second) == before
    entries = [e for e in server.writes("operator-0") if f"/namespaces/{cluster.namespace}/" in e["requestURI"]]
    assert all("/secrets/" in e["requestURI"] for e in entries[count:]), entries[count:]


def test_another_replica_takes_over_within_twenty_seconds_of_a_crash(server: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(server, "crash")
    with all_of(operator(server, tmp_path, n) for n in range(2)) as both:
        leader, follower = _roles(both)
        populate(cluster)
        settled(server, cluster, leader)
        leader.kill()
        died = time.monotonic()
        cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 50, "v1": 50}, {"v1": "tuned"}))
        eventually(lambda: cluster.status("ModelDeployment", "m")["observedGeneration"] == 2, "the edit is seen", 30)
        assert time.monotonic() - died <= 20
        assert follower.metric("tuneyard_leader") == 1


def test_a_leader_that_ends_in_order_is_followed_at_once(server: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(server, "rolling")
    with all_of(operator(server, tmp_path, n) for n in range(2)) as both:
        leader, _ = _roles(both)
        populate(cluster)
        settled(server, cluster, leader)
        assert leader.terminate() == 0
        ended = time.monotonic()
        cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 50, "v1": 50}, {"v1": "tuned"}))
        eventually(lambda: cluster.status("ModelDeployment", "m")["observedGeneration"] == 2, "the edit is seen", 15)
        assert time.monotonic() - ended <= 8


@pytest.mark.slow
def test_a_leader_that_was_paused_writes_nothing_when_it_wakes(server: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(server, "paused")
    with all_of(operator(server, tmp_path, n) for n in range(2)) as both:
        leader, follower = _roles(both)
        populate(cluster)
        settled(server, cluster, leader)
        assert leader.process is not None
        leader.process.send_signal(signal.SIGSTOP)
        eventually(lambda: follower.metric("tuneyard_leader") == 1, "the other one leads", 40)
        cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 50, "v1": 50}, {"v1": "tuned"}))
        eventually(lambda: cluster.status("ModelDeployment", "m")["observedGeneration"] == 2, "the edit is seen")
        mine = "operator-0" if leader is both[0] else "operator-1"
        before = len(server.writes(mine))
        leader.process.send_signal(signal.SIGCONT)
        assert leader.process.wait(30) == 1
        assert server.writes(mine)[before:] == []


def _roles(both: list[OperatorProcess]) -> tuple[OperatorProcess, OperatorProcess]:
    """The one that leads, and the one that does not."""
    leader = eventually(lambda: next((o for o in both if o.metric("tuneyard_leader") == 1), None), "one leads")
    other = next(o for o in both if o is not leader)
    eventually(lambda: other.ask("/readyz")[0] == 200, "the other one is ready to")
    assert other.metric("tuneyard_leader") == 0
    return leader, other


@pytest.mark.parametrize("seconds", [4, pytest.param(14, marks=pytest.mark.slow)])
def test_an_outage_of_the_api_server_is_ridden_out(server: ApiServer, tmp_path: Path, seconds: int) -> None:
    """Longer than the lease allows, the leader ends, as it must, and is started again like any container."""
    cluster = Cluster(server, "outage")
    with operator(server, tmp_path) as process:
        populate(cluster)
        settled(server, cluster, process)
        server.stop()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and process.running():
            assert process.ask("/healthz")[0] in (200, 0)
            time.sleep(0.2)
        assert process.running() == (seconds < 10)
        if not process.running():
            process.start()
        time.sleep(max(0.0, ends - time.monotonic()))
        server.start()
        edit = deployment_spec("base", {"v0": 50, "v1": 50}, {"v1": "tuned"})
        cluster.apply("ModelDeployment", "m", edit)
        eventually(lambda: cluster.status("ModelDeployment", "m")["observedGeneration"] == 2, "the edit is seen", 30)
        assert process.running()
        assert process.ask("/healthz")[0] == 200


def test_two_candidates_never_hold_the_lease_at_once_and_a_crash_is_waited_out(server: ApiServer) -> None:
    stopping = threading.Event()
    first = LeaderLease(server.api(), NAMESPACE, "test", "first")
    second = LeaderLease(server.api(), NAMESPACE, "test", "second")
    assert first.acquire(stopping)
    taken: list[float] = []

    def wait() -> None:
        if second.acquire(stopping):
            taken.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        last = time.monotonic()
        deadline = last + 2 * DURATION
        # the first never renews again, as if its process had been killed
        while not taken and time.monotonic() < deadline:
            assert not (first.holds() and second.holds())
            time.sleep(0.05)
        assert taken and DURATION - 1 <= taken[0] - last <= 20
        assert second.term == first.term + 1
        second.release()
        assert not second.holds()
        assert first.acquire(stopping), "a lease that was given up is free at once"
    finally:
        stopping.set()
        waiting.join(10)
