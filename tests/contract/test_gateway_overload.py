"""A gateway whose memory is nearly used up, on the real Envoy: it refuses, and lives."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.contract.envoy import Rig, model, revision
from tests.contract.gateway_process import becomes
from tests.fakes.upstream import Upstream

pytestmark = pytest.mark.envoy

MEMORY = 512 * 1024 * 1024
LARGE = json.dumps({"model": "support", "prompt": "x" * (8 * 1024 * 1024 - 1000)}).encode()


async def test_large_bodies_at_once_are_refused_and_the_gateway_lives(tmp_path: Path) -> None:
    async with Upstream("pod-a", keep=1) as pod, Rig(tmp_path, memory=MEMORY) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        assert (await rig.post(LARGE))[0] == 200
        told: Counter[str] = Counter()

        async def client() -> None:
            for _ in range(2):
                try:
                    status, headers, answer = await rig.post(LARGE)
                except aiohttp.ClientError:
                    told["reset"] += 1
                    continue
                told[str(status)] += 1
                if status != 200:
                    error = json.loads(answer)["error"]
                    assert (status, error["code"], error["type"]) == (503, "unavailable", "server_error")
                    assert headers["retry-after"] == "5"

        await asyncio.gather(*(client() for _ in range(40)))
        assert told["200"] and told["503"], told
        # without a bound it takes more than 900 MiB
        assert _highest(rig.envoy.pid) < 1.5 * MEMORY, told

        async def small() -> int:
            return (await rig.post({"model": "support"}))[0]

        await becomes(small, 200, "it takes requests again")
        assert (await rig.post(LARGE))[0] == 200


def _highest(pid: int) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
