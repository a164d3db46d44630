"""What tenants, limits, priorities, tokens and pools that sleep have to do with each other, in a real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.test_gateway_keys import put_keys
from tests.contract.test_gateway_tokens import bearer
from tests.fakes.upstream import Upstream
from tests.issuer import AUDIENCE, ISSUER, JwksServer, SigningKey, claims_of
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.gateway.unixserver import serve_unix
from tuneyard.planning.limits import Kind, Limits
from tuneyard.planning.priorities import Priority
from tuneyard.planning.tenants import NAME_MARK, Caller, Policy
from tuneyard.systems.envoy.priorities import full_text
from tuneyard.systems.envoy.quotas import Spent, spent_of
from tuneyard.systems.envoy.tokens import Tokens

pytestmark = pytest.mark.envoy

RSA = SigningKey("rsa")
LIMITS: Limits = {Kind.TOKENS: 100}
POLICIES = {
    "plain": Policy(("*",)),
    "limited": Policy(("*",), limits=LIMITS),
    "high": Policy(("*",), Priority.HIGH, LIMITS),
    "low": Policy(("*",), Priority.LOW, LIMITS),
}
ALWAYS = SystemPrompt(text="Answer in rhymes.", apply="Always")


class Process:
    """What Envoy asks in the place of the gateway process."""

    def __init__(self) -> None:
        self.full: list[tuple[str, Priority]] = []
        self.asked: list[Mapping[str, str]] = []
        self.held = 0
        self.goes_on = asyncio.Event()

    @asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[None]:
        async def quota(request: web.Request) -> web.Response:
            self.asked.append(dict(request.headers))
            return web.Response()

        async def full(_: web.Request) -> web.Response:
            return web.Response(text=full_text(self.full))

        async def hold(_: web.Request) -> web.Response:
            self.held += 1
            await self.goes_on.wait()
            return web.Response()

        app = web.Application()
        app.router.add_post("/quota", quota)
        app.router.add_get("/full", full)
        app.router.add_get("/hold", hold)
        runner = await serve_unix(app, socket, handler_cancellation=True)
        try:
            yield
        finally:
            await runner.cleanup()


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


async def test_limits_and_priorities_of_keys_and_of_tokens(tmp_path: Path, pod: Upstream) -> None:
    process, spent = Process(), list[Spent]()
    keys = {tenant: f"sk-{tenant}-0123456789abcdef" for tenant in POLICIES}
    callers = {key: Caller(tenant, POLICIES[tenant]) for tenant, key in keys.items()}
    callers |= {NAME_MARK + tenant: Caller(tenant, policy) for tenant, policy in POLICIES.items()}
    awake = revision("v1", 100, [pod.address], pool="chat")
    asleep = replace(revision("v1", 100, [pod.address], pool="asleep"), held=True)
    spoken = replace(revision("v1", 100, [pod.address], pool="spoken"), prompt=ALWAYS)
    async with JwksServer(RSA) as issuer, process.listening(tmp_path / "holding.sock"):
        tokens = Tokens(ISSUER, (AUDIENCE,), "tenant", issuer.uri, keys_too=True)
        async with Rig(
            tmp_path, tokens=tokens, priorities=True, heard=lambda lines: spent.extend(spent_of(lines))
        ) as rig:
            put_keys(rig, callers)
            await rig.serve(model("chat", awake), model("asleep", asleep), model("spoken", spoken))
            shown = [*map(bearer, keys.values()), *(bearer(RSA.token(claims_of(t))) for t in POLICIES)]

            async def statuses(name: str) -> list[int]:
                return [(await rig.post({"model": name, "max_tokens": 9}, headers=h))[0] for h in shown]

            assert await statuses("chat") == [200] * 8
            assert [a["x-tuneyard-tenant"] for a in process.asked] == ["limited", "high", "low"] * 2
            assert {a["x-tuneyard-most"] for a in process.asked} == {"9"}
            assert len({a["x-tuneyard-quota"] for a in process.asked}) == 6
            assert [r.headers["x-tenant"] for r in pod.received] == [*POLICIES, *POLICIES]
            assert not [h for r in pod.received for h in r.headers if h.startswith("x-tuneyard-")]
            assert not [r for r in pod.received if "sk-" in str(r.headers) or "eyJ" in str(r.headers)]
            process.full = [("default/chat", Priority.NORMAL), ("default/chat", Priority.LOW)]
            await asyncio.sleep(0.3)
            assert await statuses("chat") == [429, 429, 200, 429] * 2
            # held, with a limit and a priority
            waiting = asyncio.create_task(statuses("asleep"))
            await eventually(lambda: process.held == 1, "it waits")
            process.goes_on.set()
            assert await waiting == [200] * 8
            # what a system prompt makes the gateway refuse
            assert (await rig.post({"model": "spoken"}, headers=shown[1], path="/v1/completions"))[0] == 400
            assert await rig.envoy.stat("http.gateway.lua.rewrite.errors") == 0
            assert await rig.envoy.stat("http.gateway.lua.extract.errors") == 0
            await eventually(lambda: len(spent) == 19, "all are told of")
    assert {s.mark for s in spent} == {a["x-tuneyard-quota"] for a in process.asked}
    assert [s.tenant for s in spent] == ["limited", "high", "low"] * 6 + ["limited"]
    # refused by a full pool: what was taken is given back
    assert [bool(s.tokens) for s in spent] == [True] * 6 + [False, True, False] * 2 + [True] * 6 + [False]


async def test_who_waits_for_a_pool_is_not_silent(tmp_path: Path, pod: Upstream) -> None:
    """`idleTimeout` is for engines that hang: a request waits as long as `coldStart` says all the same."""
    process = Process()
    found = replace(revision("v1", 100, [pod.address]), held=True)
    asleep = replace(model("asleep", found, header=True), idle_timeout=1)
    async with process.listening(tmp_path / "holding.sock"), Rig(tmp_path) as rig:
        await rig.serve(asleep)
        waiting = [asyncio.create_task(rig.post({"model": "asleep"}, headers=h)) for h in ({}, {"x-revision": "v1"})]
        await asyncio.wait(waiting, timeout=2)
        process.goes_on.set()
        assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200]
        await rig.serve(replace(asleep, revisions=(replace(found, held=False),)))
        assert (await rig.post({"model": "asleep", "first": 5}))[0] == 504
