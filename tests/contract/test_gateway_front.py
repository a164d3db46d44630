"""The front of a model pod, with the real Envoy: what it lets through, how it drains, what it turns into a retry."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.contract.envoy import Envoy, Front, Rig, eventually, model, revision
from tests.contract.ports import free_port
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.agent.front import Front as Switches
from tuneyard.systems.envoy.front import ACTIVE_REQUESTS_STAT, DRAINING_KEY, TOTAL_REQUESTS_STAT, front_config

pytestmark = pytest.mark.envoy

KEY = {"authorization": "Bearer the-engines-key"}
REFUSED = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/adapters"),
    ("DELETE", "/adapters/x"),
    ("POST", "/invocations"),
    ("POST", "/inference"),
    ("POST", "/tokenize"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/sleep"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/load"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/chat/completions"),
    ("POST", "/v1/models"),
    ("POST", "/health"),
    ("POST", "/v1/completions/../load_lora_adapter"),
    ("POST", "/v1//load_lora_adapter"),
    ("POST", "/v1/%6coad_lora_adapter"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "/v1/chat/completions/%2e%2e/%2e%2e/load_lora_adapter"),
    ("PUT", "/v1/completions"),
    ("CONNECT", "127.0.0.1:80"),
]


@pytest.fixture
async def engine() -> AsyncIterator[Upstream]:
    async with Upstream("engine") as pod:
        yield pod


@pytest.fixture
async def front(tmp_path: Path, engine: Upstream) -> AsyncIterator[Front]:
    async with Front(tmp_path, engine.port) as running:
        yield running


async def raw(front: Front, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of a request whose path no client library has tidied up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    head = f"{method} {path} HTTP/1.1\r\nhost: pod\r\nauthorization: {KEY['authorization']}\r\n"
    writer.write(f"{head}connection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    async with asyncio.timeout(20):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search("content-length: ([0-9]+)", answer)
        body = await reader.readexactly(int(length[1]) if length else 0)
    writer.close()
    return int(answer.split(" ", 2)[1]), body


async def ask(front: Front, path: str = "/v1/chat/completions") -> tuple[int, dict[str, str], bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{front.address}{path}", json={"model": "m"}, headers=KEY) as response,
    ):
        return response.status, dict(response.headers), await response.read()


async def test_only_the_allow_list_passes(front: Front, engine: Upstream) -> None:
    for method, path in REFUSED:
        status, body = await raw(front, method, path)
        assert status in (400, 404), (method, path)
        if status == 404 and body:
            assert json.loads(body)["error"]["code"] == "unknown_url"
    assert not engine.received
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/chat/completions?x=1"):
        assert (await raw(front, "POST", path))[0] == 200
    for path in ("/v1/models", "/health", "/metrics"):
        assert (await raw(front, "GET", path))[0] == 200
    # the engine demands the key itself: it arrives as it was sent
    assert {r.headers["authorization"] for r in engine.received} == {KEY["authorization"]}


async def test_draining_refuses_new_requests_and_finishes_running_ones(front: Front, engine: Upstream) -> None:
    load = Load(["m"], rate=50, max_requests=20, streaming=1, body={"chunks": 20, "delay": 0.05})
    async with Traffic(f"http://{front.address}", load) as traffic:
        await eventually(lambda: engine.active >= 10, "streams run")
        await front.envoy.admin(f"/runtime_modify?{DRAINING_KEY}=100", "POST")
        assert await front.envoy.stat(ACTIVE_REQUESTS_STAT) >= 10
        status, headers, body = await ask(front)
        assert (status, headers["x-tuneyard-draining"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "draining"
        assert (await raw(front, "GET", "/health"))[0] == 200
        assert (await raw(front, "GET", "/metrics"))[0] == 200
    summary = traffic.summary()
    assert summary.cut == 0
    assert summary.ok == await front.envoy.stat(TOTAL_REQUESTS_STAT)
    assert await front.envoy.stat(ACTIVE_REQUESTS_STAT) == 0
    await front.envoy.admin(f"/runtime_modify?{DRAINING_KEY}=0", "POST")
    assert (await ask(front))[0] == 200


async def test_an_agent_can_fail_the_health_checks(front: Front, engine: Upstream, tmp_path: Path) -> None:
    switches = Switches(tmp_path / "front-admin.sock")
    await switches.set_unhealthy(True)
    assert (await raw(front, "GET", "/health"))[0] == 503
    assert (await ask(front))[0] == 200, "whether users are sent here is the published report's business"
    await switches.set_unhealthy(False)
    assert (await raw(front, "GET", "/health"))[0] == 200


async def test_an_engine_that_goes_is_said_by_header(front: Front, engine: Upstream) -> None:
    engine.models = {"another"}
    status, headers, body = await ask(front)
    assert (status, headers["x-tuneyard-retry"]) == (503, "adapter-missing")
    assert json.loads(body)["error"]["code"] == "adapter_missing"
    engine.models, engine.mode = None, "error"
    assert (await ask(front))[0] == 500
    engine.mode = "close"
    status, headers, _ = await ask(front)
    assert (status, headers["x-tuneyard-retry"]) == (503, "engine-gone")
    await engine.die()
    status, headers, _ = await ask(front)
    assert (status, headers["x-tuneyard-retry"]) == (503, "engine-gone")


async def test_an_adapter_that_is_missing_on_one_pod_is_never_noticed(tmp_path: Path) -> None:
    async with (
        Upstream("a", models={"other"}) as a,
        Upstream("b", models={"engine-v1"}) as b,
        Front(tmp_path, a.port, "a") as front_a,
        Front(tmp_path, b.port, "b") as front_b,
        Rig(tmp_path) as rig,
    ):
        await rig.serve(model("support", revision("v1", 100, [front_a.address, front_b.address])))
        async with Traffic(rig.url, Load(["support"], rate=100, max_requests=200)) as traffic:
            await traffic.wait_for(200)
    assert traffic.summary().ok == 200, traffic.summary()
    assert a.asked.total() > 20


async def test_a_front_without_an_engine_starts(tmp_path: Path) -> None:
    """The front is there before the engine, for whose probes it stands."""
    async with Front(tmp_path, free_port()) as front:
        assert (await raw(front, "GET", "/health"))[0] == 503


async def test_a_front_takes_both_families(tmp_path: Path) -> None:
    """Where a cluster gives pods IPv6 addresses, or both kinds, the front is reached by each of them."""
    port = free_port()
    config = front_config(port=port, engine_port=free_port(), admin_socket=str(tmp_path / "admin.sock"))
    envoy = Envoy(config, tmp_path, "both")
    envoy.start()
    try:
        await envoy.ready()
        for host in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    finally:
        envoy.stop()
