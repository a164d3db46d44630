"""What the whole way through Tuneyard adds to a request: gateway's chain and pod's front, log and counting on.

Four ways to one upstream, in turn, so that a slow moment of the machine hits all: directly; through an Envoy that does
nothing but pass on; through a pod's front; through gateway and front. One worker each; client, upstream and both Envoys
share the machine's cores.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import load
from benchmarks.report import write
from tests.contract.envoy import Envoy, Front, Rig, free_port, model, revision
from tuneyard.systems.envoy.documents import EXTENSIONS, Json, extension, pipe, static_cluster, tcp

ROUNDS = 5
SECONDS = 2.0


def _passing_on(port: int, upstream: int, admin: Path) -> Json:
    """A proxy without any of our filters, as a yardstick."""
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


async def _measure(ports: dict[str, int], request: bytes) -> dict[str, list[tuple[float, float, float]]]:
    """Per way and round: median at one connection (ms), requests per second and median (ms) at 32."""
    results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ports}
    for number in range(ROUNDS + 1):
        for way, port in ports.items():
            one = await asyncio.to_thread(load.measure, port, request, connections=1, seconds=SECONDS / 2)
            many = await asyncio.to_thread(load.measure, port, request, connections=32, seconds=SECONDS)
            if one.errors or many.errors:
                raise SystemExit(f"{way}: {one.errors + many.errors} answers were not 200")
            if number:  # the first round warms up
                results[way].append((one.quantile(0.5), many.per_second, many.quantile(0.5)))
    return results


async def _run(folder: Path) -> dict[str, list[tuple[float, float, float]]]:
    port, bare_port = free_port(), free_port()
    bare = Envoy(_passing_on(bare_port, port, folder / "bare-admin.sock"), folder, "bare")
    with load.upstream(port):
        async with Front(folder, port) as front, Rig(folder) as rig:
            pods = [front.address]
            await rig.serve(model("support", revision("v1", 90, pods), revision("v2", 10, pods)))
            bare.start()
            await bare.ready()
            try:
                ways = {"direct": port, "bare Envoy": bare_port, "front": front.port, "gateway + front": rig.port}
                return await _measure(ways, load.request_of(load.body_of("support", 1024)))
            finally:
                bare.stop()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gateway-overhead-") as folder:
        results = asyncio.run(_run(Path(folder)))
    medians = {
        way: tuple(statistics.median(r[column] for r in rounds) for column in range(3))
        for way, rounds in results.items()
    }
    for way, (one, rate, many) in medians.items():
        print(f"{way:16} p50 at 1: {one:.3f} ms   at 32: {rate:8.0f} requests/s, p50 {many:.2f} ms")
    added = [f[0] - d[0] for f, d in zip(results["gateway + front"], results["direct"], strict=True)]
    rates = [r[1] for r in results["gateway + front"]]
    figures = {
        "added_ms_p50_1kb": statistics.median(added),
        "requests_per_second_1kb": statistics.median(rates),
        "front_added_ms_p50_1kb": medians["front"][0] - medians["direct"][0],
        "direct_ms_p50_1kb": medians["direct"][0],
        "direct_requests_per_second_1kb": medians["direct"][1],
        "bare_envoy_added_ms_p50_1kb": medians["bare Envoy"][0] - medians["direct"][0],
        "bare_envoy_requests_per_second_1kb": medians["bare Envoy"][1],
    }
    write(
        "gateway_overhead",
        figures,
        {key: "requests/s" if "per_second" in key else "ms" for key in figures},
        targets={"added_ms_p50_1kb": "<= 0.25", "requests_per_second_1kb": ">= 8000"},
        spread={
            "added_ms_p50_1kb": f"{min(added):.3f} to {max(added):.3f}",
            "requests_per_second_1kb": f"{min(rates):.0f} to {max(rates):.0f}",
        },
        note="1 KB body; one worker per Envoy; client, upstream and Envoys share the cores; medians of "
        f"{ROUNDS} rounds in turn. bare_envoy: an Envoy that only passes on, as yardstick.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
