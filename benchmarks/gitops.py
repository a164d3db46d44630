"""How long after a commit its weights are served, with a real Argo CD that is told to look.

A real API server, Argo CD, operator and two gateways (real processes, real Envoys). Each commit moves all traffic from
one revision to the other; it counts from before `git commit` until every gateway says that its Envoy has acknowledged
the weights. In between: when the API server has the new spec, and when the operator's status says that all is served.
In mode Manual gateways follow the spec by themselves, so the operator's part is beside theirs, not before it.

Looking is asked for by Argo CD's refresh annotation, which a webhook of the Git server sets in the same way; without
either, its poll (3 minutes, unless it is set otherwise) comes before everything here.

python -m benchmarks.gitops
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.report import REPORTED, percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.argocd import TOKEN, ArgoCd
from tests.contract.gateway_process import GatewayProcess
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tests.contract.ports import PODS_ON_LOOPBACK
from tuneyard.api import names

COMMITS = 30
WITHIN = 60.0
DIGESTS = {"one": "sha256:" + "ab" * 32, "two": "sha256:" + "cd" * 32}
ADAPTERS: dict[str, str | None] = {"v1": "one", "v2": "two"}
APPLICATION = "models"


def _manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _deployment(v2: int) -> dict[str, Any]:
    return _manifest("ModelDeployment", "m", deployment_spec("base", {"v1": 100 - v2, "v2": v2}, ADAPTERS))


def _begin(cluster: Cluster, argo: ArgoCd) -> None:
    """The first sync, and a pod that has both adapters."""
    adapters = [_manifest("LoRAAdapter", n, {**adapter_spec("base"), "digest": d}) for n, d in DIGESTS.items()]
    argo.repository.commit(
        {
            "app/base.yaml": _manifest("BaseModel", "base", BASE_SPEC),
            "app/adapters.yaml": adapters,
            "app/deployment.yaml": _deployment(0),
        }
    )
    policy = {"automated": {"prune": True, "selfHeal": True}}
    argo.create(APPLICATION, cluster.namespace, "app", policy=policy)
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), lambda: f"the pool: {argo.said()}")
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", "sha256:" + "00" * 32)
    # nothing listens there: weights are what is measured, and no request is sent
    cluster.report("pod-0", "base", DIGESTS, address="127.0.0.1:9")


def _synced(server: ApiServer) -> float:
    """When the API server had taken Argo CD's last write of the deployment, from its audit log."""
    written = [w for w in server.writes(TOKEN) if w["objectRef"]["resource"] == "modeldeployments"]
    return datetime.fromisoformat(written[-1]["stageTimestamp"]).timestamp()


def _verified(cluster: Cluster, v2: int) -> float:
    """When the status says that every gateway serves these weights."""

    def told() -> bool:
        found = {t["revision"]: t for t in cluster.status("ModelDeployment", "m")["traffic"]}
        return all(t["verified"] for t in found.values()) and found["v2"]["weight"] == v2

    eventually(told, "the status")
    return time.time()


async def _served(gateway: GatewayProcess, key: str, v2: int) -> float:
    await gateway.serves(key, lambda found: found.weights.get("v2", 0) == v2, within=WITHIN)
    return time.time()


async def _commit(
    cluster: Cluster, argo: ArgoCd, gateways: list[GatewayProcess], v2: int
) -> tuple[float, float, float, float]:
    """Seconds: commit to sync, sync to every gateway, sync to the operator's word, commit to every gateway."""
    key = f"{cluster.namespace}/m"
    serving = [asyncio.create_task(_served(g, key, v2)) for g in gateways]
    verified = asyncio.create_task(asyncio.to_thread(_verified, cluster, v2))
    begin = time.time()
    commit = await asyncio.to_thread(argo.repository.commit, {"app/deployment.yaml": _deployment(v2)})
    await asyncio.to_thread(argo.refresh, APPLICATION, revision=commit)
    async with asyncio.timeout(WITHIN):
        told, live = await verified, max(await asyncio.gather(*serving))
    at_sync = _synced(cluster.server)
    return at_sync - begin, live - at_sync, told - at_sync, live - begin


async def _run(server: ApiServer, folder: Path) -> list[tuple[float, float, float, float]]:
    server.namespace(NAMESPACE)
    cluster = Cluster(server, "gitops")
    gateways = [GatewayProcess(server, folder, name=f"gateway-{n}") for n in range(2)]
    entries = ",".join(g.entry for g in gateways)
    async with AsyncExitStack() as stack:
        argo = stack.enter_context(ArgoCd(server, folder / "argocd"))
        stack.enter_context(OperatorProcess(server, folder / "operator", gateways=entries, prelude=PODS_ON_LOOPBACK))
        await asyncio.to_thread(_begin, cluster, argo)
        for gateway in gateways:
            await stack.enter_async_context(gateway)
            await gateway.applies(f"{cluster.namespace}/m", {"v1": 100, "v2": 0})
        await asyncio.to_thread(_verified, cluster, 0)
        return [await _commit(cluster, argo, gateways, 0 if n % 2 else 100) for n in range(COMMITS)]


def main() -> int:
    """Measure and write build/bench/gitops.json."""
    with tempfile.TemporaryDirectory(prefix="gitops-") as folder, ApiServer() as server:
        server.install_crds()
        times = asyncio.run(_run(server, Path(folder)))
    to_sync, to_gateways, to_status, whole = ([t[n] for t in times] for n in range(4))
    figures = {
        "commit_to_live_seconds": percentile(whole, 0.5),
        "commit_to_sync_seconds": percentile(to_sync, 0.5),
        "sync_to_gateways_seconds": percentile(to_gateways, 0.5),
        "sync_to_status_seconds": percentile(to_status, 0.5),
    }
    return write(
        "gitops",
        figures,
        dict.fromkeys(figures, "s"),
        targets={"commit_to_live_seconds": REPORTED},
        spread={"commit_to_live_seconds": f"{min(whole):.2f} to {max(whole):.2f}, {COMMITS} commits"},
        note="Argo CD 3.6.1, refresh asked for right after the commit; medians. Two gateways, mode Manual.",
    )


if __name__ == "__main__":
    sys.exit(main())
