"""Limits of tenants that hold across gateways: three real ones, whose clients go wherever they like."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_tenants import Vault, gateway_of
from tests.fakes.upstream import Upstream
from tuneyard.gateway.quotafleet import EVERY
from tuneyard.gateway.quotamonths import NAME

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

LIMITS: dict[str, dict[str, str]] = {
    "few": {"requestsPerMinute": "30"},
    "slots": {"concurrentRequests": "4"},
    "tokens": {"tokensPerMinute": "3000"},
    "month": {"tokensPerMonth": "2000"},
    "free": {},
}
STREAM = {"stream": True, "chunks": 93, "delay": 0.0, "max_tokens": 93}
"""Takes 100 tokens."""
Answer = tuple[int, Mapping[str, str], bytes]


def key_of(tenant: str) -> str:
    return f"sk-{tenant}-0123456789abcdef"


@pytest.fixture
async def gateways(apiserver: ApiServer, team: Team, tmp_path: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Three that serve `support`, and know each other."""
    vault = Vault(team.api, team.namespace)
    months = {"metadata": {"name": NAME}}
    team.api.request("POST", f"/api/v1/namespaces/{team.namespace}/configmaps", body=months)
    for tenant, limits in LIMITS.items():
        vault.keys(f"{tenant}-keys", tenant, key=key_of(tenant))
        vault.policy(tenant, tenant, models="*", **limits)
    async with Upstream("pod-a", keep=10) as pod, AsyncExitStack() as stack:
        team.make_adapter("v1")
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        found = [gateway_of(apiserver, team, tmp_path, name=f"gateway-{n}") for n in range(3)]
        for gateway in found:
            gateway.knows(*found)
        for gateway in found:
            await stack.enter_async_context(gateway)
        for gateway in found:
            await gateway.applies(f"{team.namespace}/support", {"v1": 100})
            await becomes(
                lambda one=gateway: metric(one, "tuneyard_gateway_quota_gateways "), 3.0, "all know each other"
            )
        yield found


async def ask(gateway: GatewayProcess, tenant: str, **body: Any) -> Answer:
    return await gateway.rig.post({"model": "support", **body}, headers={"authorization": f"Bearer {key_of(tenant)}"})


async def ask_all(gateways: list[GatewayProcess], each: int, tenant: str, **body: Any) -> list[Answer]:
    return list(await asyncio.gather(*(ask(g, tenant, **body) for _ in range(each) for g in gateways)))


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(status for status, _, _ in answers)


async def within_a_minute(attempt: Callable[[], Awaitable[None]]) -> None:
    """Once more where the clock's minute ended meanwhile, with all that it has."""
    while True:
        minute, failed = time.time() // 60, None
        try:
            await attempt()
        except AssertionError as error:
            failed = error
        if time.time() // 60 == minute:
            if failed is not None:
                raise failed
            return


