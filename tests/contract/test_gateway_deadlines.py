"""Deadlines and clients that leave, through the real gateway and a pod's real front: no engine generates for nobody."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.envoy import Front, Rig, eventually, model, revision
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_evidence import SLO, tallies
from tests.contract.test_gateway_holding import IDLE
from tests.fakes.generating import TICK, GeneratingEngine
from tests.fakes.upstream import Upstream
from tuneyard.planning.routes import ModelRoutes

pytestmark = pytest.mark.envoy

LONG: dict[str, Any] = {"model": "support", "max_tokens": 1000, "messages": []}
"""Ten seconds' work."""


@pytest.fixture
async def engine() -> AsyncIterator[GeneratingEngine]:
    async with GeneratingEngine() as running:
        yield running


def routes(front: Front, timeout: int | None = None) -> ModelRoutes:
    return replace(model("support", revision("v1", 100, [front.address])), timeout=timeout)


async def stopped(engine: GeneratingEngine, after: float) -> None:
    """The engine works for nobody any more, and has not worked for much longer than that."""
    await eventually(lambda: not engine.running, "the engine has stopped", within=5)
    assert engine.tokens <= (after + 0.4) / TICK
    before = engine.tokens
    await asyncio.sleep(10 * TICK)
    assert engine.tokens == before
    engine.tokens = 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_engine(tmp_path: Path, engine: GeneratingEngine, stream: bool) -> None:
    async with Front(tmp_path, engine.port) as front, Rig(tmp_path) as rig:
        await rig.serve(routes(front))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await rig.post({**LONG, "stream": stream})
        await stopped(engine, 0.3)
        assert engine.asked == 1


async def test_the_deployments_deadline(tmp_path: Path, engine: GeneratingEngine) -> None:
    async with Front(tmp_path, engine.port) as front, Rig(tmp_path) as rig:
        await rig.serve(routes(front, timeout=1))
        began = time.monotonic()
        status, headers, answer = await rig.post(LONG)
        assert 0.9 < time.monotonic() - began < 2
        assert (status, headers["content-type"]) == (504, "application/json")
        assert json.loads(answer)["error"] == {
            "message": "The answer did not come in time.",
            "type": "server_error",
            "param": None,
            "code": "timeout",
        }
        await stopped(engine, 1)
        # of a stream that has begun there is no more, and it does not look whole
        with pytest.raises(aiohttp.ClientPayloadError):
            await rig.post({**LONG, "stream": True})
        await stopped(engine, 1)
        assert engine.asked == 2, "nobody is asked once more"
        assert (await rig.post({**LONG, "max_tokens": 50}))[0] == 200


async def test_a_client_may_ask_for_less_and_never_for_more(tmp_path: Path, engine: GeneratingEngine) -> None:
    async with Front(tmp_path, engine.port) as front, Rig(tmp_path) as rig:

        async def asked(said: str, seconds: float) -> None:
            began = time.monotonic()
            status, _, answer = await rig.post(LONG, headers={"grpc-timeout": said})
            assert (status, json.loads(answer)["error"]["code"]) == (504, "timeout"), said
            assert seconds - 0.1 < time.monotonic() - began < seconds + 0.5, said

        await rig.serve(routes(front))
        for said in ("0S", "300m", "300000u"):
            await asked(said, 0.3 if "3" in said else 0.0)
            await stopped(engine, 0.3)
        await rig.serve(routes(front, timeout=1))
        await asked("300m", 0.3)
        await stopped(engine, 0.3)
        nonsense = ("5M", "99999999H", "123456789S", "-1S", "1", "soon", "", "1S, 5M", "\t")
        await asyncio.gather(*(asked(said, 1.0) for said in nonsense))
        await stopped(engine, 1.0 * len(nonsense))


async def test_an_engine_that_is_silent(tmp_path: Path) -> None:
    """What comes between two tokens may take long in all, if only something comes."""
    async with Upstream("pod") as pod, Rig(tmp_path) as rig:
        await rig.serve(replace(model("support", revision("v1", 100, [pod.address])), idle_timeout=1))
        began = time.monotonic()
        status, _, answer = await rig.post({"model": "support", "first": 5})
        assert (status, json.loads(answer)["error"]["code"]) == (504, "timeout")
        assert 0.9 < time.monotonic() - began < 2
        talking = {"model": "support", "stream": True, "chunks": 5, "delay": 0.5}
        assert (await rig.post(talking))[0] == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await rig.post({**talking, "delay": 3})
        assert len(pod.received) == 3


async def test_clients_in_a_hurry_take_no_pod_from_others(tmp_path: Path) -> None:
    """A deadline says nothing against the pod."""
    async with Upstream("a") as a, Upstream("b") as b, Rig(tmp_path) as rig:
        await rig.serve(replace(model("support", revision("v1", 100, [a.address, b.address])), timeout=1))
        slow = {"model": "support", "first": 3}
        hurried = [rig.post(slow, headers={"grpc-timeout": "50m"}) for _ in range(20)]
        told = await asyncio.gather(*hurried, *(rig.post(slow) for _ in range(20)))
        assert {status for status, _, _ in told} == {504}
        assert len(a.received) + len(b.received) == 40, "and is not tried elsewhere"
        assert await rig.envoy.stat(r"cluster\..*\.outlier_detection\.ejections_enforced_total") == 0
        before = len(a.received), len(b.received)
        await asyncio.gather(*(rig.post({"model": "support"}) for _ in range(40)))
        assert len(a.received) > before[0] + 5
        assert len(b.received) > before[1] + 5


@pytest.mark.apiserver
async def test_from_the_object_to_the_judge(gateway: GatewayProcess, team: Team) -> None:
    """A deployment's deadline that passes is an error of its revision; a client's own is a client that left.

    And waiting for an adapter counts.
    """
    team.make_adapter("v1")
    team.make_adapter("cold")
    analysis = {"analysis": {"slo": SLO}}
    async with Upstream("pod") as pod:
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100}, routing={"timeout": "1s"}, rollout=analysis)
        team.make_deployment("idle", {"cold": 100}, routing={"timeout": "1s"})
        await gateway.judges(f"{team.namespace}/support", {"v1": 100})
        slow = {"model": "support", "first": 5}
        for headers in ({}, {"grpc-timeout": "1H"}, {"grpc-timeout": "200m"}, {"grpc-timeout": "300m"}):
            assert (await gateway.rig.post(slow, headers=headers))[0] == 504

        async def counted() -> tuple[int, int] | None:
            report = await gateway.evidence()
            found = tallies(report, team, "support", "v1", named=False).get("clientsLeft")
            errors = tallies(report, team, "support", "v1").get("errorRate")
            return (found[1], errors[1]) if found and errors else None

        await becomes(counted, (2, 2), "two of each")

        team.sleep("idle", **IDLE)
        await gateway.serves(f"{team.namespace}/idle", lambda found: found.weights == {"cold": 100})
        began = time.monotonic()
        status, _, answer = await gateway.rig.post({"model": "idle"})
        assert (status, json.loads(answer)["error"]["code"]) == (504, "timeout")
        assert 0.9 < time.monotonic() - began < 2
        await becomes(gateway.held, 0, "its place is free again")
