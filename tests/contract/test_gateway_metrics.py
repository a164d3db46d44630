"""The page that Prometheus reads of a gateway: its process's part and the real Envoy's."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import outside
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.fakes.upstream import Upstream

pytestmark = [pytest.mark.apiserver, pytest.mark.envoy]


def told(page: str) -> dict[tuple[str, str], float]:
    """(series without its prefix, revision) -> value, of the team's deployment."""
    return {
        (s.name.removeprefix("tuneyard_"), s.labels.get("revision", "")): s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
        if s.labels.get("deployment") == "chat" and "le" not in s.labels
    }


async def test_answers_routes_and_envoy_are_on_one_page(team: Team, gateway: GatewayProcess) -> None:
    async with Upstream("pod-a") as pod:
        team.make_adapter("v1")
        team.make_adapter("v2")
        team.make_pod(pod, "v1", "v2")
        team.make_deployment("chat", {"v1": 100, "v2": 0})
        await gateway.applies(f"{team.namespace}/chat", {"v1": 100, "v2": 0})
        assert (await gateway.rig.post({"model": "chat", "stream": True}))[0] == 200

        async def answered() -> float | None:
            return told(await gateway.page()).get(("requests_total", "v1"))

        await becomes(answered, 1, "the answer is counted")
        page = await gateway.page()
        found = told(page)
        assert found["time_to_first_token_seconds_count", "v1"] == 1
        assert {revision: found["gateway_revision_weight", revision] for revision in ("v1", "v2")} == {
            "v1": 100,
            "v2": 0,
        }
        assert {found["gateway_revision_endpoints", revision] for revision in ("v1", "v2")} == {1}
        assert found["gateway_unserved_percent", ""] == 0
        assert "process_resident_memory_bytes " in page

        # what was never used is not shown: a script that never failed has no series
        every = page + await gateway.rig.envoy.admin("/stats/prometheus")
        assert {line.partition("{")[0] for line in every.splitlines()} >= outside.ENVOY

        team.delete("modeldeployments", "chat")

        async def series() -> set[tuple[str, str]]:
            # whose tokens were counted has to pay for them also when he has deleted his deployment
            return {key for key in told(await gateway.page()) if not key[0].startswith("usage_")}

        await becomes(series, set(), "what is gone has no series")
