"""Servers that several contract tests share; each is started when first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

# before anything imports gRPC; see benchmarks/__init__.py
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import NAMESPACE


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
