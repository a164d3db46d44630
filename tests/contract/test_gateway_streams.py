"""Streams and retries through the real Envoy: nothing is held back, nothing started is repeated, no pod's going is
noticed before the first byte."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.contract.envoy import Front, Rig, eventually, model, revision
from tests.fakes.upstream import Mode, Upstream
from tests.traffic import Load, Traffic

pytestmark = pytest.mark.envoy

STREAM = {"chunks": 8, "delay": 0.05, "first": 0.05}


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("a") as a, Upstream("b") as b:
        yield a, b


async def test_every_chunk_passes_before_the_next_is_made(tmp_path: Path) -> None:
    """Through gateway and front, in lock step: the engine goes on only when the client has the chunk before."""
    arrived, finished = asyncio.Semaphore(0), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(20):
                await arrived.acquire()  # the headers, then each chunk
                event = b"data: %d\n\n" % number
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            writer.write(b"0\r\n\r\n")
            await finished.wait()
        writer.close()

    engine = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = engine.sockets[0].getsockname()[1]
    async with Rig(tmp_path) as rig, Front(tmp_path, port) as front, asyncio.timeout(30):
        await rig.serve(model("support", revision("v1", 100, [front.address])))
        async with rig.session.post("/v1/chat/completions", json={"model": "support"}) as response:
            arrived.release()
            numbers = []
            async for line in response.content:
                if line.startswith(b"data:"):
                    numbers.append(int(line[5:]))
                    arrived.release()
        assert numbers == list(range(20))
        finished.set()
    engine.close()


async def test_a_large_answer_is_not_held(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """Answers above every buffer's limit pass, with their usage in the log."""
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        status, _, body = await rig.post({"model": "support", "size": 20 << 20})
        assert status == 200
        assert len(json.loads(body)["choices"][0]["message"]["content"]) == 20 << 20
        (line,) = await rig.envoy.logged(1)
        assert line["completion_tokens"] == 3


@pytest.mark.parametrize("mode", ["close", "draining", "stopping"])
async def test_a_pod_that_goes_is_never_noticed(tmp_path: Path, pods: tuple[Upstream, Upstream], mode: Mode) -> None:
    """One of two pods closes, drains or stops: every request is answered by the other, once."""
    a, b = pods
    a.mode = mode
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [a.address, b.address])))
        load = Load(["support"], rate=100, max_requests=300, body={"chunks": 4, "delay": 0.01})
        async with Traffic(rig.url, load) as traffic:
            await traffic.wait_for(300)
        assert traffic.summary().ok == 300, traffic.summary()
        assert b.asked.total() == 300
        assert a.asked.total() >= 3
        _, headers, _ = await rig.post({"model": "support"})
        assert not [h for h in headers if h.lower().startswith("x-tuneyard")]


async def test_a_dead_pod_is_never_noticed(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    a, b = pods
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [a.address, b.address])))
        load = Load(["support"], rate=100, max_requests=400, streaming=0, body={"first": 0.02})
        async with Traffic(rig.url, load) as traffic:
            await traffic.wait_for(100)
            await a.die()
            await traffic.wait_for(300)
        assert traffic.summary().ok == 400, traffic.summary()


async def test_the_last_pod_of_a_revision_leaves_under_load(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """No request comes between the endpoints that go and the routes that give their share to others."""
    a, b = pods
    whole = model("support", revision("v1", 50, [a.address]), revision("v2", 50, [b.address]))
    without = model("support", revision("v1", 100, [a.address]), revision("v2", 0))
    async with Rig(tmp_path, concurrency=2) as rig:
        await rig.serve(whole)
        load = Load(["support"], rate=600, streaming=0, max_seconds=60)
        async with Traffic(rig.url, load) as traffic:
            for _ in range(60):
                before = b.asked.total()
                await eventually(lambda: b.asked.total() > before + 5, "its share is served")  # noqa: B023
                await rig.serve(without)
                await traffic.wait_for(5)
                await rig.serve(whole)
        assert traffic.summary().ok == len(traffic.records), traffic.summary()


async def test_a_silent_peer_is_asked_whether_it_is_there(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """While an answer is awaited, the kernel's keepalive timer runs: a node that was lost is noticed."""
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        asked = asyncio.create_task(rig.post({"model": "support", "first": 3}))
        await eventually(lambda: pods[0].active == 1, "the pod is asked")
        await eventually(lambda: _timers(pods[0].port) == {"02"}, "a keepalive timer", within=2)
        assert (await asked)[0] == 200


def _timers(port: int) -> set[str]:
    """Kinds of timers on connections to the port: 01 something is unacknowledged, 02 keepalive."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        timer[:2] for _, _, remote, state, _, timer, *_ in lines if remote.endswith(f":{port:04X}") and state == "01"
    }


async def test_a_pod_that_takes_nothing_is_given_up(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """What was sent and is not taken for 15 s goes to another pod, long before the idle timeout."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with Rig(tmp_path) as rig:
            address = f"127.0.0.1:{dead.getsockname()[1]}"
            await rig.serve(model("support", revision("v1", 100, [address])))
            asked = asyncio.create_task(rig.post({"model": "support", "prompt": "x" * 7_000_000}))
            connection, _ = await asyncio.to_thread(dead.accept)
            rig.put(model("support", revision("v1", 100, [address, pods[0].address])))
            with connection:
                async with asyncio.timeout(40):
                    assert (await asked)[0] == 200


async def test_what_has_begun_is_never_repeated(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """A stream that breaks after its first byte ends broken: another pod is not asked for the rest."""
    for pod in pods:
        pod.mode = "headers-then-close"
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [p.address for p in pods])))
        async with Traffic(rig.url, Load(["support"], rate=100, max_requests=20, streaming=1)) as traffic:
            await traffic.wait_for(20)
        assert (traffic.summary().cut, traffic.summary().ok) == (20, 0)
    assert sum(p.asked.total() for p in pods) == 20


