"""What engines' own word on their load is worth to those who choose pods, against counting requests (least_request).

Engines that batch (benchmarks/batching.py: 16 places, a KV cache, a few very long answers), one of six slower than the
others, in a process of their own; real Envoys as our gateway configures them. Three ways to choose a pod, each with
engines of its own, get the same requests at the same moments, so that a slow moment of the machine hits all alike:

least     what the product does: of two pods picked by chance the one with fewer requests of this gateway under way
weighted  the same policy with endpoints' weights, which a process beside each gateway computes from every engine's
          queue and KV cache (`/metrics`, every --every seconds) and sends by EDS. Where weights differ Envoy compares
          no two pods: it goes by a schedule, of weight / (requests under way + 1) ^ active_request_bias
orca      client_side_weighted_round_robin: Envoy itself weighs by requests per second / utilization, which the engine
          tells in the head of every answer. Reports come with answers only: a pod that is not asked is not heard of,
          every gateway hears its own share of them, and an answer that is no stream tells when it is all over

Four loads: 60 % and 95 % of what the engines can do, through one gateway and through three, which do not see each
other's requests. The first seconds of each are not counted; in them as many requests more come as have places at that
load, so that it need not build up. `slow_share` is the slower engine's share of the requests. No way misses a target;
what would make one the product's is in `..._worst_ratio`: its TTFT p99 with three gateways, at the load where it does
worse, in parts of least_request's.

python -m benchmarks.balancing [--seconds N] [--every N] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import aiohttp
import uvloop

# Imported so that its type can be packed by name.
from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (  # noqa: F401
    client_side_weighted_round_robin_pb2,
)

from benchmarks import load
from benchmarks.batchengines import engines, load_of
from benchmarks.batching import Request, Speed, asked, busy, per_second, weight_of
from benchmarks.report import percentile, write
from tests.contract.envoy import Rig, engine_key, eventually, model, revision
from tests.contract.ports import free_port
from tuneyard.systems.envoy.documents import Json, extension
from tuneyard.systems.envoy.translate import ModelResources, model_resources

LEAST, WEIGHTED, ORCA = "least", "weighted", "orca"
WAYS = (LEAST, WEIGHTED, ORCA)
USUAL = Speed()
ENGINES = (*[USUAL] * 5, USUAL.slower(1.8))
SLOW = len(ENGINES) - 1
GATEWAYS = 3
LOADS = (60, 95)
LEAD, FILLED_WITHIN = 3.0, 1.0
"""Seconds that are not counted, and in which of them the load is brought about."""
_PATIENCE = 60.0

Weights = Mapping[str, int]
"""By address."""


def _policy(way: str) -> Json:
    if way == WEIGHTED:
        bias = {"default_value": 1.0, "runtime_key": "tuneyard.bench.active_request_bias"}
        told: Json = {"choice_count": 2, "active_request_bias": bias}
        return extension("least_request", "load_balancing_policies.least_request.v3.LeastRequest", **told)
    name = "client_side_weighted_round_robin"
    return extension(
        name,
        f"load_balancing_policies.{name}.v3.ClientSideWeightedRoundRobin",
        blackout_period="0s",
        weight_update_period="0.5s",
    )


def resources(way: str, pods: Sequence[str], weights: Weights) -> ModelResources:
    """A model of the way's name, as the gateway has it but for how its pods are chosen."""
    built = model_resources(model(way, revision("v1", 100, pods)), engine_key)
    if way == LEAST:
        return built
    chosen: Json = {"load_balancing_policy": {"policies": [{"typed_extension_config": _policy(way)}]}}
    if way == WEIGHTED:  # otherwise new weights wait for up to a second more
        chosen["common_lb_config"] = {"update_merge_window": "0s"}
    built = replace(built, clusters={name: cluster | chosen for name, cluster in built.clusters.items()})
    if way == ORCA:
        return built
    return replace(built, assignments={name: _weighed(a, weights) for name, a in built.assignments.items()})


def _weighed(assignment: Json, weights: Weights) -> Json:
    def one(endpoint: Json) -> Json:
        address = endpoint["endpoint"]["address"]["socket_address"]
        return endpoint | {"load_balancing_weight": weights.get(f"{address['address']}:{address['port_value']}", 100)}

    found = [{"lb_endpoints": [one(e) for e in group["lb_endpoints"]]} for group in assignment["endpoints"]]
    return assignment | {"endpoints": found}


