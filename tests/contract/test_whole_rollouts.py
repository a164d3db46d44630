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
from tests.contract.operator_process import Object, eventually
from tests.contract.rolloutworld import BASE, CANDIDATE, MODEL, NEXT, STABLE, RolloutWorld
from tests.contract.test_status import environment
from tests.statuses import judged_by
from tuneyard.api import names
from tuneyard.systems.kube import objects

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
        await world.until(lambda r: judged_by(r) >= {"errorRate", "ttft"}, "both objectives judge both")
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


def lasting(rollout: Object) -> Object:
    """What of the position and of the verdicts an operator's end may not change; evidence only grows."""
    return {key: value for key, value in rollout.items() if key != "analysis"}


async def dies(world: RolloutWorld) -> None:
    """The operator is killed in whatever phase that is, and another process begins: nobody notices."""
    before, served = await world.status(), await world.served()
    world.operator.kill()
    records = await world.answered(20)
    assert await world.served() == served, "gateways go on by themselves"
    world.operator.start()
    passes = 'kind="ModelDeployment"'
    await asyncio.to_thread(
        eventually, lambda: world.operator.metric("tuneyard_reconcile_passes_total", passes) >= 1, "it looks again"
    )
    records += await world.answered(20)
    assert lasting(await world.status()) == lasting(before)
    assert await world.served() == served
    assert {r.revision for r in records} == set(served[0])


HELD: Object = {"mode": "Progressive", "steps": [{"weight": 20, "hold": "1h"}, {"weight": 50, "hold": "1s"}]}
QUICK: Object = {"mode": "Progressive", "steps": [{"weight": 20, "hold": "1s"}, {"weight": 50, "hold": "1s"}]}


