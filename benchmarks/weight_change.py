"""How long after a weight edit all gateways serve it, and whether a request notices.

A real API server, two gateways (real processes, real Envoys) and two fake engines. Streaming clients run all the while.
Each edit is a PATCH of spec.traffic; it counts from before it is sent until every gateway reports that its Envoy has
acknowledged the weights (what status.traffic[].verified rests on). Edits alternate between none and all, so that the
very next request through each gateway proves it. At the end 10,000 requests at 90/10 show how exact the split is.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Summary, Traffic

EDITS = 100
PAUSE = 0.1
SPLIT_REQUESTS = 10_000
SPLIT = 0.1
STREAM = {"chunks": 20, "delay": 0.05}
RATE = 15.0
"""Streams per second and gateway: some fifteen run at any moment."""


async def _applied(gateway: GatewayProcess, key: str, generation: int) -> float:
    """When the gateway reported that generation."""
    after = -1
    while True:
        report = await gateway.applied(after)
        found = report.deployments.get(key)
        if found is not None and found.generation >= generation:
            return time.perf_counter()
        after = report.version


async def _edit(gateways: list[GatewayProcess], team: Team, key: str, generation: int, v2: int) -> float:
    """Seconds from before the edit until every gateway has applied it."""
    waiting = [asyncio.create_task(_applied(g, key, generation)) for g in gateways]
    begin = time.perf_counter()
    edited = await asyncio.to_thread(team.set_traffic, "support", v1=100 - v2, v2=v2)
    if edited["metadata"]["generation"] != generation:
        raise SystemExit(f"generation {edited['metadata']['generation']} came instead of {generation}")
    async with asyncio.timeout(30):
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


def main() -> int:
    """Measure, write and print; fails when a request failed."""
    with ApiServer() as server, tempfile.TemporaryDirectory(prefix="weight-change-") as folder:
        server.install_crds()
        times, summaries, split = asyncio.run(_run(server, Path(folder)))
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
    write(
        "weight_change",
        figures,
        units,
        targets={
            "p50_seconds": "<= 0.1",
            "p99_seconds": "<= 0.5",
            "failed_requests": "0",
            "split_sigmas": "<= 3",
        },
        spread={"p50_seconds": f"{min(times):.3f} to {max(times):.3f}"},
        note=f"{EDITS} edits under streaming load, 2 gateways, fake engines, real API server and Envoy; "
        f"split over {count} requests: {dict(split)}.",
    )
    for summary in summaries:
        print(summary)
    return 1 if figures["failed_requests"] else 0


if __name__ == "__main__":
    sys.exit(main())
