"""How long a change of a key or a policy takes with 1,000 models and 10,000 keys, and what a gateway's pod needs then.

A real API server with 1,000 ModelDeployments and 1,000 tenants of ten keys each, the gateway process and its Envoy. A
change counts from before it is sent to the API server until a request through Envoy is answered accordingly: a new key
is let in, a revoked one is refused, a policy allows a model, or does not any more. Requests follow on each other: what
is measured holds at most one of them too much.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.api.names import LABEL_TENANT
from tuneyard.systems.kube.client import MERGE

MODELS, TENANTS, KEYS_EACH = 1000, 1000, 10
CHANGES = 50
"""Of each kind."""
MODEL = "model-7"

Json = dict[str, Any]


def _encoded(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def _key() -> str:
    return f"sk-{secrets.token_hex(24)}"


class World:
    """Models, and tenants in a namespace of their own."""

    def __init__(self, team: Team) -> None:
        self._team = team
        tenants = names.tenants_namespace(team.namespace)
        team.api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": tenants}})
        self._where = f"/api/v1/namespaces/{tenants}"

    def fill(self) -> None:
        """Models and tenants, by several hands."""
        with ThreadPoolExecutor(16) as hands:
            list(hands.map(self._model, range(MODELS)))
            list(hands.map(self._tenant, range(TENANTS)))

    def _model(self, number: int) -> None:
        self._team.make_deployment(f"model-{number}", {"v1": 100})

    def _tenant(self, number: int) -> None:
        keys = {f"key-{each}": _encoded(_key()) for each in range(KEYS_EACH)}
        models = f"model-{number}, model-{number}-*"
        for plural, data in (("secrets", keys), ("configmaps", {"models": models})):
            metadata = {"name": f"tenant-{number}", "labels": {LABEL_TENANT: f"tenant-{number}"}}
            self._team.api.request("POST", f"{self._where}/{plural}", body={"metadata": metadata, "data": data})

    def change(self, plural: str, number: int, data: Json) -> None:
        """Patch the data of a tenant's Secret or policy."""
        path = f"{self._where}/{plural}/tenant-{number}"
        self._team.api.request("PATCH", path, body={"data": data}, content_type=MERGE)


async def _until(gateway: GatewayProcess, key: str, expected: int, change: Callable[[], None]) -> float:
    """Seconds from before the change until a request is answered so."""
    headers = {"authorization": f"Bearer {key}"}
    begin = time.perf_counter()
    changing = asyncio.create_task(asyncio.to_thread(change))
    while (await gateway.rig.post({"model": MODEL}, headers=headers))[0] != expected:
        if time.perf_counter() - begin > 30:
            raise SystemExit(f"a change was not in force within 30 s: {expected} was expected")
    took = time.perf_counter() - begin
    await changing
    return took


async def _changes(gateway: GatewayProcess, world: World) -> dict[str, list[float]]:
    """Times by what is changed. The tenant of the model changes its own key; others change theirs meanwhile too."""
    times: dict[str, list[float]] = {"key added": [], "key revoked": [], "policy narrowed": [], "policy widened": []}
    number = int(MODEL.removeprefix("model-"))
    for _ in range(CHANGES):
        key = _key()
        steps: Iterable[tuple[str, int, str, Json]] = (
            ("key added", 200, "secrets", {"probe": _encoded(key)}),
            ("policy narrowed", 404, "configmaps", {"models": "another"}),
            ("policy widened", 200, "configmaps", {"models": MODEL}),
            ("key revoked", 401, "secrets", {"probe": None}),
        )
        for kind, expected, plural, data in steps:
            times[kind].append(
                await _until(gateway, key, expected, lambda p=plural, d=data: world.change(p, number, d))  # type: ignore[misc]
            )
            await asyncio.sleep(0.02)
    return times


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def _run(server: ApiServer, folder: Path) -> tuple[dict[str, list[float]], float, float, float]:
    """Times of changes, seconds of the start, megabytes of the process and of Envoy."""
    team = Team(server, "gateway-scale")
    team.make_base()
    team.make_adapter("v1")
    world = World(team)
    async with Upstream("pod-a", keep=1) as pod:
        team.make_pod(pod, "v1")
        await asyncio.to_thread(world.fill)
        settings = {"watchNamespaces": [team.namespace], "tuneyardNamespace": team.namespace}
        begin = time.perf_counter()
        async with GatewayProcess(server, folder, settings=settings, keys=True) as gateway:
            await gateway.ready(within=120)
            started = time.perf_counter() - begin
            times = await _changes(gateway, world)
            assert gateway.process is not None
            return times, started, _rss_mb(gateway.process.pid), _rss_mb(gateway.rig.envoy.pid)


def main() -> int:
    """Measure, write and print."""
    with tempfile.TemporaryDirectory(prefix="gateway-scale-") as folder, ApiServer() as server:
        server.install_crds()
        times, started, process, envoy = asyncio.run(_run(server, Path(folder)))
    every = [took for kind in times.values() for took in kind]
    figures = {
        "change_p99_seconds": percentile(every, 0.99),
        "change_p50_seconds": percentile(every, 0.5),
        "gateway_rss_mb": process + envoy,
        "process_rss_mb": process,
        "envoy_rss_mb": envoy,
        "start_seconds": started,
    }
    return write(
        "gateway_scale",
        figures,
        {name: "MB" if name.endswith("mb") else "s" for name in figures},
        targets={"change_p99_seconds": "<= 0.05", "gateway_rss_mb": "<= 600"},
        spread={"change_p99_seconds": f"{min(every):.4f} to {max(every):.4f}"},
        note=f"{MODELS} models, {TENANTS * KEYS_EACH} keys of {TENANTS} tenants; {len(every)} changes, from before the "
        "write to the API server until Envoy answers accordingly. Medians (ms): "
        + ", ".join(f"{kind} {percentile(took, 0.5) * 1000:.1f}" for kind, took in times.items()),
    )


if __name__ == "__main__":
    sys.exit(main())
