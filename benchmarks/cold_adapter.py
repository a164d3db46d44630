"""An adapter that nobody asked for is asked for again: how long its first request takes, and what others notice.

Operator, gateway, Envoy and API server are processes of their own, the pod is a real agent and front before a fake
engine with the real one's rules for adapters; their files are in the pod's cache, as after any idle time.

python -m benchmarks.cold_adapter [--models N] [--together N]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import write
from tests.contract.apiserver import ApiServer
from tests.contract.idling import IdlingWorld
from tests.contract.operator_process import NAMESPACE


@dataclass
class Seen:
    """Seconds, but for the counts."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    together: float = 0.0
    failed: int = 0
    failed_of_others: int = 0
    requests_of_others: int = 0


async def _timed(world: IdlingWorld, model: str, seen: Seen) -> float:
    began = time.monotonic()
    status, _ = await world.ask(model)
    seen.failed += status != 200
    return time.monotonic() - began


async def _run(given: argparse.Namespace, folder: Path, server: ApiServer) -> Seen:
    seen = Seen()
    models = [f"tenant-{number}" for number in range(given.models)]
    async with IdlingWorld(server, folder, models, places=given.models + 1) as world:
        await world.until(lambda: len(world.loaded) == given.models + 1, "all are loaded", within=120)
        await world.until_ready("busy")
        stop = asyncio.Event()
        busy = asyncio.create_task(world.keep_busy(stop))
        for model in models:
            await world.until_idle(model)
        for model in models[1:]:
            seen.cold.append(await _timed(world, model, seen))
            seen.warm.append(await _timed(world, model, seen))
        began = time.monotonic()
        await asyncio.gather(*(_timed(world, models[0], seen) for _ in range(given.together)))
        seen.together = time.monotonic() - began
        stop.set()
        await busy
        print(*world.failures[:5], sep="\n", end="")
        seen.failed_of_others, seen.requests_of_others = len(world.failures), world.busy_requests
    return seen


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures; the exit code tells whether a request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_adapter", description=__doc__)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--together", type=int, default=50)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cold-adapter-") as folder, ApiServer() as server:
        server.install_crds()
        server.namespace(NAMESPACE)
        seen = asyncio.run(_run(given, Path(folder), server))
    return write(
        "cold_adapter",
        {
            "cold_seconds": statistics.median(seen.cold),
            "cold_seconds_max": max(seen.cold),
            "warm_seconds": statistics.median(seen.warm),
            "together_seconds": seen.together,
            "failed_requests": seen.failed,
            "failed_requests_of_others": seen.failed_of_others,
            "requests_of_others": seen.requests_of_others,
        },
        dict.fromkeys(("cold_seconds", "cold_seconds_max", "warm_seconds", "together_seconds"), "s"),
        targets={"cold_seconds": "<= 1", "failed_requests": "0", "failed_requests_of_others": "0"},
        note=f"{len(seen.cold)} idle adapters one after the other, then one for {given.together} requests at once; "
        "fake engine, files in the pod's cache",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
