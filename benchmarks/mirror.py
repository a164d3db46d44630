"""What a mirror at 100 % costs the users' requests: with a candidate that hangs, with one that answers, and without.

Three models on one gateway's Envoy, in turn, so that a slow moment of the machine hits all. Paced: RATE requests a
second one after the other, more than engines answer; and as fast as one connection can, where the process that takes
copies uses a core of its own and Envoy drops what it does not take. Client, upstreams, Envoy and that process share
the machine's cores.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import uvloop

from benchmarks import load
from benchmarks.processes import beside, cpu_seconds
from benchmarks.report import percentile, write
from tests.contract.envoy import Rig, engine_key, eventually, model, revision
from tests.contract.ports import free_port
from tuneyard.gateway import mirrorserver
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.mirroring import Mirroring
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.shadow import Pods
from tuneyard.planning.mirror import MirrorRoute
from tuneyard.planning.routes import ModelRoutes

ROUNDS = 5
RATE = 200
PACED_SECONDS, FAST_SECONDS = 4.0, 1.5
PLAIN, ANSWERING, HANGING = "plain", "answering", "hanging"
BODY = 1024


def routes_of(primary: int, candidate: int, hanging: int) -> dict[str, ModelRoutes]:
    """v1 answers; v3 is mirrored, or not, on the port that is given."""

    def one(name: str, port: int) -> ModelRoutes:
        pods = revision("v1", 100, [f"127.0.0.1:{primary}"]), revision("v3", 0, [f"127.0.0.1:{port}"])
        mirror = MirrorRoute("v3", 100, 16, active=name != PLAIN)
        return replace(model(name, *pods), mirror=mirror)

    return {PLAIN: one(PLAIN, candidate), ANSWERING: one(ANSWERING, candidate), HANGING: one(HANGING, hanging)}


async def _take_copies(routes: dict[str, ModelRoutes], socket: Path, hanging: int) -> None:
    """The part of the gateway process that takes copies."""

    async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    mirroring = Mirroring("bench", routes.get, engine_key, Pods().ask, MirrorMetrics(Metrics().registry))
    for name in routes:
        mirroring.changed(name)
    await asyncio.start_server(hang, "127.0.0.1", hanging)
    await mirrorserver.serve(mirroring, socket)
    await asyncio.Event().wait()


async def _paced(port: int, request: bytes) -> list[float]:
    """Latencies in ms of requests that begin at fixed times."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    begin = time.perf_counter()
    for number in range(int(RATE * PACED_SECONDS)):
        await asyncio.sleep(begin + number / RATE - time.perf_counter())
        sent = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"port {port}: {head.decode(errors='replace')}")
        at = head.lower().index(b"content-length:") + 15
        await reader.readexactly(int(head[at:].split(b"\r\n", 1)[0]))
        latencies.append((time.perf_counter() - sent) * 1000)
    writer.close()
    return latencies


Rounds = dict[str, list[float]]


async def _run(folder: Path) -> tuple[dict[str, list[list[float]]], Rounds, Rounds]:
    """Per model and round: paced latencies, the median of unpaced ones, Envoy's CPU for one of these in µs."""
    primary, candidate, hanging = free_port(), free_port(), free_port()
    routes = routes_of(primary, candidate, hanging)
    paced: dict[str, list[list[float]]] = {name: [] for name in routes}
    fast: Rounds = {name: [] for name in routes}
    cpu: Rounds = {name: [] for name in routes}
    socket = folder / "mirror.sock"
    with load.upstream(primary), load.upstream(candidate), beside(_take_copies, routes, socket, hanging):
        await eventually(socket.exists, "copies are taken")
        async with Rig(folder) as rig:
            await rig.serve(*routes.values())
            for number in range(ROUNDS + 1):
                for name in routes:
                    request = load.request_of(load.body_of(name, BODY))
                    slow = await asyncio.to_thread(uvloop.run, _paced(rig.port, request))
                    before = cpu_seconds(rig.envoy.pid)
                    quick = await asyncio.to_thread(
                        load.measure, rig.port, request, connections=1, seconds=FAST_SECONDS
                    )
                    used = cpu_seconds(rig.envoy.pid) - before
                    if quick.errors:
                        raise SystemExit(f"{name}: {quick.errors} answers were not 200")
                    if number:  # the first round warms up
                        paced[name].append(slow)
                        fast[name].append(quick.quantile(0.5))
                        cpu[name].append(1e6 * used / len(quick.latencies))
    return paced, fast, cpu


def main() -> int:
    """Measure, write and print."""
    with tempfile.TemporaryDirectory(prefix="mirror-") as folder:
        paced, fast, cpu = asyncio.run(_run(Path(folder)))
    figures: dict[str, float] = {}
    spread: dict[str, str] = {}
    for name in (PLAIN, ANSWERING, HANGING):
        for share in (50, 99):
            values = [percentile(r, share / 100) for r in paced[name]]
            figures[f"{name}_ms_p{share}"] = statistics.median(values)
            spread[f"{name}_ms_p{share}"] = f"{min(values):.3f} to {max(values):.3f}"
        figures[f"{name}_unpaced_ms_p50"] = statistics.median(fast[name])
        figures[f"{name}_envoy_cpu_us"] = statistics.median(cpu[name])
    for name in (ANSWERING, HANGING):
        figures[f"{name}_added_ms_p50"] = figures[f"{name}_ms_p50"] - figures[f"{PLAIN}_ms_p50"]
    return write(
        "mirror",
        figures,
        {name: "us" if name.endswith("_us") else "ms" for name in figures},
        targets={"hanging_added_ms_p50": "<= 0.25"},
        spread=spread,
        note=f"Users' latency at the gateway with every request copied; body of {BODY} bytes, an upstream that answers "
        f"at once; {RATE} requests a second one after the other, medians of {ROUNDS} rounds in turn; one worker.",
    )


if __name__ == "__main__":
    sys.exit(main())
