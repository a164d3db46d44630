"""Operator and gateway as real processes, with the tokens, rights and policies of the chart and nothing else.

A right that is missing shows here as work that does not get done, and as a refusal in the process's log.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.chart import install, rendered, token
from tests.contract.fakegateway import MASTER
from tests.contract.operator_process import (
    NAMESPACE,
    Cluster,
    OperatorProcess,
    eventually,
)
from tests.contract.ports import free_port
from tests.contract.test_admission import ACCESS, until_refused
from tuneyard.api import names
from tuneyard.planning.children import KINDS
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE

pytestmark = pytest.mark.apiserver

BASE, ADAPTER = "smollm2", "acme-support-v1"
DIGEST = "sha256:" + "ab" * 32
VOLUME = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
SOURCE = {"volume": {"name": "models", "path": "x"}}

DEPLOYMENT: dict[str, object] = {
    "revisions": [{"name": "v1", "baseModel": BASE, "adapter": ADAPTER}],
    "traffic": [{"revision": "v1", "weight": 100}],
    "rollout": {"mode": "Progressive", "steps": [{"weight": 1}]},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An API server with the chart's accounts, rights and policies in force."""
    with ApiServer() as server:
        server.install_crds()
        server.namespace(NAMESPACE)
        install(server, [o for o in rendered() if o["kind"] in ACCESS or o["kind"].startswith("ValidatingAdmission")])
        cluster = Cluster(server, "tenant")
        operator = server.api(token(cluster.api, NAMESPACE, "tuneyard-operator"))
        probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe", "namespace": "tenant"}}
        until_refused(lambda x: objects.apply(operator, {**probe, "data": {"x": x}}))
        cluster.apply("BaseModel", BASE, {"source": SOURCE, "serving": {"artifactVolumes": [VOLUME]}})
        cache = {"hostPath": {"path": "/var/cache/tuneyard"}, "prewarm": {}}
        cluster.apply(
            "BaseModel", "remote", {"source": {"s3": {"uri": "s3://models/base/"}}, "serving": {"cache": cache}}
        )
        cluster.apply("LoRAAdapter", ADAPTER, {"baseModel": BASE, "source": SOURCE, "digest": DIGEST})
        cluster.apply("ModelDeployment", "acme", DEPLOYMENT)
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator at work with its own token."""
    own = token(cluster.api, NAMESPACE, "tuneyard-operator")
    folder, settings = tmp_path_factory.mktemp("operator"), {"allowedCacheHostPaths": ["/var/cache/tuneyard"]}
    with OperatorProcess(cluster.server, folder, token=own, settings=settings) as process:
        yield process


def refusals(log: str) -> list[str]:
    return [line for line in log.splitlines() if "forbidden" in line.lower() or " 403" in line]


def test_the_operator_does_all_its_work(cluster: Cluster, operator: OperatorProcess) -> None:
    def all_children() -> bool:
        managed = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
        return all(objects.listed(cluster.api, *kind, cluster.namespace, managed) for kind in KINDS)

    eventually(all_children, f"every kind of child: {operator.said()[-2000:]}", within=60)
    cluster.pod("pod-0", BASE)
    cluster.verified("pod-0", DIGEST)
    cluster.report("pod-0", BASE, {ADAPTER: DIGEST})

    def told() -> dict[str, object]:
        """What the status of each kind says; each is written by a pass of its own, in no order."""
        traffic = cluster.status("ModelDeployment", "acme").get("traffic") or [{}]
        return {
            "endpoints": traffic[0].get("readyEndpoints"),
            "digest": cluster.status("BaseModel", BASE).get("digest"),
            "loaded": cluster.status("LoRAAdapter", ADAPTER).get("loaded"),
        }

    whole = {"endpoints": 1, "digest": DIGEST, "loaded": "1/1"}
    eventually(lambda: told() == whole, lambda: f"{told()}: {operator.said()[-2000:]}", within=60)
    eventually(lambda: cluster.child("configmaps/acme-verdicts"), "what outlives the deployment", within=60)
    eventually(lambda: objects.listed(cluster.api, "events.k8s.io/v1", "Event", cluster.namespace), "events")
    cluster.delete("ModelDeployment", "acme")

    def marked() -> bool:
        record = cluster.child("configmaps/acme-verdicts") or {"metadata": {}}
        return names.ANNOTATION_UNUSED_SINCE in (record["metadata"].get("annotations") or {})

    eventually(marked, "what is left of it is marked", within=60)
    where = f"/api/v1/namespaces/{cluster.namespace}/configmaps/acme-verdicts"
    old = {"metadata": {"annotations": {names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"}}}
    cluster.api.request("PATCH", where, body=old, content_type=MERGE)
    eventually(lambda: cluster.child("configmaps/acme-verdicts") is None, "and goes a week later", within=60)
    cluster.apply("ModelDeployment", "acme", DEPLOYMENT)
    lease = objects.get(cluster.api, "coordination.k8s.io/v1", "Lease", NAMESPACE, "tuneyard-operator")
    assert lease
    assert lease["spec"]["holderIdentity"] == "operator-0"
    assert refusals(operator.said()) == []


def test_the_operator_runs_gates(cluster: Cluster, operator: OperatorProcess) -> None:
    """A second revision of the deployment that the test before has left behind, with a gate."""
    cluster.apply("LoRAAdapter", "acme-support-v2", {"baseModel": BASE, "source": SOURCE, "digest": DIGEST})
    cluster.report("pod-0", BASE, {ADAPTER: DIGEST, "acme-support-v2": DIGEST})
    eventually(
        lambda: (cluster.status("ModelDeployment", "acme").get("rollout") or {}).get("stable") == "v1", "v1 first"
    )
    gate = {"name": "speed", "benchmark": {"max": {"ttftP95": "1.1x"}}}
    revisions = [
        {"name": "v1", "baseModel": BASE, "adapter": ADAPTER},
        {"name": "v2", "baseModel": BASE, "adapter": "acme-support-v2"},
    ]
    rollout = {"mode": "Progressive", "steps": [{"weight": 1}], "gates": [gate]}

    def give(v1: int, v2: int) -> None:
        traffic = [{"revision": "v1", "weight": v1}, {"revision": "v2", "weight": v2}]
        cluster.apply("ModelDeployment", "acme", {"revisions": revisions, "traffic": traffic, "rollout": rollout})

    def made() -> set[str]:
        selector = f"{names.LABEL_COMPONENT}={names.GATE}"
        kinds = (("batch/v1", "Job"), ("v1", "Secret"), ("v1", "ConfigMap"))
        return {kind for api, kind in kinds if objects.listed(cluster.api, api, kind, cluster.namespace, selector)}

    give(0, 100)
    whole = {"Job", "Secret", "ConfigMap"}
    eventually(lambda: made() == whole, lambda: f"{made()}: {operator.said()[-2000:]}", within=30)
    give(100, 0)
    eventually(lambda: "Job" not in made(), "nobody waits for it any more", within=30)
    assert refusals(operator.said()) == []


def test_a_gateway_sees_what_it_must(cluster: Cluster, operator: OperatorProcess, tmp_path: Path) -> None:
    eventually(lambda: cluster.child("rbac.authorization.k8s.io/v1:rolebindings/tuneyard-gateway"), "the binding", 60)
    own = token(cluster.api, NAMESPACE, "tuneyard-gateway")
    config, master, log, port = tmp_path / "config.yaml", tmp_path / "master", tmp_path / "log", free_port()
    config.write_text(f"tuneyardNamespace: {NAMESPACE}\n")
    master.write_bytes(MASTER)
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.server.kubeconfig(own)),
        "TUNEYARD_MASTER_FILE": str(master),
        "TUNEYARD_RUN_DIRECTORY": str(tmp_path),
        "TUNEYARD_OBSERVE_PORT": str(port),
        "TUNEYARD_LISTEN": "127.0.0.1",
        "TUNEYARD_DRAIN_DELAY": "0",
        "PYTHONPATH": str(ROOT / "operator"),
    }

    def metrics() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    command = [sys.executable, "-m", "tuneyard", "gateway", "--config", str(config)]
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            eventually(lambda: "serving 1 models" in log.read_text(), "all lists", within=30)
            eventually(lambda: "tuneyard_gateway_models 1.0" in metrics(), "the model", within=10)
        finally:
            process.kill()
    assert refusals(log.read_text()) == []