async def metric(gateway: GatewayProcess, name: str) -> float:
    lines = (await gateway.page()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def test_requests_of_a_minute_are_counted_once_wherever_they_come(gateways: list[GatewayProcess]) -> None:
    async def attempt() -> None:
        answers = await ask_all(gateways, 30, "few")
        assert statuses(answers) == {200: 30, 429: 60}
        _, headers, body = next(a for a in answers if a[0] == 429)
        assert 1 <= int(headers["retry-after"]) <= 60
        assert headers["x-ratelimit-limit-requests"] == "30"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        error = json.loads(body)["error"]
        assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
        assert "Limit 30" in error["message"]
        client = openai.AsyncOpenAI(base_url=gateways[0].url + "/v1", api_key=key_of("few"), max_retries=0)
        async with client:
            with pytest.raises(openai.RateLimitError, match="requests per min"):
                await client.chat.completions.create(model="support", messages=[])
        # whoever owned the tenant: it ends, and neither its process nor what comes after gives the minute away again
        for victim in gateways[:2]:
            victim.kill()
            others = [gateway for gateway in gateways if gateway is not victim]
            assert statuses(await ask_all(others, 3, "few")) == {429: 6}
            victim.start()
            await victim.ready()
            await becomes(
                lambda one=victim: metric(one, "tuneyard_gateway_quota_gateways "), 3.0, "it knows the others"
            )
            assert statuses(await ask_all(gateways, 3, "few")) == {429: 9}

    await within_a_minute(attempt)
    assert (
        await metric(gateways[2], 'tuneyard_gateway_tenant_limited_total{limit="requestsPerMinute",tenant="few"}') >= 9
    )
    logged = gateways[2].rig.envoy.access_log.read_text()
    assert '"over_limit"' in logged


async def test_tokens_are_reserved_and_what_was_not_used_is_given_back(gateways: list[GatewayProcess]) -> None:
    async def attempt() -> None:
        # they may take 250 each, and take 100: without what they give back, 12 would be all
        used = 0
        for _ in range(3):
            answers = await ask_all(gateways, 2, "tokens", **{**STREAM, "max_tokens": 200})
            assert statuses(answers) == {200: 6}
            used += 600
            await asyncio.gather(*(settled(gateway) for gateway in gateways))
        taken = 0
        for _ in range(10):
            answers = await ask_all(gateways, 1, "tokens", **STREAM)
            taken += statuses(answers)[200]
            await asyncio.gather(*(settled(gateway) for gateway in gateways))
        assert 2800 <= used + 100 * taken <= 3000, taken
        _, headers, body = await ask(gateways[1], "tokens", max_tokens=3000)
        assert headers["x-should-retry"] == "false" and "retry-after" not in headers
        assert "Request too large" in json.loads(body)["error"]["message"]
        status, headers, body = await ask(gateways[1], "tokens", **STREAM)
        assert (status, json.loads(body)["error"]["type"]) == (429, "tokens")
        assert int(headers["x-ratelimit-remaining-tokens"]) < 150

    await within_a_minute(attempt)


async def settled(gateway: GatewayProcess) -> None:
    await becomes(lambda: metric(gateway, "tuneyard_gateway_quota_reserved "), 0.0, "all has been given back")


async def test_places_are_everybodys_and_those_of_a_dead_gateway_come_back(gateways: list[GatewayProcess]) -> None:
    long = {"stream": True, "chunks": 100, "delay": 0.02}
    answers = await ask_all(gateways, 4, "slots", **long)
    assert statuses(answers) == {200: 4, 429: 8}
    _, headers, body = next(a for a in answers if a[0] == 429)
    assert headers["retry-after"] == "1"
    assert "4 requests under way" in json.loads(body)["error"]["message"]
    # one after the other, at one gateway after the other: whoever has ended has no place any more
    for turn in range(3):
        answers = await asyncio.gather(*(ask(gateways[(turn + n) % 3], "slots") for n in range(4)))
        assert statuses(list(answers)) == {200: 4}
    assert statuses([await ask(gateways[n % 3], "slots") for n in range(9)]) == {200: 9}
    # a gateway dies with two places
    dead = gateways[0]
    dying = [asyncio.create_task(ask(dead, "slots", **{**long, "delay": 1.0})) for _ in range(2)]
    await becomes(lambda: metric(dead, "tuneyard_gateway_quota_reserved "), 2.0, "two are under way")
    await asyncio.sleep(2 * EVERY)  # if it is the owner: others know what it has taken itself when it has told so
    dead.kill()
    dead.rig.envoy.stop()
    await asyncio.gather(*dying, return_exceptions=True)
    assert statuses(await ask_all(gateways[1:], 2, "slots", **long))[200] == 2

    async def all_places() -> int:
        return statuses(await ask_all(gateways[1:], 2, "slots", **long))[200]

    await becomes(all_places, 4, "the lease of the dead one ends")


async def test_a_month_outlives_all_gateways(gateways: list[GatewayProcess], team: Team) -> None:
    for _ in range(4):
        assert statuses(await ask_all(gateways, 1, "month", **STREAM)) == {200: 3}
    await asyncio.gather(*(settled(gateway) for gateway in gateways))
    for gateway in gateways:
        gateway.kill(signal.SIGTERM)
    for gateway in gateways:
        gateway.rig.envoy.stop()
        for path in gateway.folder.glob("quotas*"):
            path.unlink()
        for path in (*gateway.folder.glob("usage*"), *gateway.folder.glob("requests*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        gateway.rig.envoy.start()
        gateway.start()
    for gateway in gateways:
        await gateway.ready()
        await becomes(lambda one=gateway: metric(one, "tuneyard_gateway_quota_gateways "), 3.0, "all know each other")
    months = f"/api/v1/namespaces/{team.namespace}/configmaps/{NAME}"
    stored = int(team.api.request("GET", months)["data"]["month"].split()[1])
    assert stored == 1200
    served = 0
    for _ in range(5):
        served += statuses(await ask_all(gateways, 1, "month", **STREAM))[200]
        await asyncio.gather(*(settled(gateway) for gateway in gateways))
    assert stored + served * 100 <= 2000
    assert stored + served * 100 > 1700
    status, headers, body = await ask(gateways[0], "month", **STREAM)
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert json.loads(body)["error"]["code"] == "insufficient_quota"
    assert await metric(gateways[0], "tuneyard_gateway_quota_unasked_total") == 0


async def test_tenants_without_limits_are_not_asked_for(gateways: list[GatewayProcess]) -> None:
    gateway = gateways[0]
    before = await gateway.rig.envoy.stat("cluster.holding.upstream_rq_total")
    assert statuses(await ask_all([gateway], 20, "free")) == {200: 20}
    assert await gateway.rig.envoy.stat("cluster.holding.upstream_rq_total") == before
    assert (await ask(gateway, "few", max_tokens=3))[0] == 200
    assert await gateway.rig.envoy.stat("cluster.holding.upstream_rq_total") == before + 1
    # without the process nobody is refused, and what went by is counted when it is back
    gateway.kill()
    assert (await ask(gateway, "few"))[0] == 200
    # gateways' own words are for gateways
    async with gateways[1].rig.session.post(f"http://127.0.0.1:{gateways[1].port}/v1/quotas", json={}) as answer:
        assert answer.status == 401
    assert (await gateways[1].rig.post({}, path="/v1/quotas", headers={"x-api-key": key_of("free")}))[0] == 404
