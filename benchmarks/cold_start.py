"""A pool without pods is asked by many clients at once: whether all are served, and how soon after its first pod is
there.

Operator, gateway, Envoy, API server, clients and a pod's engine, which answers at once, are processes of their own; the
pod comes `--start` seconds after it is wanted. What is measured is what the gateway adds: from the moment at which the
pod's report is written to the API server to the last answer's end.

python -m benchmarks.cold_start [--held N] [--start SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import body_of, once, request_of, upstream
from benchmarks.processes import beside
from benchmarks.report import write
from tests.contract.apiserver import ApiServer
from tests.contract.coldpool import ColdPool
from tests.contract.operator_process import NAMESPACE
from tests.contract.ports import free_port

HELD_SECONDS = 90
"""How long a request may wait."""


@dataclass(frozen=True)
class Seen:
    """Seconds, but for the counts."""

    after_ready: list[float]
    lost: int
    woken: float
    """From the first request to the wish for a pod."""
    signals: int
    """Versions of the gateway's report on demand until that."""


def _told(path: Path) -> Any:
    """What the clients have written."""
    deadline = time.monotonic() + HELD_SECONDS + 10
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the clients do not say what they got")
        time.sleep(0.2)
    return json.loads(path.read_text())


async def _run(given: argparse.Namespace, folder: Path, server: ApiServer, engine: int) -> Seen:
    limits = {"maxHeld": given.held, "holdTimeout": f"{HELD_SECONDS}s"}
    async with ColdPool(server, folder, cold_start=limits, address=f"127.0.0.1:{engine}") as world:
        await world.asleep()
        world.starts.clear()
        before, began = (await world.gateway.demand()).version, time.perf_counter()
        request, told = request_of(body_of(world.key(), 1024)), folder / "clients.json"
        with beside(once, world.gateway.rig.port, request, given.held, float(HELD_SECONDS), told):
            await world.until(lambda: world.wanted == 1, "a pod is wanted")
            woken = time.perf_counter() - began
            await world.holds(given.held)
            signals = (await world.gateway.demand()).version - before
            # the pod's start, which is somebody else's to make short
            await asyncio.sleep(given.start)
            world.starts.set()
            answers = await asyncio.to_thread(_told, told)
        # both clocks are the machine's
        ready = world.reported + time.perf_counter() - time.monotonic()
    return Seen([end - ready for end in answers["ends"]], answers["errors"], woken, signals)


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures; the exit code tells whether a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--start", type=float, default=5.0)
    given = parser.parse_args(arguments)
    engine = free_port()
    with tempfile.TemporaryDirectory(prefix="cold-start-") as folder, ApiServer() as server, upstream(engine):
        server.install_crds()
        server.namespace(NAMESPACE)
        seen = asyncio.run(_run(given, Path(folder), server, engine))
    seconds = {
        "served_after_ready_seconds": max(seen.after_ready),
        "served_after_ready_seconds_p50": statistics.median(seen.after_ready),
        "first_after_ready_seconds": min(seen.after_ready),
        "woken_seconds": seen.woken,
    }
    return write(
        "cold_start",
        {"lost": seen.lost, **seconds, "signals": seen.signals},
        dict.fromkeys(seconds, "s"),
        targets={"lost": "0", "served_after_ready_seconds": "<= 0.1"},
        note=f"{given.held} requests held at one gateway; its pod serves {given.start:.0f} s after they asked",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
