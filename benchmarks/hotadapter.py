"""One adapter gets ten times the load of each other: how soon it spreads, and what the others notice (for placement).

Operator, gateway process, Envoy and API server are real. Pods are models of engines whose answers take longer the more
of them they write (tests/fakes/busypod.py): the hot adapter's one copy is asked for more than a pod can do, and others
have their copies on that pod too.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import percentile
from tests.contract.apiserver import ApiServer
from tests.contract.busypool import BusyPool
from tests.contract.gateway_process import engine_name_of
from tests.traffic import Load, Record, Traffic

_PODS, _OTHERS = 12, 18
_PLACES = 16
_RATE = 1.2
"""Requests per second to each of the others."""
_TIMES = 10
_WORK = 0.5
"""Seconds that an answer takes on a pod that has nothing else to do; it does 8 of these a second."""
_CALM, _SPREADING, _HOT = 25.0, 12.0, 25.0
"""Seconds: before; until all is as it stays, with the waiting worked off; after."""


@dataclass
class Spread:
    """What came of it."""

    copies: int = 1
    """Of the hot adapter in the end."""
    seconds: float = 0.0
    """From its first request at ten times the load until the last of its copies was asked."""
    ratio: float = 0.0
    """The others' p99 after by that before."""
    p99: float = 0.0
    """The others' before, in seconds."""
    requests: int = 0
    failed: int = 0
    complaints: list[str] = field(default_factory=list)


async def measure(server: ApiServer, folder: Path, namespace: str, *, most: int | None = None) -> Spread:
    """One run in a namespace of its own; `most`: lora.maxCopies."""
    others, hot = [f"tenant-{n}" for n in range(_OTHERS)], "hot"
    lora = {"maxCpuLoras": _PLACES, "copies": 1, **({"maxCopies": most} if most else {})}
    body = {"work": _WORK}
    async with BusyPool(server, folder, namespace, [*others, hot], pods=_PODS, lora=lora) as pool:
        calm = Load([*others, hot], rate=_RATE * (_OTHERS + 1), streaming=0, body=body, max_open=1000)
        async with Traffic(pool.url, calm) as all_alike:
            await asyncio.sleep(_CALM)
            more = Load([hot], rate=_RATE * (_TIMES - 1), streaming=0, body=body, max_open=1000)
            began, began_at = time.monotonic(), time.time()
            async with Traffic(pool.url, more) as hotter:
                await asyncio.sleep(_SPREADING)
                settled_at = time.time()
                await asyncio.sleep(_HOT)
                ended_at = time.time()
                places = await pool.placed(hot)
        first = [p.first_asked.get(engine_name_of(hot), time.monotonic()) for p in pool.pods if p.name in places]
    told = [t.summary() for t in (all_alike, hotter)]
    before = _durations(all_alike.records, others, began_at - _CALM + 2, began_at - 1)
    after = _durations(all_alike.records, others, settled_at, ended_at)
    return Spread(
        copies=len(places),
        seconds=max(0.0, max(first) - began),
        ratio=percentile(after, 0.99) / percentile(before, 0.99),
        p99=percentile(before, 0.99),
        requests=sum(t.requests for t in told),
        failed=sum(t.failed + t.cut + t.skipped for t in told),
        complaints=[c for t in told for c in t.complaints],
    )


def _durations(records: list[Record], models: list[str], since: float, until: float) -> list[float]:
    return [r.duration for r in records if r.model in models and since <= r.start < until and r.fate == "ok"]


async def _both(server: ApiServer, folder: Path) -> tuple[Spread, Spread]:
    return await measure(server, folder, "grows"), await measure(server, folder, "fixed", most=1)


def hot_adapter(folder: Path) -> tuple[Spread, Spread]:
    """With growth, and with `maxCopies` equal to `copies`."""
    with ApiServer() as server:
        server.install_crds()
        server.namespace("tuneyard-system")
        return asyncio.run(_both(server, folder))
