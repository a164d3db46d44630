"""How far tenants get past their limits, and how much of them stays unused, with three gateways that all take requests.

A real API server, three gateway processes with their real Envoys, a fake engine for each tenant that counts what it was
asked and what it told. In one minute of the clock every tenant asks for more than its limit, at all gateways at once:
requests of a minute, tokens of a minute and of a month (answers of any length, some with max_tokens and some without,
some of whose clients leave), requests under way. One more tenant does while a gateway is killed, process and Envoy.

An overshoot of no more than one request is none: that is what a limit of tokens can be passed by. What requests of a
tenant with limits take longer is measured on requests one after the other, against a tenant without.

python -m benchmarks.quotas [--seconds N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.report import REPORTED, percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_tenants import Vault
from tests.fakes.upstream import Upstream
from tuneyard.gateway.quotamonths import NAME

LIMITS: dict[str, dict[str, int]] = {
    "requests": {"requestsPerMinute": 400},
    "tokens": {"tokensPerMinute": 12_000},
    "month": {"tokensPerMonth": 12_000},
    "places": {"concurrentRequests": 20},
    "killed": {"requestsPerMinute": 300},
    "timed": {"requestsPerMinute": 100_000},
    "free": {},
}
"""The first four are asked at once, then one more; the last two for the time that requests take."""
LONGEST = 300
"""Tokens of one request, at most."""
CLIENTS = 3
"""For each tenant, at each gateway; of places as many as there are."""


def _key(tenant: str) -> str:
    return f"sk-{tenant}-0123456789abcdef"


def _body(tenant: str, chance: random.Random) -> dict[str, Any]:
    if tenant == "places":
        return {"stream": True, "chunks": 10, "delay": 0.02}
    if tenant not in ("tokens", "month"):
        return {}
    body: dict[str, Any] = {"stream": True, "chunks": chance.randrange(10, LONGEST - 10), "delay": 0.0002}
    return body if chance.random() < 0.5 else {**body, "max_tokens": body["chunks"] + chance.randrange(100)}


class _Tenant:
    """One tenant's clients, and the pod that they reach."""

    def __init__(self, name: str, pod: Upstream) -> None:
        self.name, self.pod = name, pod
        self.refused = 0
        self.lost = 0
        self.most = 0
        """Requests under way at a time."""

    async def ask(self, session: aiohttp.ClientSession, chance: random.Random) -> int:
        """One request; its status."""
        body = {"model": self.name, "messages": "x" * chance.randrange(300), **_body(self.name, chance)}
        headers = {"authorization": f"Bearer {_key(self.name)}"}
        async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
            if self.name != "places" and body.get("stream") and response.status == 200 and chance.random() < 0.05:
                await response.content.readany()
                return 200  # the client leaves
            await response.read()
            return response.status

    async def client(self, url: str, number: int, until: float) -> None:
        """Ask on, refused or not, until then."""
        chance = random.Random(number)
        async with aiohttp.ClientSession(url) as session:
            while time.time() < until:
                try:
                    status = await self.ask(session, chance)
                except aiohttp.ClientError:
                    self.lost += 1
                    await asyncio.sleep(0.05)
                    continue
                self.refused += status == 429
                if status == 429:
                    await asyncio.sleep(0.02)
                elif status != 200:
                    raise SystemExit(f"{self.name}: status {status}")

    async def watch(self, until: float) -> None:
        """See how many are under way."""
        while time.time() < until:
            self.most = max(self.most, self.pod.active)
            await asyncio.sleep(0.001)

    def used(self, limit: str) -> int:
        """What has come through, as the pod knows it."""
        if limit == "concurrentRequests":
            return self.most
        return self.pod.tokens.total() if limit.startswith("tokens") else self.pod.asked.total()


async def _time(tenant: _Tenant, gateway: GatewayProcess) -> list[float]:
    """Milliseconds of requests one after the other."""
    chance, found = random.Random(1), []
    async with aiohttp.ClientSession(gateway.url) as session:
        for _ in range(200):
            began = time.perf_counter()
            await tenant.ask(session, chance)
            found.append((time.perf_counter() - began) * 1000)
    return found


