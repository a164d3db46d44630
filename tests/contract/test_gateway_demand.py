"""What the gateway process says is asked of it, from a real Envoy's load reports."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.fakes.upstream import Upstream
from tuneyard.api.documents import DemandReport, DeploymentDemand

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


def of(report: DemandReport, name: str) -> DeploymentDemand:
    """The gateway looks at one namespace only, so a name is enough."""
    by_name = {key.partition("/")[2]: found for key, found in report.deployments.items()}
    return by_name.get(name, DeploymentDemand())


async def ask(gateway: GatewayProcess, model: str, count: int) -> None:
    for _ in range(count):
        assert await gateway.answered_by(model) is not None


def under_way(report: DemandReport) -> float:
    revision = of(report, "busy").revisions.get("v1")
    return revision.in_flight if revision else 0.0


async def idle(gateway: GatewayProcess, name: str) -> bool:
    return of(await gateway.demand(), name).idle_seconds > 0


async def looked_at(gateway: GatewayProcess) -> bool:
    """Whether Envoy has reported twice since the last deployment is routed."""
    report = await gateway.demand()
    return len(report.deployments) == 4 and all(d.idle_seconds > 0 for d in report.deployments.values())


async def stream(gateway: GatewayProcess, ends: asyncio.Event) -> None:
    """A long answer, which its client leaves when told to."""
    body = {"model": "busy", "stream": True, "chunks": 10_000, "delay": 0.05}
    async with gateway.rig.session.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readany()
        await ends.wait()


async def test_it_counts_requests_and_streams_and_knows_who_is_idle_also_after_a_restart(
    gateway: GatewayProcess, team: Team
) -> None:
    async with Upstream("pod-a") as pod:
        for adapter in ("v1", "v2"):
            team.make_adapter(adapter)
        team.make_pod(pod, "v1", "v2")
        team.make_deployment("one", {"v1": 100, "v2": 0})
        team.make_deployment("two", {"v1": 0, "v2": 100})
        team.make_deployment("busy", {"v1": 100})
        team.make_deployment("silent", {"v1": 100})
        await gateway.applies(f"{team.namespace}/silent", {"v1": 100})
        await gateway.applies(f"{team.namespace}/two", {"v1": 0, "v2": 100})
        # what is sent before the first report after a cluster came is not counted
        await becomes(lambda: looked_at(gateway), True, "two reports")

        await asyncio.gather(ask(gateway, "one", 23), ask(gateway, "two", 40))
        counted = await gateway.demands(
            lambda r: "v1" in of(r, "one").revisions and "v2" in of(r, "two").revisions, "both are counted"
        )
        ends = asyncio.Event()
        streams = [asyncio.create_task(stream(gateway, ends)) for _ in range(8)]
        held = await gateway.demands(
            lambda r: under_way(r) > 5,
            "8 are under way",
        )
        assert {n: r.requests for n, r in of(held, "one").revisions.items()} == {"v1": 23}
        assert {n: r.requests for n, r in of(held, "two").revisions.items()} == {"v2": 40}
        assert under_way(held) <= 8
        assert of(held, "busy").revisions["v1"].requests == 8
        assert of(held, "busy").idle_seconds == 0
        assert of(held, "silent").idle_seconds > of(held, "one").idle_seconds > 1
        assert held.version > counted.version

        gateway.kill()
        gateway.start()
        await gateway.ready()
        again = await gateway.demands(lambda r: under_way(r) > 5, "again")
        assert 0 < of(again, "silent").idle_seconds < of(held, "silent").idle_seconds + 5
        assert of(again, "busy").idle_seconds == 0
        assert not of(again, "silent").revisions

        ends.set()
        await asyncio.gather(*streams)
        await becomes(lambda: idle(gateway, "busy"), True, "nothing is under way")
        assert await gateway.status_without("Bearer guessed", "/v1/demand") == 401
