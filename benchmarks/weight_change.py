"""How long after a weight edit all gateways serve it, and whether a request notices.

A real API server, two gateways (real processes, real Envoys) and two fake engines. Streaming clients run all the while.
Each edit is a PATCH of spec.traffic; it counts from before it is sent until every gateway reports that its Envoy has
acknowledged the weights (what status.traffic[].verified rests on). Edits alternate between none and all, so that the
very next request through each gateway proves it. At the end 10,000 requests at 90/10 show how exact the split is.

Then a short run on a whole cluster with real engines: edits of a canary, each until the operator's status says that
every gateway serves it, and the next answer proves it.

python -m benchmarks.weight_change [--without-cluster]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from math import sqrt
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.report import percentile, write
from demo.kubectl import ready
from demo.session import session
from demo.system import MODELS_NAMESPACE, System
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team
from tests.e2e.world import MODEL, QUICKSTART, SHORT, deployment, rows
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Summary, Traffic
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE, Api, connect

EDITS = 100
REAL_EDITS = 20
PAUSE = 0.1
SPLIT_REQUESTS = 10_000
SPLIT = 0.1
STREAM = {"chunks": 20, "delay": 0.05}
RATE = 15.0
"""Streams per second and gateway: some fifteen run at any moment."""


async def _applied(gateway: GatewayProcess, key: str, generation: int) -> float:
    """When the gateway reported that generation."""
    await gateway.serves(key, lambda found: found.generation >= generation, within=30)
    return time.perf_counter()


async def _edit(gateways: list[GatewayProcess], team: Team, key: str, generation: int, v2: int) -> float:
    """Seconds from before the edit until every gateway has applied it."""
    waiting = [asyncio.create_task(_applied(g, key, generation)) for g in gateways]
    begin = time.perf_counter()
    edited = await asyncio.to_thread(team.set_traffic, "support", v1=100 - v2, v2=v2)
    if edited["metadata"]["generation"] != generation:
        raise SystemExit(f"generation {edited['metadata']['generation']} came instead of {generation}")
    ends = await asyncio.gather(*waiting)
    for gateway in gateways:
        _, headers, _ = await gateway.rig.post({"model": "support"})
        if v2 in (0, 100) and headers.get("x-revision") != ("v2" if v2 else "v1"):
            raise SystemExit(f"{gateway.name} reported {v2} % of v2 but answered with {headers.get('x-revision')}")
    return max(ends) - begin


async def _split(gateways: list[GatewayProcess], count: int) -> Counter[str]:
    """Answers per revision over `count` requests."""

    async def some(gateway: GatewayProcess, number: int) -> Counter[str]:
        told: Counter[str] = Counter()
        for _ in range(number):
            status, headers, _ = await gateway.rig.post(b'{"model":"support"}')
            told[headers.get("x-revision", f"status {status}")] += 1
        return told

    clients = [some(gateway, count // (10 * len(gateways))) for gateway in gateways for _ in range(10)]
    return sum(await asyncio.gather(*clients), Counter())


async def _run(server: ApiServer, folder: Path) -> tuple[list[float], list[Summary], Counter[str]]:
    team = Team(server, "weight-change")
    team.make_base()
    async with AsyncExitStack() as stack:
        pods = [await stack.enter_async_context(Upstream(name)) for name in ("pod-a", "pod-b")]
        for adapter in ("v1", "v2"):
            team.make_adapter(adapter)
        for pod in pods:
            team.make_pod(pod, "v1", "v2")
        team.make_deployment("support", {"v1": 100, "v2": 0})
        gateways = [
            await stack.enter_async_context(GatewayProcess(server, folder, name=name))
            for name in ("gateway-0", "gateway-1")
        ]
        key = f"{team.namespace}/support"
        for gateway in gateways:
            await gateway.applies(key, {"v1": 100, "v2": 0})
        load = Load(["support"], rate=RATE, streaming=1.0, body=STREAM)
        async with AsyncExitStack() as running:
            traffics = [await running.enter_async_context(Traffic(g.url, load)) for g in gateways]
            await traffics[0].wait_for(10)
            times = []
            for number in range(EDITS):
                times.append(await _edit(gateways, team, key, number + 2, 0 if number % 2 else 100))
                await asyncio.sleep(PAUSE)
            await traffics[0].wait_for(10)
        await _edit(gateways, team, key, EDITS + 2, round(SPLIT * 100))
        return times, [t.summary() for t in traffics], await _split(gateways, SPLIT_REQUESTS)


def _settled(api: Api, path: str, generation: int) -> float:
    """When the status says that every gateway serves what this generation asks for."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        seen = api.request("GET", path)
        targets = rows(seen).values()
        if seen["status"].get("observedGeneration") == generation and all(
            t.get("verified") and t["weight"] == t["specWeight"] for t in targets
        ):
            return time.perf_counter()
        time.sleep(0.005)
    raise SystemExit(f"generation {generation} was not served within 30 s")


