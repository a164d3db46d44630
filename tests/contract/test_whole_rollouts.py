"""Rollouts that run by themselves, through everything that takes part: real operator, gateways, Envoys, API server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.rolloutworld import CANDIDATE, MODEL, STABLE, RolloutWorld
from tests.contract.test_status import environment
from tuneyard.planning.evidence import COMPARED

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

SLO = {"errorRate": "2%", "ttft": "1s"}


def steps(**analysis: Any) -> dict[str, Any]:
    found = {"slo": SLO, "minRequests": 40, "warmUp": "0s", **analysis}
    return {
        "mode": "Progressive",
        "steps": [{"weight": 20, "hold": "2s"}, {"weight": 50, "hold": "2s"}],
        "analysis": found,
    }


def failures(world: RolloutWorld) -> list[object]:
    """What went wrong that the fault did not do."""
    records = [r for t in world.traffics for r in t.records]
    return [r for r in records if r.fate != "ok" and r.revision != CANDIDATE]


async def test_a_good_candidate_takes_over_by_itself(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    async with RolloutWorld(operator_apiserver, tmp_path, steps()) as world, AsyncExitStack() as running:
        await world.ask_for(running, 20)
        world.spec(100)
        told = await world.until(lambda r: bool(r.get("analysis", {}).get("objectives")), "the evidence is told")
        assert {o["objective"] for o in told["analysis"]["objectives"]} <= {"errorRate", "ttft", *COMPARED}
        found = await world.until(lambda r: r["phase"] == "Completed", "the candidate is stable", within=120)
        assert (found["stable"], found.get("verdicts")) == (CANDIDATE, None)
        await running.aclose()
        assert not failures(world)


@pytest.mark.parametrize(
    ("fault", "objective"),
    [({"errors": 100}, "errorRate"), ({"errors": 25}, "errorRate"), ({"delay_ms": 1500}, "ttft")],
)
async def test_a_bad_candidate_is_rolled_back_by_itself(
    operator_apiserver: ApiServer, tmp_path: Path, fault: dict[str, int], objective: str
) -> None:
    rollout = steps()
    rollout["steps"] = [{"weight": 20, "hold": "1h"}]
    async with RolloutWorld(operator_apiserver, tmp_path, rollout) as world, AsyncExitStack() as running:
        await world.ask_for(running, 20)
        world.spoil(**fault)
        world.spec(100)
        found = await world.until(lambda r: r["phase"] == "RolledBack", "it is rolled back", within=120)
        (verdict,) = found["verdicts"]
        assert (verdict["revision"], verdict["reason"]) == (CANDIDATE, "AnalysisFailed")
        assert verdict["evidence"].startswith(f"{objective}: ")
        key = f"{world.cluster.namespace}/{MODEL}"
        for gateway in world.gateways:
            await gateway.applies(key, {STABLE: 100, CANDIDATE: 0})
        since = time.time()
        for traffic in world.traffics:
            await traffic.wait_for(40)
        await running.aclose()
        records = [r for t in world.traffics for r in t.records]
        assert CANDIDATE in {r.revision for r in records}
        assert {r.revision for r in records if r.start > since} == {STABLE}
        assert not failures(world)


async def test_an_operator_that_dies_in_the_middle_counts_nothing_twice_and_goes_on(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    async with RolloutWorld(operator_apiserver, tmp_path, steps()) as world, AsyncExitStack() as running:
        await world.ask_for(running, 20)
        world.spec(100)
        await world.until(lambda r: bool(r.get("analysis", {}).get("objectives")), "the evidence is told")
        world.operator.kill()
        for traffic in world.traffics:
            await traffic.wait_for(40)
        world.operator.start()
        told: list[Any] = []

        def over(rollout: Any) -> bool:
            if (rollout.get("analysis") or {}).get("objectives"):
                told.append(rollout)
            return bool(rollout["phase"] == "Completed")

        found = await world.until(over, "the candidate is stable", within=120)
        assert found["stable"] == CANDIDATE
        await running.aclose()
        sent = sum(r.revision == CANDIDATE for t in world.traffics for r in t.records)
        counted = [o["candidateJudged"] for o in told[-1]["analysis"]["objectives"] if o["objective"] == "errorRate"]
        assert 40 <= counted[0] <= sent
        assert not failures(world)


async def test_a_rehearsal_is_rolled_back_and_leaves_nothing(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    """`tuneyard drill` as people run it."""
    async with RolloutWorld(operator_apiserver, tmp_path, steps()) as world:
        before = world.cluster.get("ModelDeployment", MODEL)["spec"]
        command = [sys.executable, "-m", "tuneyard", "drill", MODEL, "-n", world.cluster.namespace, "-o", "json"]
        command += ["--gateway", world.gateways[0].url, "--rate", "20", "--weight", "25", "--within", "2m"]
        env = environment(KUBECONFIG=str(operator_apiserver.kubeconfig()))
        process = await asyncio.to_thread(
            subprocess.run, command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )
        assert process.returncode == 0, process.stderr
        told = json.loads(process.stdout)
        assert told["rolledBack"] is True
        assert told["reason"] == "AnalysisFailed"
        assert 0 < told["spoiled"] < told["requests"]
        assert 0 < told["secondsToDetect"] < 60
        assert world.cluster.get("ModelDeployment", MODEL)["spec"] == before
        left = world.cluster.api.request("GET", world.cluster.path("modeldeployments"))["items"]
        assert [d["metadata"]["name"] for d in left] == [MODEL]
