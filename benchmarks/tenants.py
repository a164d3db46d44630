"""Ten tenants' adapters on one pool against ten pools with one each: memory, tokens a second, and what a token costs.

Every engine is the real vLLM on CPU with SmolLM2 and one thread. A pool each is measured as one engine with one
adapter, ten times: on nodes of their own, pools share neither memory nor time. Memory is what the processes of an
engine hold (PSS). Every tenant always has one stream open, as many tokens long as the others'.

cost_ratio: what a token costs on ten pools over what it costs on one, at one price of an engine's hour. Ten engines
make ten times a lone stream's tokens for ten prices, one engine makes its batch's for one. Where tenants ask so little
that one engine carries them all, it is the number of pools.

python -m benchmarks.tenants [--tenants N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp

from benchmarks.hot_load import copies
from benchmarks.report import REPORTED, write
from models.smollm2 import build_smollm2
from tests.contract.engines import EngineProcess, own_engine
from tuneyard.systems.engines.vllm import Vllm

TENANTS, ROUNDS, TOKENS = 10, 3, 64
QUOTED_MONTH = 720.0
"""Dollars of a GPU's month in the usual example: 720 hours at 1."""


class Seen(NamedTuple):
    """One engine with so many adapters."""

    memory: int
    """Bytes."""
    rates: list[float]
    """Tokens a second of all its tenants together, each round."""


def main(arguments: Sequence[str]) -> int:
    """The figures of one run."""
    parser = argparse.ArgumentParser(prog="tenants")
    parser.add_argument("--tenants", type=int, default=TENANTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tenants-") as folder:
        adapters = copies(Path(folder), args.tenants)
        shared = asyncio.run(_measured(adapters, args.rounds))
        lone = asyncio.run(_measured(adapters[:1], args.rounds))
    figures = _figures(args.tenants, shared, lone)
    unit = dict.fromkeys(figures, "GiB") | dict.fromkeys(("memory_ratio", "cost_ratio"), "x")
    unit |= dict.fromkeys(("tokens_per_second_one_pool", "tokens_per_second_pool_each"), "tokens/s")
    spread = {
        "tokens_per_second_one_pool": f"{min(shared.rates):.1f} to {max(shared.rates):.1f}",
        "tokens_per_second_pool_each": f"{min(lone.rates):.1f} to {max(lone.rates):.1f}",
    }
    targets = dict.fromkeys(("memory_ratio", "cost_ratio"), REPORTED)
    note = _cost_line(args.tenants, figures)
    return write("tenants", figures, unit, targets=targets, spread=spread, note=note)


async def _measured(adapters: Sequence[Path], rounds: int) -> Seen:
    """An engine with these adapters, a stream each."""
    engine = own_engine("vllm", "--max-loras", str(len(adapters)), "--max-model-len", "512")
    engine.base, engine.name = build_smollm2(), "smollm2"
    try:
        await asyncio.to_thread(engine.start)
        names = [path.name for path in adapters]
        async with Vllm(engine.url, engine.key) as client:
            for name, path in zip(names, adapters, strict=True):
                await client.load(name, str(path))
        await _round(engine, names)  # the first requests compile and warm up
        rates = [await _round(engine, names) for _ in range(rounds)]
        return Seen(await asyncio.to_thread(_memory, engine), rates)
    finally:
        engine.kill()


async def _round(engine: EngineProcess, names: Sequence[str]) -> float:
    """Tokens a second while every adapter generates TOKENS."""
    headers = {"authorization": f"Bearer {engine.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        began = time.perf_counter()
        made = await asyncio.gather(*(_answer(session, engine.url, name) for name in names))
        return sum(made) / (time.perf_counter() - began)


async def _answer(session: aiohttp.ClientSession, url: str, name: str) -> int:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "How do I reset my password?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200 or answer["model"] != name:
            raise SystemExit(f"{name}: {response.status} {str(answer)[:300]}")
        return int(answer["usage"]["completion_tokens"])


def _memory(engine: EngineProcess) -> int:
    """PSS of the engine's processes, in bytes: they share a session."""
    assert engine.process is not None, "it runs"
    leader, total = engine.process.pid, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            text = (folder / "smaps_rollup").read_text() if session == leader else ""
        except OSError:  # it has ended meanwhile
            continue
        total += sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _figures(tenants: int, shared: Seen, lone: Seen) -> dict[str, float]:
    together, alone = statistics.median(shared.rates), statistics.median(lone.rates)
    gib = 1 << 30
    return {
        "memory_ratio": tenants * lone.memory / shared.memory,
        "cost_ratio": together / alone,
        "tokens_per_second_one_pool": together,
        "tokens_per_second_pool_each": alone,
        "memory_one_pool_gib": shared.memory / gib,
        "memory_pool_each_gib": lone.memory / gib,
    }


def _cost_line(tenants: int, figures: Mapping[str, float]) -> str:
    """What it comes to, in dollars."""
    alone, together = figures["tokens_per_second_pool_each"], figures["tokens_per_second_one_pool"]
    return (
        f"{tenants} tenants, a stream each, where an engine's hour costs 1: ${tenants * QUOTED_MONTH:,.0f} a month on "
        f"{tenants} pools, ${QUOTED_MONTH:,.0f} on one. A million tokens: ${1e6 / alone / 3600:.2f} on pools of their "
        f"own, ${1e6 / together / 3600:.2f} on one"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
