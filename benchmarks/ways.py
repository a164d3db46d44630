"""Several ways to one upstream, measured in turn, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from dataclasses import dataclass, fields

from benchmarks import load
from benchmarks.processes import cpu_seconds

SECONDS = 2.0
"""That one way is measured in one round with many connections; with one it is half of that."""


@dataclass(frozen=True)
class Way:
    """One way to the upstream: a port, and the proxies that the request passes."""

    port: int
    proxies: tuple[int, ...] = ()
    """Process ids."""
    counting: tuple[int, ...] = ()
    """That of the process that hears what became of the requests."""


@dataclass(frozen=True)
class Round:
    """One round of one way: medians in ms at one and at 32 connections, and at 32 the rate and CPU per request."""

    one: float
    many: float
    per_second: float
    cpu_us: float
    """Of all its proxies together."""
    counting_us: float
    """Of the process that hears of them."""


def sha256_speed() -> float:
    """GB/s: how fast this machine is at this moment."""
    data = bytes(32 << 20)
    begin = time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / 1e9 / (time.perf_counter() - begin)


async def _round(way: Way, request: bytes, seconds: float) -> Round:
    one = await asyncio.to_thread(load.measure, way.port, request, connections=1, seconds=seconds / 2)
    pids = (way.proxies, way.counting)
    before = [sum(map(cpu_seconds, p)) for p in pids]
    many = await asyncio.to_thread(load.measure, way.port, request, connections=32, seconds=seconds)
    used = [1e6 * (sum(map(cpu_seconds, p)) - b) / len(many.latencies) for p, b in zip(pids, before, strict=True)]
    if one.errors or many.errors:
        raise SystemExit(f"port {way.port}: {one.errors + many.errors} answers were not 200")
    return Round(one.quantile(0.5), many.quantile(0.5), many.per_second, *used)


async def measured(
    ways: dict[str, Way], request: bytes, *, rounds: int, seconds: float = SECONDS
) -> tuple[dict[str, list[Round]], float]:
    """Rounds per way, and the median speed of the machine meanwhile (SHA-256, GB/s). One round more warms up."""
    results: dict[str, list[Round]] = {name: [] for name in ways}
    speeds = []
    for number in range(rounds + 1):
        speeds.append(sha256_speed())
        for name, way in ways.items():
            found = await _round(way, request, seconds)
            if number:
                results[name].append(found)
    return results, statistics.median(speeds)


def medians(rounds: list[Round]) -> Round:
    """Of each number by itself."""
    return Round(*(statistics.median(getattr(r, f.name) for r in rounds) for f in fields(Round)))


def added(way: list[Round], direct: list[Round]) -> list[float]:
    """What the way adds to a request at one connection, in ms, round by round."""
    return [a.one - b.one for a, b in zip(way, direct, strict=True)]