async def _fresh_minute(needed: float) -> float:
    """Wait until so many seconds of the clock's minute are left; returns when it ends."""
    left = 60 - time.time() % 60
    if left < needed:
        await asyncio.sleep(left + 0.1)
    return (time.time() // 60 + 1) * 60


async def _load(tenants: dict[str, _Tenant], gateways: list[GatewayProcess], seconds: float) -> None:
    until, number, running = time.time() + seconds, 0, []
    for tenant in tenants.values():
        running.append(asyncio.create_task(tenant.watch(until)))
        for gateway in gateways:
            for _ in range(12 if tenant.name == "places" else CLIENTS):
                number += 1
                running.append(asyncio.create_task(tenant.client(gateway.url, number, until)))
    await asyncio.gather(*running)


async def _killed(tenant: _Tenant, gateways: list[GatewayProcess], seconds: float) -> None:
    loading = asyncio.create_task(_load({"killed": tenant}, gateways, seconds))
    while not loading.done() and tenant.pod.asked.total() < LIMITS["killed"]["requestsPerMinute"] / 2:  # noqa: ASYNC110 -- a fake's counter
        await asyncio.sleep(0.005)
    gateways[0].kill()
    gateways[0].rig.envoy.stop()
    await loading


def _overshoot(used: int, limit: int, one: int) -> float:
    return max(0.0, 100 * (used - limit) / limit) if used - limit > one else 0.0


async def _knows_all(gateway: GatewayProcess) -> bool:
    return "tuneyard_gateway_quota_gateways 3.0" in await gateway.page()


async def _gateways(server: ApiServer, folder: Path, team: Team, stack: AsyncExitStack) -> list[GatewayProcess]:
    settings = {"watchNamespaces": [team.namespace], "tuneyardNamespace": team.namespace}
    found = [GatewayProcess(server, folder, name=f"gateway-{n}", settings=settings, keys=True) for n in range(3)]
    for gateway in found:
        gateway.knows(*found)
        await stack.enter_async_context(gateway)
    for gateway in found:
        for tenant in LIMITS:
            await gateway.applies(f"{team.namespace}/{tenant}", {tenant: 100})
        await becomes(lambda one=gateway: _knows_all(one), True, "the gateways know each other")
    return found


async def _run(seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="quotas-") as folder, ApiServer() as server:
        server.install_crds()
        async with AsyncExitStack() as stack:
            team = Team(server, "quotas")
            vault = Vault(team.api, team.namespace)
            path = f"/api/v1/namespaces/{team.namespace}/configmaps"
            team.api.request("POST", path, body={"metadata": {"name": NAME}})
            tenants = {}
            team.make_base()
            for name, limits in LIMITS.items():
                vault.keys(f"{name}-keys", name, key=_key(name))
                vault.policy(name, name, models="*", **{limit: str(number) for limit, number in limits.items()})
                tenants[name] = _Tenant(name, await stack.enter_async_context(Upstream(f"pod-{name}", keep=1)))
                team.make_adapter(name)
                team.make_pod(tenants[name].pod, name)
                team.make_deployment(name, {name: 100})
            gateways = await _gateways(server, Path(folder), team, stack)
            timed = {name: await _time(tenants[name], gateways[1]) for name in ("free", "timed")}
            ends = await _fresh_minute(2 * seconds + 5)
            await _load({name: tenants[name] for name in list(LIMITS)[:4]}, gateways, seconds)
            await _killed(tenants["killed"], gateways, seconds)
            if time.time() >= ends:
                raise SystemExit("the minute was over before the load was: give it fewer --seconds")
    return _figures(tenants, timed)


def _figures(tenants: dict[str, _Tenant], timed: dict[str, list[float]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, limits in list(LIMITS.items())[:5]:
        for limit, number in limits.items():
            used = tenants[name].used(limit)
            if not tenants[name].refused:
                raise SystemExit(f"{name}: nothing was refused, only {used} of {number} were used")
            one = LONGEST if limit.startswith("tokens") else 1
            figures[f"overshoot_percent_{name}"] = _overshoot(used, number, one)
            figures[f"unused_percent_{name}"] = max(0.0, 100 * (number - used) / number)
    worst = max(value for name, value in figures.items() if name.startswith("overshoot"))
    halves = {name: percentile(times, 0.5) for name, times in timed.items()}
    return {"overshoot_percent": worst, **figures, "limited_ms_p50": halves["timed"] - halves["free"]}


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quotas", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each of two loads")
    figures = uvloop.run(_run(parser.parse_args(arguments).seconds))
    unit = {name: "ms" if name.endswith("p50") else "%" for name in figures}
    targets = {name: "<= 2" if name == "overshoot_percent" else REPORTED for name in figures}
    note = "three gateways on this machine; an overshoot of one request or less counts as none"
    return write("quotas", figures, unit, targets=targets, note=note)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
