"""A rehearsal's faults through a real Envoy: errors and delays of one revision, and of no other."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.envoy import Rig, model, revision
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.api.drill import Fault

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


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


async def test_they_count_as_that_revisions_errors(apiserver: ApiServer, team: Team, tmp_path: Path) -> None:
    for adapter in ("stable", "drill"):
        team.make_adapter(adapter)
    rollout = {"analysis": {"slo": {"errorRate": "1%"}}}
    fault = json.dumps(Fault(revision="drill", errors=50).to_dict())
    async with Upstream("a") as pod, GatewayProcess(apiserver, tmp_path) as gateway:
        team.make_pod(pod, "stable", "drill")
        team.make_deployment("chat", {"stable": 50, "drill": 50}, rollout=rollout)
        team.annotate("chat", **{names.ANNOTATION_DRILL: fault})
        await gateway.judges(f"{team.namespace}/chat", {"stable": 50, "drill": 50})
        answers = [await gateway.rig.post({"model": "chat"}) for _ in range(100)]
        spoiled = sum(status == 502 for status, _, _ in answers)
        served = sum(status == 200 and headers["x-revision"] == "drill" for status, headers, _ in answers)
        assert spoiled > 5
        assert served > 5

        async def counted() -> dict[str, tuple[int, int]]:
            found = (await gateway.evidence()).deployments[f"{team.namespace}/chat"].counts
            return {r: tuple(map(sum, zip(*c["errorRate"].values(), strict=True)))[:2] for r, c in found.items()}  # type: ignore[misc]

        await becomes(counted, {"drill": (spoiled + served, spoiled), "stable": (100 - spoiled - served, 0)}, "judged")


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
        assert line["ttft_ms"] >= 390, "Envoy's timers and its clock are some milliseconds apart"
