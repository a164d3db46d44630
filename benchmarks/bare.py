"""An Envoy that only passes on: what a proxy built on Envoy costs at least, on this machine and at this moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contract.envoy import Envoy
from tests.contract.ports import free_port
from tuneyard.systems.envoy.documents import EXTENSIONS, Json, extension, pipe, static_cluster, tcp

BARE = "bare Envoy"


@asynccontextmanager
async def bare_envoy(upstream: int, folder: Path, name: str = "bare") -> AsyncIterator[tuple[int, int]]:
    """One that runs: its port and its process's id; it passes on to a port of this machine."""
    port = free_port()
    envoy = Envoy(_passing_on(port, upstream, folder / f"{name}-admin.sock"), folder, name)
    envoy.start()
    try:
        await envoy.ready()
        yield port, envoy.pid
    finally:
        envoy.stop()


def _passing_on(port: int, upstream: int, admin: Path) -> Json:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}]
    manager = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [extension("router", "filters.http.router.v3.Router")],
    }
    listener = {
        "address": tcp("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": pipe(str(admin))},
        "static_resources": {
            "listeners": [listener],
            "clusters": [static_cluster("upstream", tcp("127.0.0.1", upstream))],
        },
    }