def _real_edit(api: Api, path: str, v2: int) -> float:
    targets = [{"revision": "v1", "weight": 100 - v2}, {"revision": "v2", "weight": v2}]
    begin = time.perf_counter()
    edited = api.request("PATCH", path, body={"spec": {"traffic": targets}}, content_type=MERGE)
    return _settled(api, path, edited["metadata"]["generation"]) - begin


async def _who_answers(url: str) -> str | None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/chat/completions", json={"model": MODEL, **SHORT}) as response,
    ):
        return response.headers.get("x-revision")


async def _real(system: System) -> tuple[list[float], Summary]:
    """Edits of the quickstart's canary, under streaming traffic."""
    for name in ("base.yaml", "adapters.yaml"):
        system.kubectl.apply(QUICKSTART / name, MODELS_NAMESPACE)
    system.kubectl.apply(deployment({"v1": 100}), MODELS_NAMESPACE)
    system.kubectl.wait_for("mdep", MODEL, ready, namespace=MODELS_NAMESPACE, timeout=900)
    os.environ["KUBECONFIG"] = str(system.provider.kubeconfig())
    api = connect()
    path = f"/apis/{names.API_VERSION}/namespaces/{MODELS_NAMESPACE}/modeldeployments/{MODEL}"
    times = []
    load = Load([MODEL], rate=1.0, streaming=1.0, body={**SHORT, "max_tokens": 12})
    async with Traffic(system.gateway, load) as traffic:
        await traffic.wait_for(3)
        for number in range(REAL_EDITS):
            v2 = 0 if number % 2 else 100
            times.append(await asyncio.to_thread(_real_edit, api, path, v2))
            answered = await _who_answers(system.gateway)
            if answered != ("v2" if v2 else "v1"):
                raise SystemExit(f"the status said {v2} % of v2 but {answered} answered")
        await traffic.wait_for(3)
    return times, traffic.summary()


def main(arguments: list[str]) -> int:
    """Measure, write and print; fails when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_change", description=__doc__)
    parser.add_argument("--without-cluster", action="store_true", help="leave the run on real engines out")
    given = parser.parse_args(arguments)
    with ApiServer() as server, tempfile.TemporaryDirectory(prefix="weight-change-") as folder:
        server.install_crds()
        times, summaries, split = asyncio.run(_run(server, Path(folder)))
    real: list[float] = []
    if not given.without_cluster:
        with session() as system:
            real, summary = asyncio.run(_real(system))
            summaries.append(summary)
    lost = sum(s.failed + s.cut + s.skipped for s in summaries)
    count = split.total()
    sigmas = abs(split["v2"] - count * SPLIT) / sqrt(count * SPLIT * (1 - SPLIT))
    figures: dict[str, Any] = {
        "p50_seconds": percentile(times, 0.5),
        "p99_seconds": percentile(times, 0.99),
        "failed_requests": lost + count - split["v1"] - split["v2"],
        "split_sigmas": sigmas,
        "requests": sum(s.requests for s in summaries) + count,
    }
    units = {"p50_seconds": "s", "p99_seconds": "s", "failed_requests": "", "split_sigmas": "sigma", "requests": ""}
    spread = {"p50_seconds": f"{min(times):.3f} to {max(times):.3f}"}
    targets = {"p50_seconds": "<= 0.1", "p99_seconds": "<= 0.5", "failed_requests": "0", "split_sigmas": "<= 3"}
    if real:
        targets |= {"real_p50_seconds": "<= 0.1", "real_max_seconds": "<= 0.5"}
        figures |= {"real_p50_seconds": percentile(real, 0.5), "real_max_seconds": max(real)}
        units |= {"real_p50_seconds": "s", "real_max_seconds": "s"}
        spread["real_p50_seconds"] = f"{min(real):.3f} to {max(real):.3f}"
    code = write(
        "weight_change",
        figures,
        units,
        targets=targets,
        spread=spread,
        note=f"{EDITS} edits under streaming load, 2 gateways, fake engines, real API server and Envoy; "
        f"split over {count} requests: {dict(split)}. real_*: {len(real)} edits on a cluster with real engines, until "
        "the operator's status says that every gateway serves the weights.",
    )
    for summary in summaries:
        print(summary)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
