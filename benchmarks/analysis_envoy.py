"""How often a candidate that is no worse is rolled back, and how soon a bad one, with everything real but the engines.

A real API server, the operator and its own judge, a gateway with a real Envoy and its gateway process. Thirty
deployments roll out at once, to a revision that answers just as its stable one; before that, ten candidates of which
20 %, and ten of which 100 % of the answers are errors. The engine is a fake: 0.5 % of its answers are errors, times to
the first token are spread (log-normal, about 1 % are over the objective), nine answers of ten stream.

This is a smoke test of what benchmarks/analysis.py simulates 10,000 times: thirty runs without a false rollback say
little of a rate below 10 %. To fit into some minutes of two cores these are shorter than in production:
- steps are 30 and 60 %, held for 5 s, and bakeTime is 20 s; where a candidate is bad the step is 5 %. At an even share
  a rejection takes more answers than at 1 % (up to 1.8 times);
- 2 % errors are tolerated: with 1 % it takes one rollout of ten 5,000 answers to show that 0.5 % is less;
- warmUp is 2 s; minRequests stays at its 300;
- all rollouts share one engine and RATE requests a second, so each takes the time that its answers take.

A rejection counts the candidate's answers that its verdict names. How far a run of bad answers may go on is learnt from
stable: here from BEFORE seconds, some 150 answers, and not from days. So where every answer is bad it takes about twice
as many as with a long history; simulated with so short a one (5 %, 15 answers a second) the medians are 11 and 23.

python -m benchmarks.analysis_envoy [--runs N] [--bad N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, digest_of, engine_name_of
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
)
from tests.contract.ports import PODS_ON_LOOPBACK
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic

RUNS, BAD = 30, 10
RATE = 300.0
"""Requests per second, of all deployments together."""
ERRORS = 0.005
FIRST = (0.15, 0.8)
"""Median in seconds, and sigma of its logarithm: the time to the first token."""
SLO = {"errorRate": "2%", "ttft": "1s"}
BEFORE = 10.0
"""Seconds of traffic before a rollout, from which the judge learns how stable's bad answers come."""
WITHIN, BAD_WITHIN = 400.0, 90.0
BASE, STABLE, CANDIDATE = "tiny", "v1", "v2"
ADAPTERS = {"good": ERRORS, "as-good": ERRORS, "bad-20": 0.2, "bad-100": 1.0}
"""The share of errors, by adapter."""

Json = dict[str, Any]


@dataclass
class Engine(Upstream):
    """Answers with errors, and as soon as it happens."""

    chance: random.Random = field(default_factory=lambda: random.Random(1))
    errors: dict[str, float] = field(default_factory=lambda: {engine_name_of(a): e for a, e in ADAPTERS.items()})

    def _refusal(self, model: str) -> bytes | None:
        if self.chance.random() >= self.errors.get(model, 0.0):
            return super()._refusal(model)
        text = b'{"error":{"message":"an error of the engine","type":"server_error"}}'
        head = f"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        return head.encode() + text

    def _first(self) -> float:
        median, sigma = FIRST
        return median * self.chance.lognormvariate(0.0, sigma)

    async def _generate(self, asked: Json) -> None:
        await super()._generate({**asked, "first": self._first()})

    async def _stream(self, asked: Json, model: str, writer: asyncio.StreamWriter) -> None:
        await super()._stream({**asked, "first": self._first()}, model, writer)


def _spec(adapter: str, candidate: int, steps: Sequence[int]) -> Json:
    rollout = {
        "mode": "Progressive",
        "steps": [{"weight": w, "hold": "5s"} for w in steps],
        "bakeTime": "20s",
        "progressDeadline": "1h",
        "analysis": {"slo": SLO, "warmUp": "2s"},
    }
    of: dict[str, str | None] = {STABLE: "good", CANDIDATE: adapter}
    return {**deployment_spec(BASE, {STABLE: 100 - candidate, CANDIDATE: candidate}, of), "rollout": rollout}


@dataclass
class World:
    """One pod behind one gateway."""

    cluster: Cluster
    gateway: GatewayProcess

    def rollouts(self) -> dict[str, Json]:
        """status.rollout of every deployment."""
        items = self.cluster.api.request("GET", self.cluster.path("modeldeployments"))["items"]
        return {i["metadata"]["name"]: (i.get("status") or {}).get("rollout") or {} for i in items}

    async def until(self, names: Sequence[str], over: Callable[[Json], bool], within: float) -> dict[str, Json]:
        """Their rollouts once all are over, or the time is."""
        deadline = time.monotonic() + within
        while True:
            found = await asyncio.to_thread(self.rollouts)
            if all(over(found.get(n, {})) for n in names) or time.monotonic() > deadline:
                return {n: found.get(n, {}) for n in names}
            await asyncio.sleep(1)

    async def course(self, of: dict[str, str], steps: Sequence[int], within: float) -> dict[str, Json]:
        """Roll out the adapter that each deployment names, all at once; how each ended. They are gone then."""
        for name, adapter in of.items():
            await asyncio.to_thread(self.cluster.apply, "ModelDeployment", name, _spec(adapter, 0, steps))
        began = await self.until(list(of), lambda r: r.get("stable") == STABLE, 60)
        assert all(r.get("stable") == STABLE for r in began.values()), began
        for name in of:
            await self.gateway.applies(f"{self.cluster.namespace}/{name}", {STABLE: 100, CANDIDATE: 0})
        load = Load(
            [f"{self.cluster.namespace}/{n}" for n in of],
            rate=RATE,
            streaming=0.9,
            body={"chunks": 4, "delay": 0.02},
            max_open=1000,
            max_requests=1_000_000,
        )
        async with Traffic(self.gateway.url, load) as traffic:
            await traffic.wait_for(int(RATE * BEFORE))
            for name, adapter in of.items():
                await asyncio.to_thread(self.cluster.apply, "ModelDeployment", name, _spec(adapter, 100, steps))
            ends = await self.until(list(of), lambda r: r.get("stable") == CANDIDATE or bool(r.get("verdicts")), within)
        told = traffic.summary()
        by = told.by_status
        print(f"{len(of)} rollouts: {told.requests} requests, by status {dict(by)}, {told.skipped} skipped", flush=True)
        for name in of:
            await asyncio.to_thread(self.cluster.delete, "ModelDeployment", name)
        return ends