async def test_an_engines_own_error_is_not_repeated(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    for pod in pods:
        pod.mode = "error"
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [p.address for p in pods])))
        status, _, body = await rig.post({"model": "support"})
        assert status == 500
        assert json.loads(body)["error"]["message"] == "an error of the engine"
    assert sum(p.asked.total() for p in pods) == 1


async def test_when_no_pod_can_answer(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [p.address for p in pods])))
        for pod in pods:
            await pod.die()
        status, headers, body = await rig.post({"model": "support"})
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(body)["error"]["code"] == "unavailable"


async def test_weights_and_pods_change_under_streaming_load(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """A hundred changes of weights and endpoints, and of the models beside it; no stream is cut, no request fails."""
    a, b = pods
    chance = random.Random(1)
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [a.address]), revision("v2", 0, [b.address])))
        async with Traffic(rig.url, Load(["support"], rate=80, streaming=0.7, body=STREAM)) as traffic:
            await traffic.wait_for(20)
            for number in range(100):
                weight = chance.randrange(101)
                ends = [[a.address], [b.address], [a.address, b.address]]
                await rig.serve(
                    model(
                        "support",
                        revision("v1", 100 - weight, chance.choice(ends)),
                        revision("v2", weight, chance.choice(ends)),
                        *([revision("v3", 0, [a.address])] if number % 3 else []),
                    ),
                    model(f"other-{number % 7}", revision("v1", 100, [b.address])),
                )
            await traffic.wait_for(20)
        summary = traffic.summary()
        assert (summary.failed, summary.cut) == (0, 0), summary
        assert summary.by_revision.keys() >= {"v1", "v2"}
        assert rig.ads.refusals == 0


async def test_another_engine_name_or_pool_is_another_cluster(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """A revision that moves to other pods, under another engine name, never meets pods that do not know it."""
    a, b = pods
    a.models, b.models = {"old"}, {"new"}
    places = [([a.address], "old", "pool-1"), ([b.address], "new", "pool-2")]
    async with Rig(tmp_path) as rig:
        async with AsyncExitStack() as stack:
            for number in range(20):
                addresses, engine, pool = places[number % 2]
                await rig.serve(model("support", revision("v1", 100, addresses, engine=engine, pool=pool)))
                if not number:
                    load = Load(["support"], rate=200, streaming=0.3, body={"delay": 0.005})
                    traffic = await stack.enter_async_context(Traffic(rig.url, load))
                await traffic.wait_for(10)
        assert traffic.summary().ok == len(traffic.records), traffic.summary()
        keys = {r.headers["authorization"] for r in (*a.received, *b.received)}
        assert keys == {"Bearer key-of-default-pool-1", "Bearer key-of-default-pool-2"}


async def test_an_envoy_that_refuses_one_model_takes_the_others(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    """Refused resources keep their last good form, and hold up nobody else."""
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        bad = model("bad", revision("v1", 100, ["127.0.0.1:99999"]))
        rig.put(bad, model("later", revision("v1", 100, [pods[1].address])))
        await eventually(lambda: rig.ads.in_force("later"), "the good model is in force")
        await eventually(lambda: rig.ads.refusals > 0, "the refusal is counted")
        assert not rig.ads.in_force("bad")
        for name in ("support", "later"):
            assert (await rig.post({"model": name}))[0] == 200
        await rig.serve(model("bad", revision("v1", 100, [pods[0].address])))
        assert (await rig.post({"model": "bad"}))[0] == 200


async def test_many_streams_at_once(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [p.address for p in pods])))
        bodies = [{"model": "support", "stream": True, "chunks": 20, "delay": 0.05} for _ in range(200)]
        answers = await asyncio.gather(*(rig.post(body) for body in bodies))
        assert all(status == 200 and body.endswith(b"data: [DONE]\n\n") for status, _, body in answers)
        assert all(pod.asked.total() >= 20 for pod in pods)
