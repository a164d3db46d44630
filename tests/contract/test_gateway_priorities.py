"""Whom a full pool refuses, with a real Envoy: by what it is told, and by what is under way through a real process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.contract.apiserver import ApiServer
from tests.contract.envoy import Rig, model, revision
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_keys import put_keys
from tests.contract.test_gateway_routing import assert_openai_error
from tests.contract.test_gateway_tenants import Vault
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.gateway.unixserver import serve_unix
from tuneyard.planning.priorities import Priority
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy.priorities import full_text
from tuneyard.systems.envoy.tenancy import gate_caller, shard_of, shard_resources

pytestmark = pytest.mark.envoy

HIGH, NORMAL, LOW = (f"sk-{name}-0123456789abcdef" for name in ("high", "normal", "low"))
TOKEN = "gate-token-0123456789abc-of-gate"
CALLERS = {
    HIGH: Caller("high", Policy(("*",), Priority.HIGH)),
    NORMAL: Caller("normal", Policy(("*",))),
    LOW: Caller("low", Policy(("*",), Priority.LOW)),
}
ALL = (HIGH, NORMAL, LOW)


class Process:
    """What Envoy asks in the place of the gateway process."""

    def __init__(self) -> None:
        self.full: list[tuple[str, Priority]] = []
        self.asked = 0
        self.hangs = False

    @asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/full", self._answer)
        runner = await serve_unix(app, socket, handler_cancellation=True)
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(60)
        return web.Response(text=full_text(self.full))


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


@asynccontextmanager
async def serving(folder: Path, pod: Upstream, *, priorities: bool = True) -> AsyncIterator[Rig]:
    """A gateway with two models, each in a pool of its own: `team` says the namespace, the model the pool."""
    async with Rig(folder, keys=True, priorities=priorities) as rig:
        put_keys(rig, CALLERS)
        rig.ads.put(shard_of(TOKEN), shard_resources(shard_of(TOKEN), {TOKEN: gate_caller("chat")}))
        pools = ("chat", "other")
        await rig.serve(*(model(m, revision("v1", 100, [pod.address], pool=m), header=True) for m in pools))
        yield rig


async def statuses(rig: Rig, name: str = "chat") -> list[int]:
    """What tenants of high, normal and low priority get."""
    return [(await rig.post({"model": name}, headers={"x-api-key": key}))[0] for key in ALL]


async def test_who_may_wait_is_refused_first(tmp_path: Path, pod: Upstream) -> None:
    process = Process()
    async with process.listening(tmp_path / "holding.sock"), serving(tmp_path, pod) as rig:
        assert await statuses(rig) == [200, 200, 200]
        for full, expected in (
            ((Priority.LOW,), [200, 200, 429]),
            ((Priority.NORMAL, Priority.LOW), [200, 429, 429]),
            (tuple(Priority), [429, 429, 429]),
        ):
            process.full = [("default/chat", priority) for priority in full]
            await becomes(lambda: statuses(rig), expected, "it is full for them")
            assert await statuses(rig, "other") == [200, 200, 200], "another pool is not concerned"
        process.full = [
            ("default/chat", Priority.LOW),
            ("default/chat-2", Priority.HIGH),
            ("t/default/chat", Priority.HIGH),
        ]
        await becomes(lambda: statuses(rig), [200, 200, 429], "names are whole")
        before = len(pod.received)
        for spoofed in (
            {},
            {"x-tuneyard-priority": "High"},
            {"x-tuneyard-priority": "High\n"[:-1], "x-tenant": "high"},
        ):
            status, headers, answer = await rig.post({"model": "chat"}, headers={"x-api-key": LOW, **spoofed})
            assert (status, headers["retry-after"]) == (429, "5")
            assert_openai_error(answer, code="pool_full", kind="rate_limit_error")
        assert len(pod.received) == before
        assert not [r for r in pod.received if "x-tuneyard-priority" in r.headers]
        # a gate's figures must not depend on who else is there
        process.full = [("default/chat", Priority.LOW), ("default/chat", Priority.NORMAL)]
        await becomes(lambda: statuses(rig), [200, 429, 429], "it is full for them")
        shown = {names.GATE_TOKEN_HEADER: TOKEN, names.REVISION_HEADER: "v1"}
        assert (await rig.post({"model": "chat"}, headers=shown))[0] == 200
        assert {line["error"] for line in await rig.envoy.logged(10)} >= {None, "pool_full"}


async def test_few_requests_ask_and_none_depends_on_it(tmp_path: Path, pod: Upstream) -> None:
    process = Process()
    async with serving(tmp_path, pod) as rig:
        assert await statuses(rig) == [200, 200, 200], "nobody is there to ask"
        async with process.listening(tmp_path / "holding.sock"):
            begin = time.monotonic()
            while time.monotonic() - begin < 1:  # what was known before counts for a quarter of that
                assert await statuses(rig) == [200, 200, 200]
            assert 1 <= process.asked <= 2 + 4 * (time.monotonic() - begin)
            process.full = [("default/chat", Priority.LOW)]
            await becomes(lambda: statuses(rig), [200, 200, 429], "it is full")
            process.hangs = True
            await becomes(lambda: statuses(rig), [200, 200, 200], "nobody is refused because of silence")
            begin = time.monotonic()
            assert await statuses(rig) == [200, 200, 200]
            assert time.monotonic() - begin < 2


async def test_where_priorities_are_not_used_nobody_asks(tmp_path: Path, pod: Upstream) -> None:
    process = Process()
    process.full = [("default/chat", priority) for priority in Priority]
    async with process.listening(tmp_path / "holding.sock"), serving(tmp_path, pod, priorities=False) as rig:
        assert await statuses(rig) == [200, 200, 200]
        assert process.asked == 0
        assert not [r for r in pod.received if "x-tuneyard-priority" in r.headers]
        assert [r.headers["x-tenant"] for r in pod.received] == ["high", "normal", "low"]


@pytest.fixture
async def gateways(
    apiserver: ApiServer, team: Team, vault: Vault, pod: Upstream, tmp_path: Path
) -> AsyncIterator[list[GatewayProcess]]:
    """Two of them before one pod, which holds ten requests; only the second one is known as the other gateway."""
    team.make_adapter("v1")
    team.make_pod(pod, "v1")
    team.make_deployment("support", {"v1": 100})
    limits = {"requestsPerPod": 100, "pools": {f"{team.namespace}/tiny": 10}, "shares": {"Normal": 90, "Low": 70}}
    settings = {"watchNamespaces": [team.namespace], "tuneyardNamespace": vault.namespace.removesuffix("-tenants")}

    def gateway(name: str, **more: str) -> GatewayProcess:
        environment = {"TUNEYARD_PRIORITIES": json.dumps(limits), **more}
        told: dict[str, Any] = {"settings": settings, "environment": environment, "keys": True, "priorities": True}
        return GatewayProcess(apiserver, tmp_path, name=name, **told)

    async with (
        gateway("gateway-1") as second,
        gateway("gateway-0", TUNEYARD_PEERS=f"localhost:{second.port}") as first,
    ):
        for one in (first, second):
            await one.applies(f"{team.namespace}/support", {"v1": 100})
        yield [first, second]


@pytest.fixture
def vault(team: Team) -> Vault:
    vault = Vault(team.api, team.namespace)
    for name, key in (("High", HIGH), ("Normal", NORMAL), ("Low", LOW)):
        vault.keys(f"{name.lower()}-keys", name.lower(), key=key)
        vault.policy(name.lower(), name.lower(), models="*", priority=name)
    return vault


@pytest.mark.apiserver
async def test_a_pool_is_full_by_what_is_under_way_through_all_gateways(
    gateways: list[GatewayProcess], team: Team, vault: Vault
) -> None:
    first, second = gateways

    async def told() -> list[int]:
        return await statuses(first.rig, "support")

    async with AsyncExitStack() as under_way:

        async def streams(gateway: GatewayProcess, number: int) -> None:
            body = {"model": "support", "stream": True, "chunks": 4000, "delay": 0.05}
            for _ in range(number):
                asked = gateway.rig.session.post("/v1/chat/completions", json=body, headers={"x-api-key": HIGH})
                assert (await under_way.enter_async_context(asked)).status == 200

        await becomes(told, [200, 200, 200], "there is room")
        for gateway, more, expected in (
            (first, 7, [200, 200, 429]),
            (second, 2, [200, 429, 429]),
            (second, 1, [429, 429, 429]),
        ):
            await streams(gateway, more)
            await becomes(told, expected, "it is as full as that")
        filled = f'tuneyard_gateway_pool_filled_percent{{namespace="{team.namespace}",pool="tiny"}} 100.0'

        async def shown() -> bool:
            return filled in await first.page()

        await becomes(shown, True, "it is to be seen")
        await under_way.aclose()
        await becomes(told, [200, 200, 200], "there is room")

        await streams(second, 8)
        await becomes(told, [200, 200, 429], "it is full for some")
        # a tenant goes before others as soon as its policy says so
        vault.policy("low", "low", models="*", priority="Normal")
        await becomes(told, [200, 200, 200], "it has another priority")
        vault.policy("low", "low", models="*", priority="Low")
        await becomes(told, [200, 200, 429], "and back")
        # nobody is refused for long for what only a gateway knew that is gone
        second.kill()
        await becomes(told, [200, 200, 200], "it is forgotten")