def _prepare(cluster: Cluster, pod: Upstream) -> None:
    cluster.apply("BaseModel", BASE, BASE_SPEC)
    for adapter in ADAPTERS:
        cluster.apply("LoRAAdapter", adapter, {**adapter_spec(BASE, adapter), "digest": digest_of(adapter)})
    cluster.pod(pod.name, BASE)
    cluster.verified(pod.name, "sha256:" + "ab" * 32)
    cluster.report(pod.name, BASE, {a: digest_of(a) for a in ADAPTERS}, address=pod.address)


def _answers(rollout: Json) -> float:
    """Answers of the candidate that its verdict names."""
    evidence = rollout["verdicts"][0]["evidence"]
    found = re.search(r"([0-9]+) of ([0-9]+) \(", evidence)
    assert found is not None, evidence
    return float(found[2])


async def _run(server: ApiServer, folder: Path, runs: int, bad: int) -> tuple[dict[str, Json], dict[str, Json]]:
    """How the rollouts of equal revisions ended, and those of bad candidates."""
    cluster = Cluster(server, "canaries")
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(Engine("pod-0", keep=1))
        _prepare(cluster, pod)
        gateway = await stack.enter_async_context(GatewayProcess(server, folder, name="gateway-0"))
        stack.enter_context(
            OperatorProcess(server, folder / "operator", gateways=gateway.entry, prelude=PODS_ON_LOOPBACK)
        )
        await gateway.ready()
        world = World(cluster, gateway)
        worse = {f"bad-{share}-{n:02}": f"bad-{share}" for share in (20, 100) for n in range(bad)}
        rejected = await world.course(worse, [5], BAD_WITHIN)
        equal = {f"equal-{n:02}": "as-good" for n in range(runs)}
        unharmed = await world.course(equal, [30, 60], WITHIN)
    return unharmed, rejected


def main(arguments: list[str]) -> int:
    """Measure and write the figures; the exit code tells whether one was rolled back that should not, or not over."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis_envoy", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--bad", type=int, default=BAD)
    given = parser.parse_args(arguments)
    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="canaries-") as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(ApiServer(folder=Path(folder)))
        server.install_crds()
        server.namespace(NAMESPACE)
        equal, worse = asyncio.run(_run(server, Path(folder), given.runs, given.bad))
    wrong = [r for r in equal.values() if r.get("verdicts")]
    for rollout in wrong:
        print("rolled back:", rollout["verdicts"][0]["evidence"])
    open_ = [n for n, r in equal.items() if not r.get("verdicts") and r.get("stable") != CANDIDATE]
    for name in open_:
        waits = equal[name].get("analysis") or {}
        print(
            f"{name} is not over: {equal[name].get('weight')} %, {waits.get('stableBroken') or waits.get('sentence')}"
        )
    figures = {"false_rollbacks": float(len(wrong)), "runs": float(given.runs), "unfinished": float(len(open_))}
    spread, missed = {}, 0
    for share in (100, 20):
        of_it = [r for n, r in worse.items() if n.startswith(f"bad-{share}-")]
        counts = [_answers(r) for r in of_it if r.get("verdicts")]
        missed += len(of_it) - len(counts)
        if counts:
            figures[f"median_requests_{share}"] = percentile(counts, 0.5)
            spread[f"median_requests_{share}"] = f"{min(counts):.0f} to {max(counts):.0f}"
    figures |= {"bad_not_rejected": float(missed), "seconds": time.monotonic() - began}
    return write(
        "analysis_envoy",
        figures,
        {"false_rollbacks": "runs", "runs": "runs", "unfinished": "runs", "bad_not_rejected": "runs", "seconds": "s"}
        | dict.fromkeys(("median_requests_100", "median_requests_20"), "requests"),
        targets={"false_rollbacks": "0", "unfinished": "0", "bad_not_rejected": "0"},
        spread=spread,
        note=f"{given.runs} rollouts of equal revisions at once (30 %, 60 %, 100 %), {given.bad} of each bad kind "
        f"(5 %), through one real Envoy at {RATE:.0f} requests/s; steps held 5 s, bakeTime 20 s. Load average before: "
        f"{load:.1f}.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
