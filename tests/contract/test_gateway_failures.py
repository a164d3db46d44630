"""What fails, through the real gateway and pods' real fronts: who is tried next, who is left out, and who never is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.contract.envoy import Front, Rig, model, revision
from tests.contract.gateway_process import becomes
from tests.fakes.upstream import Mode, Upstream

pytestmark = pytest.mark.envoy

BODY = {"model": "support"}
EJECTED = r"cluster\..*\.outlier_detection\.ejections_enforced_total"


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("a") as a, Upstream("b") as b:
        yield a, b


async def statuses(rig: Rig, count: int) -> list[int]:
    return [status for status, _, _ in await asyncio.gather(*(rig.post(BODY) for _ in range(count)))]


async def test_a_full_engine_is_not_asked_twice_and_another_one_is(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    a, b = pods
    a.mode = "busy"
    async with fronted(tmp_path, pods) as rig:
        assert await statuses(rig, 40) == [200] * 40
        assert b.asked.total() == 40
        assert 5 <= a.asked.total() <= 40, "once for each request that came to it first"
        b.mode = "busy"
        status, headers, answer = await rig.post(BODY)
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(answer)["error"]["message"] == "busy, try another instance", "the engine's own words"
        assert not [h for h in headers if h.lower().startswith("x-tuneyard")]


async def test_what_the_gateway_is_sent_again_it_never_sends_to_the_base(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    """The adapter is missing on every pod, or every pod fails: nobody is asked for the base that they all have."""
    for pod in pods:
        pod.models = {"base"}
    async with (
        Front(tmp_path, pods[0].port, "a") as front_a,
        Front(tmp_path, pods[1].port, "b") as front_b,
        Rig(tmp_path) as rig,
    ):
        addresses = [front_a.address, front_b.address]
        await rig.serve(
            model("support", revision("v1", 100, addresses)),
            model("plain", revision("v0", 100, addresses, engine="base")),
        )
        status, _, answer = await rig.post(BODY)
        assert (status, json.loads(answer)["error"]["code"]) == (503, "adapter_missing")
        modes: list[Mode] = ["stopping", "draining", "busy", "error", "close"]
        for mode in modes:
            for pod in pods:
                pod.mode = mode
            assert (await rig.post(BODY))[0] in (500, 503)
        for pod in pods:
            assert pod.asked.keys() == {"engine-v1"}
            pod.mode = "answer"
        status, _, answer = await rig.post({"model": "plain"})
        assert (status, json.loads(answer)["model"]) == (200, "base")


async def test_a_pod_that_cannot_be_reached_is_left_out_and_comes_back(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    a, b = pods
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [a.address, b.address])))
        await a.die()
        for _ in range(3):
            assert await statuses(rig, 10) == [200] * 10
        assert await rig.envoy.stat(EJECTED) == 1
        tried = await rig.envoy.stat(r"cluster\..*\.upstream_cx_connect_fail")
        assert await statuses(rig, 20) == [200] * 20
        assert await rig.envoy.stat(r"cluster\..*\.upstream_cx_connect_fail") == tried, "nobody tries it meanwhile"
        async with Upstream("a", port=a.port) as again:

            async def asked() -> bool:
                assert await statuses(rig, 5) == [200] * 5
                return again.asked.total() > 5

            await becomes(asked, True, "it gets its share again")


@pytest.mark.parametrize("mode", ["error", "busy", "close"])
async def test_an_engine_that_fails_is_not_left_out(
    tmp_path: Path, pods: tuple[Upstream, Upstream], mode: Mode
) -> None:
    """One tenant's bad requests take no pod from the others."""
    async with fronted(tmp_path, pods) as rig:
        for pod in pods:
            pod.mode = mode
        assert set(await statuses(rig, 20)) <= {500, 503}
        await both_answer(rig, pods)
        assert await rig.envoy.stat(EJECTED) == 0


async def test_pods_whose_streams_break_are_left_out_for_a_moment_and_never_all_of_them(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    """Many at once, as when an engine crashes: to Envoy it is a connection that failed."""
    async with fronted(tmp_path, pods) as rig:
        for pod in pods:
            pod.mode = "headers-then-close"
        told = await asyncio.gather(*(rig.post(BODY) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(one, aiohttp.ClientPayloadError) for one in told), told
        assert await rig.envoy.stat(EJECTED) == 1, "one of two"
        for pod in pods:
            pod.mode = "answer"
        assert await statuses(rig, 20) == [200] * 20

        async def again() -> bool:
            for pod in pods:
                pod.asked.clear()
            assert await statuses(rig, 20) == [200] * 20
            return min(pod.asked.total() for pod in pods) > 2

        await becomes(again, True, "both are asked again", within=10)


@asynccontextmanager
async def fronted(folder: Path, pods: tuple[Upstream, Upstream]) -> AsyncIterator[Rig]:
    """A gateway before both pods, each behind its front."""
    a, b = pods
    async with Front(folder, a.port, "a") as front_a, Front(folder, b.port, "b") as front_b, Rig(folder) as rig:
        await rig.serve(model("support", revision("v1", 100, [front_a.address, front_b.address])))
        yield rig


async def both_answer(rig: Rig, pods: tuple[Upstream, Upstream]) -> None:
    for pod in pods:
        pod.mode = "answer"
        pod.asked.clear()
    assert await statuses(rig, 40) == [200] * 40
    assert min(pod.asked.total() for pod in pods) > 5
