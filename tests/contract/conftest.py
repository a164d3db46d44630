"""Servers, and what stands before them, that several contract tests share; each is started when first asked for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

# before anything imports gRPC; see benchmarks/__init__.py
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
import yaml

from cluster.gobuild import module_files
from tests.contract.apiserver import ApiServer
from tests.contract.chart import install
from tests.contract.gateway_process import GatewayProcess, Team
from tests.contract.operator_process import NAMESPACE

_numbers = count()


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """A real kube-apiserver with the three kinds; tests share it, so each uses namespaces of its own."""
    with ApiServer() as server:
        server.install_crds()
        yield server


@pytest.fixture(scope="module")
def operator_apiserver() -> Iterator[ApiServer]:
    """One of the module's own: its operator looks at all namespaces, and what is written there may be counted."""
    with ApiServer() as server:
        server.install_crds()
        server.namespace(NAMESPACE)
        yield server


@pytest.fixture(scope="session")
def gateway_api(apiserver: ApiServer) -> ApiServer:
    """An API server that knows the Gateway API, with its own admission rules."""
    crds = module_files("gateway-api", "sigs.k8s.io/gateway-api") / "config" / "crd" / "standard"
    files = [obj for file in sorted(crds.glob("*.yaml")) for obj in yaml.safe_load_all(file.read_text()) if obj]
    install(apiserver, files)
    done = apiserver.kubectl("wait", "--for=condition=Established", "crd/httproutes.gateway.networking.k8s.io")
    assert done.returncode == 0, done.stderr
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    namespace = {"name": NAMESPACE, "labels": labels}
    install(apiserver, [{"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}])
    return apiserver


@pytest.fixture
def team(apiserver: ApiServer, request: pytest.FixtureRequest) -> Iterator[Team]:
    """A namespace of its own, also when a test runs again, with the base `tiny`."""
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    team = Team(apiserver, f"{module}-{next(_numbers)}")
    team.make_base()
    yield team
    team.clear()


@pytest.fixture
async def gateway(apiserver: ApiServer, team: Team, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """One that looks at the team's namespace."""
    async with GatewayProcess(apiserver, tmp_path, settings={"watchNamespaces": [team.namespace]}) as running:
        yield running
