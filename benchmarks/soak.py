"""A whole gateway under mixed traffic for a while: nothing may fail, and its memory must be flat.

A real API server, the gateway process with its real Envoy, clients with keys, tokens counted; two pods, each a process
of its own. Meanwhile weights change every second. Of the requests some are large (100 KB), some stream, and some are
meant to end otherwise: refused by the gateway or by an engine, past their deadline, or left by their clients. Whatever
ends in another way than it should is an error.

Memory is what both processes have resident, together. First the gateway is filled: it keeps its last 100,000 answers
for feedback, and until then it grows by design. Of what is measured after that the first part still counts as warm-up;
of the rest the slope is taken (slopes.py). Growth is clear where even the lower end of the 99 % interval is above
TOLERATED: less than any object takes that could be left over by each request.

python -m benchmarks.soak [--seconds N] [--requests N] [--fill N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.load import request_of
from benchmarks.processes import beside
from benchmarks.report import write
from benchmarks.slopes import CONFIDENCE, slope_of
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import Fronted, GatewayProcess, Team
from tests.contract.ports import free_port
from tests.contract.test_gateway_tenants import Vault, gateway_of
from tests.fakes.upstream import Upstream
from tuneyard.gateway.feedback import KEPT

SECONDS, REQUESTS, FILL = 600.0, 10_000_000, KEPT + 10_000
CLIENTS = 24
WARM_UP = 0.25
"""Of the measured time: what is not looked at."""
TOLERATED = 10.0
"""Megabytes per million requests, bytes per request."""
KEY = "sk-soak-0123456789abcdef0123"
_AUTHORIZED = {"authorization": f"Bearer {KEY}"}
_PATIENCE = 30.0

Json = dict[str, Any]


@dataclass
class Soak:
    """What has happened by now."""

    done: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    samples: list[tuple[int, float, float]] = field(default_factory=list)
    """(requests, megabytes of the process, of Envoy), once a second."""


@dataclass(frozen=True)
class Case:
    """A request, and the status that it has to get."""

    kind: str
    share: int
    status: int
    body: Json
    headers: dict[str, str] = field(default_factory=lambda: _AUTHORIZED)
    raw: bytes | None = None


_STREAM: Json = {"model": "support", "stream": True, "delay": 0.002}
CASES = [
    Case("whole", 40, 200, {"model": "support", "messages": []}),
    Case("stream", 15, 200, {**_STREAM, "chunks": 20}),
    Case("stream with usage", 8, 200, {**_STREAM, "chunks": 10, "stream_options": {"include_usage": True}}),
    Case("large", 10, 200, {"model": "support", "messages": "x" * 100_000}),
    Case("large answer", 3, 200, {"model": "support", "messages": [], "size": 100_000}),
    Case("left", 6, 200, {**_STREAM, "chunks": 400, "delay": 0.01}),
    Case("past its deadline", 3, 504, {"model": "support", "first": 5}, {**_AUTHORIZED, "grpc-timeout": "30m"}),
    Case("stream that fails", 2, 200, {**_STREAM, "chunks": 3, "fails": True}),
    Case("unknown model", 3, 404, {"model": "nobody"}),
    Case("refused by the engine", 3, 404, {"model": "lost", "messages": []}),
    Case("no JSON", 3, 400, {}, raw=b'{"model":"support","messages":['),
    Case("no key", 2, 401, {"model": "support"}, {}),
    Case("another key", 2, 401, {"model": "support"}, {"authorization": "Bearer sk-of-nobody-0123456789"}),
]


async def _pod(name: str, port: int, knows_nothing: bool) -> None:
    async with Upstream(name, port=port, keep=1, models=set() if knows_nothing else None):
        await asyncio.Event().wait()


async def _ask(session: aiohttp.ClientSession, case: Case) -> None:
    """Raises ValueError with what is wrong."""
    data = case.raw if case.raw is not None else json.dumps(case.body).encode()
    async with session.post("/v1/chat/completions", data=data, headers=case.headers) as response:
        if case.kind == "left":
            await response.content.readuntil(b"\n\n")
            response.close()
            return
        text = await response.read()
        if response.status != case.status:
            raise ValueError(f"{response.status} {text[:200]!r}")
        if case.body.get("stream") and not text.endswith(b"data: [DONE]\n\n"):
            raise ValueError(f"a stream that ends in {text[-80:]!r}")


async def _client(url: str, soak: Soak, chance: random.Random, until: float, most: int) -> None:
    shares = list(itertools.accumulate(case.share for case in CASES))
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        while time.monotonic() < until and soak.done < most:
            (case,) = chance.choices(CASES, cum_weights=shares)
            soak.done += 1
            soak.kinds[case.kind] += 1
            try:
                await _ask(session, case)
            except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                soak.errors[f"{case.kind}: {type(error).__name__}: {error}"[:300]] += 1


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def _watch(gateway: GatewayProcess, soak: Soak) -> None:
    assert gateway.process is not None
    while True:
        soak.samples.append((soak.done, _rss_mb(gateway.process.pid), _rss_mb(gateway.rig.envoy.pid)))
        await asyncio.sleep(1)


async def _change(team: Team, soak: Soak, chance: random.Random) -> None:
    while True:
        weight = chance.randrange(101)
        await asyncio.to_thread(team.set_traffic, "support", v1=100 - weight, v2=weight)
        soak.changes += 1
        await asyncio.sleep(1)


async def _fill(port: int, count: int) -> None:
    """So many small requests, as fast as they are answered."""
    body = json.dumps({"model": "support", "messages": []}).encode()
    request = request_of(body).replace(b"Bearer client", b"Bearer " + KEY.encode())
    left = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"while the gateway was filled: {head.decode('latin-1')}")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r", 1)[0]))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


@asynccontextmanager
async def _serving(server: ApiServer, folder: Path) -> AsyncIterator[tuple[GatewayProcess, Team]]:
    team = Team(server, "soak")
    team.make_base()
    for adapter in ("v1", "v2", "v3"):
        team.make_adapter(adapter)
    vault = Vault(team.api, team.namespace)
    vault.keys("soak-keys", "soak", key=KEY)
    vault.policy("soak", "soak", models="support,lost,nobody")
    with ExitStack() as stack:
        for name, adapters in (("pod-a", ("v1", "v2")), ("pod-b", ("v1", "v2")), ("pod-c", ("v3",))):
            port = free_port()
            stack.enter_context(beside(_pod, name, port, name == "pod-c"))
            team.make_pod(Fronted(name, f"127.0.0.1:{port}"), *adapters)
        team.make_deployment("support", {"v1": 90, "v2": 10})
        team.make_deployment("lost", {"v3": 100})
        async with gateway_of(server, team, folder) as gateway:
            for name, weights in (("support", {"v1": 90, "v2": 10}), ("lost", {"v3": 100})):
                await gateway.applies(f"{team.namespace}/{name}", weights)
            yield gateway, team


async def _run(server: ApiServer, folder: Path, seconds: float, requests: int, fill: int) -> tuple[Soak, float]:
    """What happened, and how long it took."""
    soak, chance = Soak(), random.Random(6)
    async with _serving(server, folder) as (gateway, team):
        await _fill(gateway.rig.port, fill)
        process, envoy = gateway.process, gateway.rig.envoy
        assert process is not None
        beside_it = [asyncio.create_task(_watch(gateway, soak)), asyncio.create_task(_change(team, soak, chance))]
        begin = time.monotonic()
        clients = [random.Random(number) for number in range(CLIENTS)]
        await asyncio.gather(*(_client(gateway.url, soak, c, begin + seconds, requests) for c in clients))
        took = time.monotonic() - begin
        for task in beside_it:
            if task.done():
                task.result()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if process.poll() is not None:
            soak.errors[f"the gateway process ended with {process.returncode}"] += 1
        for script in ("extract", "rewrite", "answer"):
            failed = await envoy.stat(f"http.gateway.lua.{script}.errors")
            if failed:
                soak.errors[f"the script {script} failed"] += failed
    return soak, took


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="it ends with whichever comes first")
    parser.add_argument("--fill", type=int, default=FILL, help="requests before it is measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, ApiServer() as server:
        server.install_crds()
        soak, took = uvloop.run(_run(server, Path(folder), given.seconds, given.requests, given.fill))
    rest = soak.samples[int(len(soak.samples) * WARM_UP) :]
    slopes = {
        name: slope_of([(requests / 1e6, of((process, envoy))) for requests, process, envoy in rest])
        for name, of in (("", sum), ("process_", lambda both: both[0]), ("envoy_", lambda both: both[1]))
    }
    whole = slopes[""]
    figures: dict[str, float] = {
        "errors": soak.errors.total(),
        "requests": soak.done,
        "requests_per_second": soak.done / took,
        "seconds": took,
        "weight_changes": soak.changes,
        "rss_slope_mb_per_million_requests": whole.value,
        "rss_slope_low_mb_per_million_requests": whole.low,
        **{f"{name}rss_slope_mb_per_million_requests": slope.value for name, slope in slopes.items() if name},
        "process_rss_mb": soak.samples[-1][1],
        "envoy_rss_mb": soak.samples[-1][2],
    }
    units = {name: "MB" if "mb" in name else "" for name in figures}
    note = ", ".join(f"{kind} {number}" for kind, number in soak.kinds.most_common())
    if soak.errors:
        note += ". Errors: " + "; ".join(f"{number} x {what}" for what, number in soak.errors.most_common(5))
    return write(
        "soak",
        figures,
        {**units, "requests_per_second": "requests/s", "seconds": "s"},
        targets={"errors": "0", "rss_slope_low_mb_per_million_requests": f"<= {TOLERATED:g}"},
        spread={
            f"{name}rss_slope_mb_per_million_requests": f"{slope.low:.1f} to {slope.high:.1f} ({CONFIDENCE:.0%})"
            for name, slope in slopes.items()
        },
        note=f"{CLIENTS} clients after {given.fill} requests to fill the gateway; {note}.",
    )


if __name__ == "__main__":
    sys.exit(main())
