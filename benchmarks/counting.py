"""A process that feeds one model to an Envoy and counts its answers, as the gateway process does, for benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from benchmarks.processes import beside
from tests.contract.envoy import engine_key, model, revision
from tuneyard.api.analysis import Slo
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.gateway.evidence import Evidence
from tuneyard.systems.envoy.ads import AdsServer
from tuneyard.systems.envoy.answers import Answer, AnswerReports
from tuneyard.systems.envoy.translate import LIST, list_resources, model_resources

SLO = Slo(error_rate="1%", ttft="2s", itl="100ms", e2e="30s")


async def _serve(socket: Path, pods: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    evidence = Evidence("bench", "bench-1", loop.time, loop.call_later, lambda: True)
    metrics = AnswerMetrics()
    routes = replace(model("support", revision("v1", 90, pods), revision("v2", 10, pods)), slo=SLO)
    evidence.routed("support", routes)
    metrics.routed("support", routes)

    def answered(answers: Sequence[Answer]) -> None:
        evidence.answered(answers)
        metrics.answered(answers)

    ads = AdsServer()
    ads.put("support", model_resources(routes, engine_key))
    ads.put(LIST, list_resources([routes]))
    await ads.start(socket, AnswerReports(answered).join)
    ads.publish()
    await asyncio.Event().wait()


def counting(socket: Path, pods: Sequence[str]) -> AbstractContextManager[int]:
    """The process, serving `support` at 90/10 from these pods; gives its id."""
    return beside(_serve, socket, pods)