async def test_an_operator_that_dies_while_paused_or_baking_goes_on_when_it_may(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    async with RolloutWorld(operator_apiserver, tmp_path, {**HELD, "bakeTime": "1h"}) as world:
        async with AsyncExitStack() as running:
            await world.ask_for(running, 20)
            world.spec(100)
            await world.until(lambda r: bool(r.get("stepStartedAt")), "the step holds")
            world.command("pause")
            await world.until(lambda r: r["phase"] == "Paused", "it is paused")
            # the hold is over by now: only the pause keeps it where it is
            world.spec(100, **QUICK)
            await dies(world)
            assert await world.served() == [{STABLE: 80, CANDIDATE: 20}] * 2
            world.command("resume")
            await world.until(lambda r: r["phase"] == "Baking" and "stepStartedAt" in r, "it bakes")
            await dies(world)
            assert (await world.status())["stable"] == STABLE
            assert await world.served() == [{CANDIDATE: 100}] * 2
            world.spec(100, bakeTime="1s")
            found = await world.until(lambda r: r["phase"] == "Completed", "it has baked for longer")
            assert found["stable"] == CANDIDATE
        assert not failures(world)


async def test_an_operator_that_dies_while_inconclusive_or_rolled_back_goes_on_when_it_may(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    analysis = {"slo": SLO, "minRequests": 100_000, "warmUp": "0s"}
    async with RolloutWorld(operator_apiserver, tmp_path, {**QUICK, "analysis": analysis}) as world:
        async with AsyncExitStack() as running:
            await world.ask_for(running, 20)
            world.spec(100)
            found = await world.until(
                lambda r: r["phase"] == "Inconclusive" and bool(r["analysis"].get("inconclusiveSince")), "it waits"
            )
            await dies(world)
            now = await world.status()
            assert now["analysis"]["since"] == found["analysis"]["since"]
            assert now["analysis"]["inconclusiveSince"] >= found["analysis"]["inconclusiveSince"]
            assert await world.served() == [{STABLE: 80, CANDIDATE: 20}] * 2
            long = [QUICK["steps"][0], {"weight": 50, "hold": "1h"}]
            world.spec(100, steps=long, analysis={**analysis, "minRequests": 10})
            await world.until(lambda r: r.get("weight") == 50, "the evidence is enough for the next step")
            world.command("abort")
            await world.until(lambda r: r["phase"] == "RolledBack", "it is rolled back")
            for gateway in world.gateways:
                await gateway.applies(f"{world.cluster.namespace}/{MODEL}", {STABLE: 100, CANDIDATE: 0})
            await dies(world)
            (verdict,) = (await world.status())["verdicts"]
            assert (verdict["revision"], verdict["reason"]) == (CANDIDATE, "Aborted")
            world.spec(100, retryToken="once more")
            await world.until(lambda r: r.get("weight") == 20 and not r.get("verdicts"), "it begins again")
        assert not failures(world)


async def tuneyard(world: RolloutWorld, *command: str) -> Object:
    """What the command line says of the model."""
    given = [sys.executable, "-m", "tuneyard", *command, MODEL, "-n", world.cluster.namespace, "-o", "json"]
    env = environment(KUBECONFIG=str(world.cluster.server.kubeconfig()))
    process = await asyncio.to_thread(
        subprocess.run, given, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return dict(json.loads(process.stdout))


async def rolled_back(world: RolloutWorld, revision: str, reason: str, words: str) -> None:
    """The verdict is there and everybody is told; stable answers everything."""
    found = await world.until(
        lambda r: r["phase"] == "RolledBack" and r["candidate"] == revision, f"{revision} is rolled back"
    )
    verdict, *older = found["verdicts"]
    assert (verdict["revision"], verdict["reason"]) == (revision, reason)
    assert words in verdict["evidence"]
    cluster = world.cluster

    def told() -> bool:
        kept = json.loads((cluster.child("configmaps/chat-verdicts") or {"data": {}})["data"].get("record.json", "{}"))
        events = objects.listed(cluster.api, "events.k8s.io/v1", "Event", cluster.namespace)
        return kept.get("verdicts") == [verdict, *older] and any(
            e["reason"] == "RolledBack" and e["type"] == "Warning" and words in e["note"] for e in events
        )

    await asyncio.to_thread(eventually, told, "the record and an event", 20)
    assert cluster.condition("ModelDeployment", MODEL, "Stalled") == ("True", "CandidateRejected")
    shown = await tuneyard(world, "rollout", "status")
    assert (shown["phase"], shown["stable"], shown["verdicts"]) == ("RolledBack", STABLE, [verdict, *older])
    assert f"{revision} is rejected ({reason}: " in shown["message"]
    outcomes = [(o["revision"], o["outcome"], o.get("reason")) for o in (await tuneyard(world, "history"))["outcomes"]]
    assert outcomes[-1] == (revision, "Rejected", reason)
    assert {r.revision for r in await world.answered(20)} == {STABLE}


BAD_SETTING = {"replicas": 1, "extraArgs": ["--no-such-flag"]}
ENDED = {"exitCode": 2, "reason": "Error", "message": "unrecognized arguments: --no-such-flag"}
STATE = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ENDED}}
CRASHING = {"name": "engine", "image": "engine", "imageID": "", "ready": False, "restartCount": 2, **STATE}


async def test_a_broken_adapter_and_a_bad_engine_setting_are_rolled_back_and_the_next_candidate_goes_on(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    """Three commits: two candidates that cannot serve, and one that can."""
    async with RolloutWorld(operator_apiserver, tmp_path, HELD) as world, AsyncExitStack() as running:
        await world.ask_for(running, 20)
        world.report({"two": {"reason": "NonFiniteValues", "message": "a weight is NaN"}})
        world.spec(100)
        await rolled_back(world, CANDIDATE, "NonFiniteValues", "a weight is NaN")

        world.commit({STABLE: 0, CANDIDATE: 0, "own": 100}, own=BAD_SETTING)
        pool = names.pool_name(BASE, MODEL, "own")
        where = f"apps/v1:deployments/{names.pool_deployment(pool)}"
        await asyncio.to_thread(eventually, lambda: world.cluster.child(where), "its pool")
        world.cluster.pod("pod-own", BASE, pool)
        world.cluster.verified("pod-own", "sha256:" + "ab" * 32)
        world.cluster.pod_status("pod-own", {"containerStatuses": [CRASHING]})
        await rolled_back(world, "own", "EngineCrashed", "engine ended with exit code 2")

        world.commit({STABLE: 0, CANDIDATE: 0, NEXT: 100}, **QUICK)
        found = await world.until(lambda r: r["stable"] == NEXT and r["phase"] == "Completed", "the next one is stable")
        assert [v["revision"] for v in found["verdicts"]] == [CANDIDATE], "a verdict goes with its revision"
        await world.answered(20)
        await running.aclose()
        records = [r for t in world.traffics for r in t.records]
        assert {r.fate for r in records} == {"ok"}
        assert {r.revision for r in records} == {STABLE, NEXT}


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


async def test_a_rehearsal_that_a_cancelled_job_ends_leaves_nothing(
    operator_apiserver: ApiServer, tmp_path: Path
) -> None:
    async with RolloutWorld(operator_apiserver, tmp_path, steps()) as world:
        command = [sys.executable, "-m", "tuneyard", "drill", MODEL, "-n", world.cluster.namespace]
        # so slow that it has no verdict before it is ended
        command += ["--gateway", world.gateways[0].url, "--rate", "2", "--weight", "1", "--within", "5m"]
        env = environment(KUBECONFIG=str(operator_apiserver.kubeconfig()))
        process = await asyncio.create_subprocess_exec(*command, env=env, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        said = ""
        while "the candidate begins" not in said:
            line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert line, said
            said += line
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 130
        left = world.cluster.api.request("GET", world.cluster.path("modeldeployments"))["items"]
        assert [d["metadata"]["name"] for d in left] == [MODEL]
