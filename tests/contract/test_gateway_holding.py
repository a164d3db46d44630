"""Requests for what is not loaded: held in Envoy until it is, or told in words why not; the operator is played here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team, becomes, engine_name_of
from tests.fakes.upstream import Upstream
from tuneyard.api.documents import DemandReport
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem
from tuneyard.planning.revisions import withheld_for

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

IDLE, WAKING = {"idleSince": "2026-01-01T00:00:00Z"}, {"wakingSince": "2026-01-01T01:00:00Z"}
Answer = tuple[int, str]
"""Status, and what answered: the engine's name, or the words of the refusal."""


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


@pytest.fixture
def environment() -> dict[str, str]:
    return {}


@pytest.fixture
async def gateway(
    apiserver: ApiServer, team: Team, tmp_path: Path, environment: dict[str, str]
) -> AsyncIterator[GatewayProcess]:
    settings = {"watchNamespaces": [team.namespace]}
    async with GatewayProcess(apiserver, tmp_path, settings=settings, environment=environment) as running:
        yield running


def limits(**limits: float) -> Any:
    given = {f"TUNEYARD_HOLD_{name.upper()}": str(number) for name, number in limits.items()}
    return pytest.mark.parametrize("environment", [given], ids=[""])


async def asleep(gateway: GatewayProcess, team: Team, pod: Upstream, *models: str, pinned: bool = True) -> None:
    """Idle deployments of one adapter each, on a pod that has none of them."""
    team.make_pod(pod)
    for model in models:
        team.make_adapter(model, pinned=pinned)
        team.make_deployment(model, {model: 100})
        team.sleep(model, **IDLE)
    for model in models:
        await gateway.applies(f"{team.namespace}/{model}", {model: 100})


async def ask(gateway: GatewayProcess, model: str, **more: Any) -> Answer:
    """The answer to a request, after its whole body has come."""
    status, headers, body = await gateway.rig.post({"messages": [], "model": model, **more})
    if status != 200:
        assert headers["retry-after"] == "5"
        error = json.loads(body)["error"]
        assert (error["code"], error["type"], error["param"]) == ("model_not_ready", "server_error", "model")
        return status, error["message"]
    if more.get("stream"):
        assert body.endswith(b"data: [DONE]\n\n")
        body = body.split(b"\n", 1)[0].removeprefix(b"data: ")
    return status, json.loads(body)["model"]


def asking(gateway: GatewayProcess, model: str, count: int, **more: Any) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(ask(gateway, model, **more)) for _ in range(count)]


def waiting(team: Team, model: str, count: int) -> Callable[[DemandReport], bool]:
    def holds(report: DemandReport) -> bool:
        told = report.deployments.get(f"{team.namespace}/{model}")
        return told is not None and told.waiting == count

    return holds


async def held(gateway: GatewayProcess, count: int) -> None:
    await becomes(gateway.held, count, f"{count} requests wait")


async def test_held_requests_are_answered_whole_when_the_adapter_comes(
    gateway: GatewayProcess, team: Team, pod: Upstream
) -> None:
    await asleep(gateway, team, pod, "v1")
    before = (await gateway.demand()).version
    whole = asking(gateway, "v1", 25, padding="ü" * 50_000)
    streams = asking(gateway, "v1", 25, stream=True, chunks=5)
    report = await gateway.demands(lambda r: r.version > before and waits(r, team, "v1"), "somebody waits")
    await held(gateway, 50)
    assert (await gateway.demand()).version <= report.version + 2, "fifty requests are one signal, not fifty"
    assert not pod.received
    team.sleep("v1", **WAKING)
    await held(gateway, 50)
    began = time.monotonic()
    team.report(pod, "v1")
    assert set(await asyncio.gather(*whole, *streams)) == {(200, engine_name_of("v1"))}
    assert time.monotonic() - began < 5
    assert {r.json["model"] for r in pod.received} == {engine_name_of("v1")}
    assert sorted({len(r.json.get("padding", "")) for r in pod.received}) == [0, 50_000]
    await gateway.demands(waiting(team, "v1", 0), "nobody waits")
    applied = await gateway.applies(f"{team.namespace}/v1", {"v1": 100})
    assert applied.deployments[f"{team.namespace}/v1"].held == []
    team.sleep("v1")
    assert await ask(gateway, "v1") == (200, engine_name_of("v1"))


def waits(report: DemandReport, team: Team, model: str) -> bool:
    told = report.deployments.get(f"{team.namespace}/{model}")
    return told is not None and 0 < told.waiting == sum(r.waiting for r in told.revisions.values())