async def _weigh(rig: Rig, pods: Sequence[str], every: float, after: float) -> None:
    """The process beside a gateway: ask all engines for their load, and tell Envoy."""
    await asyncio.sleep(after)
    async with aiohttp.ClientSession() as session:

        async def weight(pod: str) -> int:
            async with session.get(f"http://{pod}/metrics") as response:
                return weight_of(busy(load_of(await response.text()), USUAL.places))

        while True:
            found = await asyncio.gather(*map(weight, pods))
            rig.ads.put(WEIGHTED, resources(WEIGHTED, pods, dict(zip(pods, found, strict=True))))
            rig.ads.publish()
            await asyncio.sleep(every)


class Answered(NamedTuple):
    """One answer, in milliseconds from the request on."""

    ttft: float
    total: float
    pod: int


class _Stream(asyncio.Protocol):
    """A kept connection to a gateway, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer, self._sent, self._ttft, self._pod = b"", 0.0, 0.0, 0
        self._done: asyncio.Future[Answered]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[Answered]:
        """The answer, when it is complete; SystemExit where it is none."""
        self._buffer, self._ttft = b"", 0.0
        self._sent, self._done = time.perf_counter(), asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        took = (time.perf_counter() - self._sent) * 1000
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(head.decode(errors="replace"))
        elif body and not self._ttft:
            self._ttft, self._pod = took, int(body.partition(b'"system_fingerprint": "')[2].partition(b'"')[0])
        if self._buffer.endswith(b"0\r\n\r\n") and not self._done.done():
            self._done.set_result(Answered(self._ttft, took, self._pod))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, how: str) -> None:
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_exception(SystemExit(f"no answer: {how}"))

    def close(self) -> None:
        """Before the loop ends."""
        self._transport.close()


class Clients:
    """Connections to one gateway, as many as are needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Stream] = []

    async def ask(self, way: str, request: Request) -> Answered:
        """One request of these lengths to the model."""
        body = {"model": way, "messages": [], "stream": True}
        body |= {"prompt_tokens": request.prompt, "max_tokens": request.output}
        if self._idle:
            stream = self._idle.pop()
        else:
            _, stream = await asyncio.get_running_loop().create_connection(_Stream, "127.0.0.1", self._port)
        answered = await stream.ask(load.request_of(json.dumps(body).encode()))
        self._idle.append(stream)
        return answered

    def close(self) -> None:
        """Close those that are idle."""
        for stream in self._idle:
            stream.close()


class Cell(NamedTuple):
    """One load: through how many gateways, and percent of what the engines can do."""

    gateways: int
    percent: int

    @property
    def name(self) -> str:
        """At the beginning of its figures' names."""
        return f"{'one' if self.gateways == 1 else 'three'}_{self.percent}"


CELLS = tuple(Cell(gateways, percent) for gateways in (1, GATEWAYS) for percent in LOADS)

Answers = dict[str, list[Answered]]
"""By way."""


def arrivals(chance: random.Random, percent: int, rate: float, seconds: float) -> list[float]:
    """When requests come: by chance at this rate, and at the beginning as many more as have places at that load."""
    more = sum(e.places for e in ENGINES) * percent // 100
    found, at = [FILLED_WITHIN * number / more for number in range(more)], 0.0
    while (at := at + chance.expovariate(rate)) < LEAD + seconds:
        found.append(at)
    return sorted(found)


async def _loaded(clients: Sequence[Clients], cell: Cell, rate: float, seconds: float, seed: str) -> Answers:
    """Requests that come by chance, at this rate, whatever becomes of those before; the same ones for every way."""
    chance, loop = random.Random(seed), asyncio.get_running_loop()
    begin = loop.time()
    found: dict[str, list[asyncio.Task[Answered]]] = {way: [] for way in WAYS}
    async with asyncio.timeout(LEAD + seconds + _PATIENCE), asyncio.TaskGroup() as group:
        for at in arrivals(chance, cell.percent, rate, seconds):
            request, gateway = asked(chance), chance.randrange(cell.gateways)
            await asyncio.sleep(begin + at - loop.time())
            for way in chance.sample(WAYS, len(WAYS)):
                task = group.create_task(clients[gateway].ask(way, request))
                if at >= LEAD:
                    found[way].append(task)
    return {way: [task.result() for task in tasks] for way, tasks in found.items()}


