"""The page that Prometheus reads of a gateway: its process's part and the real Envoy's."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import outside
from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_keys import CALLERS, KEY, bearer, put_keys
from tests.fakes.upstream import Upstream
from tuneyard.systems.envoy.tenancy import tenants_list_resources
from tuneyard.systems.envoy.translate import LIST

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


async def failures(rig: Rig) -> set[tuple[str, float]]:
    """Series of failures that alerts look at, as the gateways' page has them."""
    families = text_string_to_metric_families(await rig.envoy.admin("/stats/prometheus?usedonly"))
    samples = [s for f in families for s in f.samples if s.labels.get("envoy_http_conn_manager_prefix") == "gateway"]
    watched = {name for name in outside.ENVOY if "lua" in name or "denied" in name}
    # counters lose their suffix, and get it back where the page is read
    return {(s.name.removesuffix("_total"), s.value) for s in samples if s.name.removesuffix("_total") in watched}


async def test_a_script_that_fails_and_refuses_nobody_is_seen(tmp_path: Path) -> None:
    broken = "function envoy_on_response(handle) error('broken') end"
    async with Upstream("pod-a") as pod, Rig(tmp_path, scripts={"answer": broken}) as rig:
        await rig.serve(model("chat", revision("v1", 100, [pod.address])))
        assert await failures(rig) == set()
        assert (await rig.post({"model": "chat"}))[0] == 200
        assert await failures(rig) == {("envoy_http_lua_answer_errors", 1)}


async def test_a_list_of_models_that_fails_is_seen(tmp_path: Path) -> None:
    """It takes the place of `rewrite` on its route, by whose name it is counted."""
    async with Rig(tmp_path, keys=True) as rig:
        put_keys(rig, CALLERS)
        routes = model("chat", revision("v1", 100))
        await rig.serve(routes)
        listing = tenants_list_resources([routes])
        route = listing.routes[LIST]["virtual_hosts"][0]["routes"][0]
        source = route["typed_per_filter_config"]["rewrite"]["source_code"]
        source["inline_string"] = "function envoy_on_request(handle) error('broken') end"
        rig.ads.put(LIST, listing)
        rig.ads.publish()
        await eventually(lambda: rig.ads.complete, "Envoy has the broken script")
        status, _ = await rig.get("/v1/models", headers=bearer(KEY))
        assert status == 503, "Envoy says so of its own errors"
        assert ("envoy_http_lua_rewrite_errors", 1) in await failures(rig)
