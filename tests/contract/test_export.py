"""`tuneyard export httproute` as a user runs it, and a real API server that takes what it writes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.operator_process import Cluster
from tests.contract.test_status import put
from tests.unit.cli import world
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource

pytestmark = pytest.mark.apiserver


@pytest.fixture
def cluster(gateway_api: ApiServer) -> Cluster:
    """The canary of the unit tests, whose revisions a header may choose."""
    cluster = Cluster(gateway_api, gateway_api.fresh_namespace("export"))
    for name in (world.V1, world.V2):
        whole = world.adapter(name).to_dict()
        whole["status"]["digest"] = world.DIGEST
        put(cluster, "LoRAAdapter", LoRAAdapterResource.from_dict(whole))
    whole = world.deployment(ready=True).to_dict()
    whole["spec"]["routing"] = {"allowRevisionHeader": True}
    put(cluster, "ModelDeployment", ModelDeploymentResource.from_dict(whole))
    return cluster


def export(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(server.kubeconfig())}
    command = [sys.executable, "-m", "tuneyard", "export", "httproute", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_route_is_taken(cluster: Cluster, gateway_api: ApiServer) -> None:
    at = ("-n", cluster.namespace, "--parent", "edge/public", "--hostname", "models.example.com")
    written = export(gateway_api, "acme-support", *at)
    assert written.returncode == 0, written.stderr
    assert "weights are those of now" in written.stderr
    assert "go stale" in written.stdout
    taken = gateway_api.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=written.stdout)
    assert taken.returncode == 0, taken.stderr
    assert "arning" not in taken.stderr, taken.stderr
    shown = gateway_api.kubectl("get", "httproute", "acme-support", "-n", cluster.namespace, "-o", "yaml")
    (rule,) = yaml.safe_load(shown.stdout)["spec"]["rules"]
    assert [b["weight"] for b in rule["backendRefs"]] == [90, 10]


def test_what_cannot_be_split_by_a_route_is_one_line(cluster: Cluster, gateway_api: ApiServer) -> None:
    refused = export(gateway_api, "acme-support", "-n", cluster.namespace, "--parent", "public", "--to", "pools")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("tuneyard: engines know the revisions by different names")
    assert refused.stderr.count("\n") == 1
