"""How long after a decision to roll back no new request reaches the candidate, and whether a request notices.

A real API server, the operator, two gateways (all of them real processes, with real Envoys) and two fake engines, under
traffic of which half streams. Two ways back:
- a decision: a candidate at 50 % of a rollout by steps is aborted, by the command that the CLI and Argo CD give. It
  counts from before the command is sent, so with the operator's own part, to the later of: every gateway's Envoy has
  acknowledged the weight 0; the last request for the candidate has come to an engine;
- an edit: spec.traffic goes from 100 % of v2 back to v1, whose adapter is loaded.

python -m benchmarks.rollback [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, becomes, digest_of, engine_name_of
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
from tests.traffic import Load, Summary, Traffic
from tuneyard.api import names
from tuneyard.api.documents import AppliedDeployment
from tuneyard.systems.kube.client import MERGE

ROUNDS = 50
QUIET = 0.3
"""Seconds without a request for the candidate after which none is on its way."""
RATE = 60.0
"""Requests per second and gateway, half of them for each deployment."""
BASE, STEPPED, EDITED = "tiny", "stepped", "edited"


@dataclass
class World:
    """Two deployments of v1 and v2 on two pods, behind two gateways."""

    cluster: Cluster
    gateways: list[GatewayProcess] = field(default_factory=list)
    pods: list[Upstream] = field(default_factory=list)

    def change(self, deployment: str, **body: Any) -> None:
        """A patch of the object."""
        path = self.cluster.path("modeldeployments", deployment)
        self.cluster.api.request("PATCH", path, body=body, content_type=MERGE)

    async def served(self, deployment: str, holds: Callable[[AppliedDeployment], bool]) -> None:
        """Until every gateway's Envoy serves what holds."""
        key = f"{self.cluster.namespace}/{deployment}"
        await asyncio.gather(*(g.serves(key, holds, within=30) for g in self.gateways))

    async def phase(self) -> str | None:
        """Of the rollout by steps."""
        status = await asyncio.to_thread(self.cluster.status, "ModelDeployment", STEPPED)
        phase: str | None = (status.get("rollout") or {}).get("phase")
        return phase

    def last_asked(self, deployment: str) -> float:
        """When a request for its v2 has come to an engine."""
        return max(p.arrived.get(engine_name_of(f"{deployment}-v2"), 0.0) for p in self.pods)

    async def gone(self, deployment: str, began: float) -> float:
        """Seconds until no gateway sends a new request to v2; called when its weight is taken away."""
        await self.served(deployment, lambda said: not said.weights.get("v2"))
        seen = time.perf_counter()
        await asyncio.sleep(QUIET)  # who says 0 and sends another one all the same is found out here
        last = self.last_asked(deployment)
        if last > time.perf_counter() - QUIET / 2:
            raise SystemExit(f"{deployment}: requests for v2 still come {QUIET} s after every gateway said 0 %")
        return max(seen, last) - began

    async def asked_again(self, deployment: str) -> None:
        """Until requests for v2 come."""
        began = time.perf_counter()

        async def again() -> bool:
            return self.last_asked(deployment) > began

        await becomes(again, True, f"{deployment}: requests for v2 come")


async def _decision(world: World, number: int) -> float:
    token = f"round-{number}"
    await asyncio.to_thread(world.change, STEPPED, spec={"rollout": {"retryToken": token}})
    await world.served(STEPPED, lambda said: said.weights.get("v2") == 50)
    await world.asked_again(STEPPED)
    command = json.dumps({"id": token, "action": "abort", "revision": "v2"})
    began = time.perf_counter()
    await asyncio.to_thread(world.change, STEPPED, metadata={"annotations": {names.ANNOTATION_COMMAND: command}})
    return await world.gone(STEPPED, began)


async def _edit(world: World) -> float:
    def traffic(v2: int) -> dict[str, Any]:
        return {"traffic": [{"revision": "v1", "weight": 100 - v2}, {"revision": "v2", "weight": v2}]}

    await asyncio.to_thread(world.change, EDITED, spec=traffic(100))
    await world.served(EDITED, lambda said: said.weights.get("v2") == 100)
    await world.asked_again(EDITED)
    began = time.perf_counter()
    await asyncio.to_thread(world.change, EDITED, spec=traffic(0))
    return await world.gone(EDITED, began)


