"""A process that feeds one model to an Envoy and counts its answers, as the gateway process does, for benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.processes import beside
from tests.contract.envoy import engine_key, model, revision
from tuneyard.api.analysis import Slo
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.gateway.endings import Endings, EndingsMetrics
from tuneyard.gateway.envoyadmin import EnvoyAdmin
from tuneyard.gateway.evidence import Evidence
from tuneyard.gateway.requestfiles import RequestFiles
from tuneyard.gateway.usage import STATE, Usage, UsageMetrics
from tuneyard.systems.envoy.ads import AdsServer
from tuneyard.systems.envoy.answers import answers_of
from tuneyard.systems.envoy.requestlog import Line
from tuneyard.systems.envoy.translate import LIST, list_resources, model_resources

SLO = Slo(error_rate="1%", ttft="2s", itl="100ms", e2e="30s")


async def _serve(socket: Path, pods: Sequence[str], folder: Path) -> None:
    loop = asyncio.get_running_loop()
    evidence = Evidence("bench", "bench-1", loop.time, loop.call_later, lambda: True)
    metrics = AnswerMetrics()
    routes = replace(model("support", revision("v1", 90, pods), revision("v2", 10, pods)), slo=SLO)
    evidence.routed("support", routes)
    metrics.routed("support", routes)

    def ended(lines: Sequence[Line]) -> None:
        answers = answers_of(lines)
        evidence.answered(answers)
        metrics.answered(answers)

    ads = AdsServer()
    ads.put("support", model_resources(routes, engine_key))
    ads.put(LIST, list_resources([routes]))
    await ads.start(socket)
    files, registry = RequestFiles(folder), CollectorRegistry()
    usage = Usage(
        "bench", files, folder / STATE, EnvoyAdmin(str(folder / "envoy-admin.sock")).reopen_logs, UsageMetrics(registry)
    )
    endings = Endings(files, ended, EndingsMetrics(registry))
    usage.others.append(lambda: endings.place)
    endings.start()
    usage.start()
    ads.publish()
    await asyncio.Event().wait()


def counting(socket: Path, pods: Sequence[str], folder: Path) -> AbstractContextManager[int]:
    """The process, serving `support` at 90/10 from these pods; gives its id. `folder`: where Envoy's log is."""
    return beside(_serve, socket, pods, folder)
