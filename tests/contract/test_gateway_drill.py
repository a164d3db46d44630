"""A rehearsal's faults through a real Envoy: errors and delays of one revision, and of no other."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.envoy import Rig, model, revision
from tests.fakes.upstream import Upstream
from tuneyard.api.drill import Fault

pytestmark = pytest.mark.envoy


async def test_errors_are_those_of_the_faulty_revision_alone(tmp_path: Path) -> None:
    async with Upstream("a") as pod, Rig(tmp_path) as rig:
        good = revision("v1", 50, [pod.address])
        bad = replace(revision("drill", 50, [pod.address]), fault=Fault(revision="drill", errors=100))
        await rig.serve(model("support", good, bad))
        answers = [await rig.post({"model": "support"}) for _ in range(60)]
        refused = [body for status, _, body in answers if status == 502]
        served = [headers["x-revision"] for status, headers, _ in answers if status == 200]
        assert len(refused) + len(served) == 60
        assert refused
        assert set(served) == {"v1"}
        assert pod.asked.total() == len(served), "no engine has seen those that failed"
        assert json.loads(refused[0])["error"]["type"] == "server_error"
        logged = [line for line in await rig.envoy.logged(60) if line["status"] == 502]
        assert {line["deployment"] for line in logged} == {"default/md-support"}, (
            "and it is known whose errors they are"
        )


async def test_a_delay_comes_before_the_first_token(tmp_path: Path) -> None:
    async with Upstream("a") as pod, Rig(tmp_path) as rig:
        slow = replace(revision("drill", 100, [pod.address]), fault=Fault(revision="drill", delay_ms=400))
        await rig.serve(model("support", slow))
        began = time.monotonic()
        status, headers, body = await rig.post({"model": "support", "stream": True, "chunks": 2})
        assert (status, headers["x-revision"]) == (200, "drill")
        assert body.endswith(b"data: [DONE]\n\n")
        assert time.monotonic() - began >= 0.4
        (line,) = await rig.envoy.logged(1)
        assert line["ttft_ms"] >= 400
