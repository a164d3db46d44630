"""How copies are asked of pods."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.fakes.upstream import Upstream
from tuneyard.gateway.shadow import Pods, Question
from tuneyard.planning.mirrored import Came

STALL = 1.5


@pytest.mark.lasting
async def test_a_second_that_this_process_gets_no_cpu_is_not_held_against_the_pod() -> None:
    async with Upstream("pod") as pod:
        pods = Pods()
        question = Question("1", pod.address, "/v1/chat/completions", "key", b"{}")
        asked = asyncio.create_task(pods.ask(question))
        # while the connection is on its way
        asyncio.get_running_loop().call_soon(time.sleep, STALL)
        came = await asked
        await pods.close()
    assert isinstance(came, Came), came
    assert (came.status, len(pod.received)) == (200, 1)


@pytest.mark.lasting
async def test_who_hangs_and_who_is_away_is_told_apart() -> None:
    async with Upstream("pod", mode="hang") as pod:
        pods = Pods(deadline=0.2)
        question = Question("1", pod.address, "/v1/chat/completions", "key", b"{}")
        assert await pods.ask(question) == "timeout"
    assert await pods.ask(question) == "unreachable"
    await pods.close()