def _apply(world: World) -> None:
    """What users apply, and the pods that their agents speak for."""
    cluster = world.cluster
    cluster.apply("BaseModel", BASE, BASE_SPEC)
    adapters = [f"{d}-{r}" for d in (STEPPED, EDITED) for r in ("v1", "v2")]
    for adapter in adapters:
        cluster.apply("LoRAAdapter", adapter, {**adapter_spec(BASE, adapter), "digest": digest_of(adapter)})
    for pod in world.pods:
        cluster.pod(pod.name, BASE)
        cluster.verified(pod.name, "sha256:" + "ab" * 32)
        cluster.report(pod.name, BASE, {a: digest_of(a) for a in adapters}, address=pod.address)
    rollout = {"mode": "Progressive", "steps": [{"weight": 50, "hold": "1h"}]}
    for deployment, more in ((STEPPED, {"rollout": rollout}), (EDITED, {})):
        of: dict[str, str | None] = {r: f"{deployment}-{r}" for r in ("v1", "v2")}
        cluster.apply("ModelDeployment", deployment, {**deployment_spec(BASE, {"v1": 100, "v2": 0}, of), **more})


async def _run(server: ApiServer, folder: Path, rounds: int) -> tuple[list[float], list[float], list[Summary]]:
    world = World(Cluster(server, "rollback"))
    async with AsyncExitStack() as stack:
        world.pods = [await stack.enter_async_context(Upstream(name)) for name in ("pod-a", "pod-b")]
        _apply(world)
        for name in ("gateway-0", "gateway-1"):
            world.gateways.append(await stack.enter_async_context(GatewayProcess(server, folder, name=name)))
        stack.enter_context(
            OperatorProcess(
                server,
                folder / "operator",
                gateways=",".join(g.entry for g in world.gateways),
                prelude=PODS_ON_LOOPBACK,
            )
        )
        for gateway in world.gateways:
            await gateway.ready()
        for deployment in (STEPPED, EDITED):
            await world.served(deployment, lambda said: said.weights.get("v1") == 100)
        await becomes(world.phase, "Completed", "v1 is stable")
        goal = {"traffic": [{"revision": "v1", "weight": 0}, {"revision": "v2", "weight": 100}]}
        await asyncio.to_thread(world.change, STEPPED, spec=goal)
        models = [f"{world.cluster.namespace}/{d}" for d in (STEPPED, EDITED)]
        load = Load(models, rate=RATE, body={"chunks": 10, "delay": 0.02})
        traffics = [await stack.enter_async_context(Traffic(g.url, load)) for g in world.gateways]
        await world.served(STEPPED, lambda said: said.weights.get("v2") == 50)
        decisions, edits = [], []
        for number in range(rounds):
            decisions.append(await _decision(world, number))
            edits.append(await _edit(world))
        for traffic in traffics:
            await traffic.stop()
        return decisions, edits, [t.summary() for t in traffics]


def main(arguments: list[str]) -> int:
    """Measure, write and print; fails when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollback", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    with ApiServer() as server, tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        server.install_crds()
        server.namespace(NAMESPACE)
        decisions, edits, summaries = asyncio.run(_run(server, Path(folder), given.rounds))
    figures: dict[str, Any] = {
        "decision_p50_seconds": percentile(decisions, 0.5),
        "decision_p99_seconds": percentile(decisions, 0.99),
        "edit_p50_seconds": percentile(edits, 0.5),
        "edit_p99_seconds": percentile(edits, 0.99),
        "failed_requests": sum(s.failed + s.cut + s.skipped for s in summaries),
        "requests": sum(s.requests for s in summaries),
    }
    code = write(
        "rollback",
        figures,
        {name: "s" for name in figures if name.endswith("_seconds")},
        targets={
            "decision_p50_seconds": "<= 0.1",
            "decision_p99_seconds": "<= 0.5",
            "edit_p99_seconds": "<= 0.5",
            "failed_requests": "0",
        },
        spread={
            "decision_p50_seconds": f"{min(decisions):.3f} to {max(decisions):.3f}",
            "edit_p50_seconds": f"{min(edits):.3f} to {max(edits):.3f}",
        },
        note=f"{given.rounds} rounds; from before the command or edit is sent until no gateway sends a new request to "
        "the candidate; real API server, operator, 2 gateways with Envoy, fake engines.",
    )
    for summary in summaries:
        print(summary)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