async def test_each_share_waits_for_its_own_revision(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    """One that is there answers at once."""
    for adapter in ("v1", "v2"):
        team.make_adapter(adapter)
    team.make_pod(pod)
    team.make_deployment("chat", {"v1": 50, "v2": 50}, routing={"allowRevisionHeader": True})
    team.sleep("chat", **WAKING)
    await gateway.applies(f"{team.namespace}/chat", {"v1": 50, "v2": 50})
    team.report(pod, "v1")

    async def chosen(revision: str) -> tuple[int, str | None]:
        status, headers, _ = await gateway.rig.post({"model": "chat"}, headers={"x-revision": revision})
        return status, headers.get("x-revision")

    second = asyncio.create_task(chosen("v2"))
    await held(gateway, 1)
    await becomes(lambda: chosen("v1"), (200, "v1"), "v1 answers")
    assert not second.done()
    team.report(pod, "v1", "v2")
    assert await second == (200, "v2")


@limits(seconds=2, requests=5, per_deployment=3)
async def test_limits_of_number_and_time(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    await asleep(gateway, team, pod, "v1", "v2")
    began = time.monotonic()
    first = asking(gateway, "v1", 3)
    await held(gateway, 3)
    too_many = (503, "Too many requests wait for this model to be loaded.")
    assert await ask(gateway, "v1") == too_many
    second = asking(gateway, "v2", 2)
    await held(gateway, 5)
    assert await ask(gateway, "v2") == too_many
    assert set(await asyncio.gather(*first, *second)) == {(503, "This model was not loaded in time.")}
    assert 2 <= time.monotonic() - began < 8
    await held(gateway, 0)
    (line,) = [t for t in (await gateway.page()).splitlines() if 'holds_total{outcome="too-many"}' in t]
    assert line.endswith(" 2.0")


@limits(per_deployment=2)
async def test_a_client_that_leaves_frees_its_place(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    await asleep(gateway, team, pod, "v1")
    leaving, staying = asking(gateway, "v1", 2)
    await held(gateway, 2)
    leaving.cancel()
    await held(gateway, 1)
    another = asyncio.create_task(ask(gateway, "v1"))
    await held(gateway, 2)
    team.report(pod, "v1")
    assert set(await asyncio.gather(staying, another)) == {(200, engine_name_of("v1"))}


async def test_nobody_waits_for_what_will_not_come(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    await asleep(gateway, team, pod, "full", "broken", "gone")
    full, broken, gone = (asyncio.create_task(ask(gateway, m)) for m in ("full", "broken", "gone"))
    await held(gateway, 3)
    began = time.monotonic()
    team.sleep("broken", reason="RankTooHigh")
    assert await broken == (503, "This model cannot be loaded at the moment.")
    team.delete("modeldeployments", "gone")
    assert (await gone)[0] == 503
    assert not full.done()
    no_place = withheld_for(Problem(Reason.POOL_FULL, "its pool is full"))
    full_status = {"revision": "full", "specWeight": 100, "weight": 100, "readyEndpoints": 0, "withheld": no_place}
    team.sleep("full", **WAKING, reason="PoolFull", traffic=[full_status])
    assert await full == (503, "This model cannot be loaded at the moment: its pool is full.")
    assert time.monotonic() - began >= 3, "room may be made in it"
    again = time.monotonic()
    assert (await ask(gateway, "full"))[0] == 503
    assert await ask(gateway, "broken") == (503, "This model is not ready: no pod serves it at the moment.")
    assert time.monotonic() - again < 1, "both say so at once"
    team.sleep("full", **IDLE)
    full = await held_again(gateway, "full")
    team.report(pod, "full")
    assert await full == (200, engine_name_of("full"))


async def held_again(gateway: GatewayProcess, model: str) -> asyncio.Task[Answer]:
    """A request that waits: those that come before the gateway knows that they may are refused at once."""
    async with asyncio.timeout(20):
        while True:
            request = asyncio.create_task(ask(gateway, model))
            while not request.done():
                if (await gateway.held()) == 1:
                    return request
            assert (await request)[0] == 503


async def test_an_adapter_that_nobody_has_ever_read(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    """Only its digest tells its name in the engine, and the routes that the request was given lack it."""
    await asleep(gateway, team, pod, "v1", pinned=False)
    first = asyncio.create_task(ask(gateway, "v1"))
    await held(gateway, 1)
    team.sleep("v1", **WAKING)
    team.pin("v1")
    team.report(pod, "v1")
    assert await first == (503, "This model has just been loaded for the first time; try again.")
    assert await ask(gateway, "v1") == (200, engine_name_of("v1"))


async def test_the_gateway_process_ends_while_requests_wait(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    """They may ask again, and wait again as soon as the next process is there."""
    await asleep(gateway, team, pod, "v1")
    first = asking(gateway, "v1", 20)
    await held(gateway, 20)
    gateway.kill()
    assert set(await asyncio.gather(*first)) == {(503, "This model was about to be loaded; try again.")}
    assert (await ask(gateway, "v1"))[0] == 503
    gateway.start()
    await gateway.ready()
    again = asking(gateway, "v1", 20)
    await held(gateway, 20)
    team.report(pod, "v1")
    assert set(await asyncio.gather(*again)) == {(200, engine_name_of("v1"))}