async def _run(folder: Path, seconds: float, every: float, seed: int) -> dict[Cell, Answers]:
    ports = {way: [free_port() for _ in ENGINES] for way in WAYS}
    pods = {way: [f"127.0.0.1:{port}" for port in ports[way]] for way in WAYS}
    can = sum(map(per_second, ENGINES))
    every_pod = [(port, number, ENGINES[number]) for way in WAYS for number, port in enumerate(ports[way])]
    with engines(every_pod):
        await asyncio.to_thread(load.wait_until_open, every_pod[-1][0])
        async with AsyncExitStack() as stack:
            rigs, weighing = [], []
            for number in range(GATEWAYS):
                place = folder / str(number)
                place.mkdir()
                rigs.append(await stack.enter_async_context(Rig(place)))
                await rigs[-1].serve(*(model(way, revision("v1", 100, pods[way])) for way in WAYS))
                for way in (WEIGHTED, ORCA):
                    rigs[-1].ads.put(way, resources(way, pods[way], {}))
                rigs[-1].ads.publish()
                await eventually(lambda rig=rigs[-1]: rig.ads.complete, "Envoy works with all ways")  # type: ignore[misc]
                again = _weigh(rigs[-1], pods[WEIGHTED], every, number * every / GATEWAYS)
                weighing.append(asyncio.create_task(again))
            clients = [Clients(rig.port) for rig in rigs]
            found = {}
            for cell in CELLS:
                rate = can * cell.percent / 100
                found[cell] = await _loaded(clients, cell, rate, seconds, f"{seed} {cell.percent}")
            for task in weighing:
                if task.done():
                    task.result()
                task.cancel()
            if any(rig.ads.refusals for rig in rigs):
                raise SystemExit("Envoy has refused what it was sent")
            for each in clients:
                each.close()
    return found


def figures_of(found: Mapping[Cell, Answers]) -> dict[str, float]:
    """Per load and way its times in ms, its ratios to least_request's, and the slower engine's share."""
    figures: dict[str, float] = {}
    for cell, answers in found.items():
        times = {way: _times(answers[way]) for way in WAYS}
        for way in WAYS:
            for kind, value in times[way].items():
                figures[f"{cell.name}_{way}_{kind}"] = value
            slow = sum(a.pod == SLOW for a in answers[way])
            figures[f"{cell.name}_{way}_slow_share"] = slow / len(answers[way])
        for way in WAYS[1:]:
            for kind, value in times[way].items():
                figures[f"{cell.name}_{way}_{kind}_ratio"] = value / times[LEAST][kind]
    for way in WAYS[1:]:
        worst = max(figures[f"{cell.name}_{way}_ttft_ms_p99_ratio"] for cell in found if cell.gateways == GATEWAYS)
        figures[f"{way}_worst_ratio"] = worst
    return figures


def _times(answers: Sequence[Answered]) -> dict[str, float]:
    ttfts, totals = [a.ttft for a in answers], [a.total for a in answers]
    return {
        "ttft_ms_p50": percentile(ttfts, 0.5),
        "ttft_ms_p99": percentile(ttfts, 0.99),
        "total_ms_p99": percentile(totals, 0.99),
    }


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balancing", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of four loads")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two looks at the engines")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked when")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="balancing-") as folder:
        found = uvloop.run(_run(Path(folder), given.seconds, given.every, given.seed))
    figures = figures_of(found)
    counts = ", ".join(f"{cell.name} {len(answers[LEAST])}" for cell, answers in found.items())
    unit = {name: "ms" if name[-7:] in {"_ms_p50", "_ms_p99"} else "" for name in figures}
    note = (
        f"{len(ENGINES)} engines, one of them slower; up to {GATEWAYS} gateways of one worker; weights every "
        f"{given.every} s; requests of each way: {counts}; all of it on this machine's cores"
    )
    return write("balancing", figures, unit, note=note)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
