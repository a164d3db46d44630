"""An engine is killed under traffic, with a second pod beside it: what users see, and when its adapters are back.

Both pods are real engines with their fronts and agents, behind the gateway's real Envoy. The killed engine is started
again at once, as the kubelet does; its agent loads and proves every adapter again.

python -m benchmarks.engine_restart [--engine vllm|fake] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hot_load import ADAPTER, copies
from benchmarks.report import write
from models.smollm2 import build_smollm2
from tests.contract.pods import ModelPods, pod_engine
from tests.traffic import Load, Traffic

ADAPTERS = 8
ROUNDS = 3
_RATE = 3.0
"""Requests per second, which one CPU engine can take alone."""
_CALM = 12


@dataclass
class Seen:
    """What came of all rounds."""

    requests: int = 0
    failed: int = 0
    cut: int = 0
    cut_elsewhere: int = 0
    """Of requests that began after the kill was over: none of them can have been on the killed engine."""
    noticed: list[float] = field(default_factory=list)
    reload: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


async def _round(pods: ModelPods, traffic: Traffic, names: list[str], seen: Seen) -> None:
    engine, rig = pods.engines[0], pods.rigs[0]
    await traffic.wait_for(_CALM, within=120)
    since = time.time()
    killed = time.monotonic()
    await asyncio.to_thread(engine.kill)
    await rig.until(lambda r: r.engine == "Starting", "it is unpublished", within=10)
    seen.noticed.append(rig.published[-1][0] - killed)
    over = time.time()
    await asyncio.to_thread(engine.start)
    healthy = time.monotonic()
    await rig.until_loaded(*names)
    seen.reload.append(time.monotonic() - healthy)
    await traffic.wait_for(_CALM, within=120)
    seen.cut_elsewhere += sum(r.fate == "cut" and r.start > over for r in traffic.records)
    seen.complaints += [f"{c} (killed at {since:.3f})" for c in traffic.summary(since).complaints]


async def _run(kind: str, rounds: int, folder: Path) -> Seen:
    seen = Seen()
    engines = [pod_engine(kind, build_smollm2(), "smollm2", max_cpu_loras=64) for _ in range(2)]
    async with ModelPods(folder, engines, max_cpu_loras=64) as pods:
        files = copies(folder / "files", ADAPTERS, ADAPTER)
        names = [f"a{number}" for number in range(ADAPTERS)]
        pods.plan(*(pods.has(name, files[number]) for number, name in enumerate(names)))
        for rig in pods.rigs:
            await rig.until_loaded(*names, within=300)
        await pods.gateway.serve()
        load = Load(names, rate=_RATE, streaming=0.7, body={"max_tokens": 24}, max_open=64)
        async with Traffic(pods.url, load) as traffic:
            for _ in range(rounds):
                await _round(pods, traffic, names, seen)
        total = traffic.summary()
        seen.requests, seen.failed, seen.cut = total.requests, total.failed, total.cut
    return seen


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures; the exit code tells whether somebody failed who should not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_restart", description=__doc__)
    parser.add_argument("--engine", choices=["vllm", "fake"], default="vllm")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="engine-restart-") as folder:
        seen = asyncio.run(_run(given.engine, given.rounds, Path(folder)))
    code = write(
        "engine_restart",
        {
            "failed_requests": seen.failed,
            "cut_streams": seen.cut,
            "cut_elsewhere": seen.cut_elsewhere,
            "reload_seconds": max(seen.reload),
            "unpublished_seconds": max(seen.noticed),
            "requests": seen.requests,
            "kills": len(seen.reload),
        },
        {"reload_seconds": "s", "unpublished_seconds": "s"},
        targets={"failed_requests": "0", "cut_elsewhere": "0", "reload_seconds": "<= 5"},
        spread={"reload_seconds": f"{min(seen.reload):.2f} to {max(seen.reload):.2f} (the worst is the figure)"},
        note=f"{given.engine} engines, two pods, {ADAPTERS} adapters; reload: from healthy until the last is published",
    )
    for complaint in seen.complaints:
        print(complaint)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
