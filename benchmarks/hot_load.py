"""How long a new adapter takes from the plan to its first token through the gateway, on a running engine.

`measure` is the measuring part: it is given how an adapter is asked for, how it goes, and where its model is asked; so
the same loop measures agents alone (here) and a whole cluster. Here the plan is handed to the agent, so the operator's
step from apply to plan is not in the figures (benchmarks/reconcile.py measures that one).

python -m benchmarks.hot_load [--engine vllm|fake] [--loads N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from benchmarks.report import percentile, write
from models.smollm2 import build_smollm2
from tests.contract.pods import ModelPods, pod_engine
from tuneyard.api.documents import PlannedAdapter

ADAPTER = Path(__file__).resolve().parent.parent / "examples" / "adapters" / "acme-support-v1"
LOADS = 200
_KEPT = 8
"""Adapters that are loaded at a time: the oldest goes when a new one comes."""
_MOST_SECONDS = 60.0

Act = Callable[[int], Awaitable[None]]


async def first_token(session: aiohttp.ClientSession, url: str, model: str) -> str:
    """Ask until the model answers, and wait for its first token; returns the name under which the engine answered.

    An unknown model (404) and one without a ready pod (503) are asked again after 10 ms.
    """
    message = [{"role": "user", "content": "How do I reset my password?"}]
    body = {"model": model, "messages": message, "max_tokens": 1, "stream": True}
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status == 200:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        return str(json.loads(line[6:])["model"])
            elif response.status not in (404, 503):
                raise SystemExit(f"{model}: {response.status} {(await response.text())[:300]}")
        await asyncio.sleep(0.01)
    raise SystemExit(f"{model} did not answer within {_MOST_SECONDS} s")


async def measure(url: str, loads: int, name: Callable[[int], str], apply: Act, retire: Act) -> list[float]:
    """Seconds from the beginning of `apply(i)` to the first token of the model `name(i)`, for each load.

    `retire(i)` takes the adapter i away; it is called when it is no longer among the newest ones, off the clock.
    """
    seconds = []
    async with aiohttp.ClientSession() as session:
        for number in range(loads):
            began = time.perf_counter()
            await apply(number)
            await first_token(session, url, name(number))
            seconds.append(time.perf_counter() - began)
            if number >= _KEPT:
                await retire(number - _KEPT)
    return seconds


def copies(folder: Path, count: int, like: Path = ADAPTER) -> list[Path]:
    """`count` adapters that differ in their digest only."""
    made = []
    for number in range(count):
        target = folder / f"adapter-{number}"
        shutil.copytree(like, target)
        config = json.loads((target / "adapter_config.json").read_text())
        (target / "adapter_config.json").write_text(json.dumps({**config, "revision": f"copy {number}"}))
        made.append(target)
    return made


async def _run(kind: str, loads: int, folder: Path) -> list[float]:
    files = copies(folder / "files", loads + 1)
    engine = pod_engine(kind, build_smollm2(), "smollm2", max_cpu_loras=64)
    async with ModelPods(folder, [engine], max_cpu_loras=64) as pods:
        planned: dict[int, PlannedAdapter] = {}

        async def apply(number: int) -> None:
            planned[number] = pods.has(f"a{number}", files[number])
            pods.plan(*planned.values())

        async def retire(number: int) -> None:
            del planned[number]
            pods.plan(*planned.values())

        pods.plan()
        await pods.rigs[0].until(lambda r: r.engine == "Ready", "the base answers", within=300)
        await pods.gateway.serve()
        await apply(loads)  # one to warm up
        await pods.rigs[0].until_loaded(f"a{loads}")
        return await measure(pods.url, loads, lambda n: f"a{n}", apply, retire)


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_load", description=__doc__)
    parser.add_argument("--engine", choices=["vllm", "fake"], default="vllm")
    parser.add_argument("--loads", type=int, default=LOADS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hot-load-") as folder:
        seconds = asyncio.run(_run(given.engine, given.loads, Path(folder)))
    write(
        "hot_load",
        {"p50_seconds": percentile(seconds, 0.5), "p99_seconds": percentile(seconds, 0.99), "loads": len(seconds)},
        {"p50_seconds": "s", "p99_seconds": "s", "loads": ""},
        targets={"p50_seconds": "<= 1.5", "p99_seconds": "<= 4"},
        spread={"p50_seconds": f"{min(seconds):.3f} to {max(seconds):.3f}"},
        note=f"{given.engine} engine, one pod, SmolLM2-135M; from the agent's plan to the first token through the "
        "gateway's Envoy and the pod's front; the operator's step is not in it",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
