"""POST /v1/feedback through real gateways: whichever is asked, it is attached to the revision that answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team
from tests.fakes.upstream import Upstream
from tuneyard.gateway.feedback import Given, Peers, Taken

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


@pytest.fixture
async def gateways(apiserver: ApiServer, team: Team, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Two of them; only the second one is known as the other gateway, under a name."""
    settings = {"watchNamespaces": [team.namespace]}
    async with GatewayProcess(apiserver, tmp_path, name="gateway-1", settings=settings) as second:
        environment = {"TUNEYARD_PEERS": f"localhost:{second.port}"}
        async with GatewayProcess(apiserver, tmp_path, settings=settings, environment=environment) as first:
            yield [first, second]


async def rate(gateway: GatewayProcess, body: object) -> tuple[int, str]:
    """Status, and the error's code."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, text = await gateway.rig.post(data, path="/v1/feedback")
    assert headers.get("retry-after") == ("5" if status == 503 else None)
    said = json.loads(text)
    return status, said["error"]["code"] if "error" in said else said["object"]


def counted(team: Team, revision: str, count: tuple[int, int]):
    def holds(report):
        found = report.deployments.get(f"{team.namespace}/support")
        tallies = found.counts.get(revision, {}).get("feedback", {}) if found else {}
        return tuple(tallies.get(0, ()))[:2] == count

    return holds


async def test_feedback_finds_the_revision_that_answered_through_any_gateway(
    gateways: list[GatewayProcess], team: Team
) -> None:
    first, second = gateways
    async with Upstream("pod-a") as pod:
        for name in ("v1", "v2"):
            team.make_adapter(name)
        team.make_pod(pod, "v1", "v2")
        slo = {"feedback": "5%"}
        team.make_deployment(
            "support",
            {"v1": 100, "v2": 0},
            rollout={"analysis": {"slo": slo}},
            routing={"allowRevisionHeader": True},
        )
        for gateway in gateways:
            await gateway.applies(f"{team.namespace}/support", {"v1": 100, "v2": 0})

        ids = []
        for gateway, headers in ((first, {}), (first, {"x-request-id": "my-own"}), (second, {}), (second, {})):
            status, answered, _ = await gateway.rig.post({"model": "support"}, headers=headers)
            assert status == 200
            ids.append(answered["x-request-id"])
        assert ids[1] == "my-own"
        # at once: before Envoy has told of the answers
        assert await rate(first, {"request_id": ids[0], "score": -1, "text": "rude"}) == (202, "feedback")
        assert await rate(first, {"request_id": "my-own", "score": 0.5}) == (202, "feedback")
        assert await rate(first, {"request_id": ids[2], "score": -0.5}) == (202, "feedback")
        assert await rate(second, {"request_id": ids[3], "score": 1}) == (202, "feedback")
        for gateway in gateways:
            await gateway.evidences(counted(team, "v1", (2, 1)), "two ratings each")

        assert await rate(first, {"request_id": ids[2], "score": 1}) == (409, "already_rated")
        assert await rate(first, {"request_id": "nobody's", "score": 1}) == (404, "request_not_found")
        assert await rate(first, {"request_id": ids[0], "score": 2}) == (400, "invalid_body")
        assert await rate(first, b"{") == (400, "invalid_body")
        assert await rate(first, b'"' + b"x" * 33_000 + b'"') == (413, "request_too_large")
        assert (await first.rig.get("/v1/feedback"))[0] == 404

        _, answered, _ = await first.rig.post({"model": "support"}, headers={"x-revision": "v2"})
        assert await rate(first, {"request_id": answered["x-request-id"], "score": -1}) == (202, "feedback")
        page = await first.page()
        assert 'revision="v2",rating="bad"} 1\n' in page
        assert "v2" not in (await first.evidence()).deployments[f"{team.namespace}/support"].counts

        # what answered has the revision's name no more
        _, answered, _ = await first.rig.post({"model": "support"})
        key = f"{team.namespace}/support"
        before = (await first.evidence()).deployments[key].contents
        team.replace_adapter("v1")
        await first.evidences(lambda r: r.deployments[key].contents["v1"] != before["v1"], "another v1")
        assert await rate(first, {"request_id": answered["x-request-id"], "score": -1}) == (202, "feedback")
        found = (await first.evidence()).deployments[key]
        assert (found.counts["v1"]["feedback"][0][:2], found.contents["v2"]) == ((2, 1), before["v2"])

        # who does not know the token is told nothing, and changes nothing
        wrong = Peers(f"localhost:{second.port}", "guessed")
        assert await wrong.ask(Given(ids[3], 1)) is Taken.UNAVAILABLE
        await wrong.close()

        second.kill()
        # it may have been the other's, which may come back
        assert await rate(first, {"request_id": "of the other", "score": 1}) == (503, "unavailable")
        assert await rate(second, {"request_id": ids[3], "score": 1}) == (503, "unavailable")
