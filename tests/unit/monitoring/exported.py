"""The series that Tuneyard's own processes export, as their code makes them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from tests.contract.envoy import model, revision
from tests.unit.gateway.test_evidence import SLO, answer
from tests.unit.gateway.test_slometrics import counting
from tests.unit.gateway.test_usage import counting as counting_tokens
from tests.unit.gateway.test_usage import line as usage_line
from tests.unit.planning.test_statusseries import canary
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.gateway.certificate import Certificate
from tuneyard.gateway.endings import EndingsMetrics
from tuneyard.gateway.feedbackexport import FeedbackMetrics
from tuneyard.gateway.metrics import Metrics as GatewayMetrics
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.pressure import PressureMetrics
from tuneyard.gateway.quotas import QuotaMetrics
from tuneyard.gateway.signingkeys import SigningKeys
from tuneyard.gateway.slometrics import slo_page
from tuneyard.gateway.tenancy import TenantMetrics
from tuneyard.gateway.usage import UsageMetrics
from tuneyard.gateway.usageexport import UsageExportMetrics
from tuneyard.runtime.metrics import Metrics as OperatorMetrics
from tuneyard.runtime.statusmetrics import Objects
from tuneyard.systems.envoy.answers import Outcome

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def operator() -> OperatorMetrics:
    """The operator's, with a canary."""
    metrics = OperatorMetrics(CollectorRegistry())
    metrics.drifts(lambda: [("team", "chat", False)])
    metrics.statuses(lambda: Objects((), (), [canary()]))
    metrics.queue(lambda: 0, lambda: 0.0)
    metrics.watch_ages({"pods": lambda: 1.0})
    return metrics


async def _nothing() -> str:
    return ""


def gateway() -> GatewayMetrics:
    """A gateway process's that exports feedback and mirrors."""
    metrics = GatewayMetrics(CollectorRegistry())
    MirrorMetrics(metrics.registry)
    FeedbackMetrics(metrics.registry)
    TenantMetrics(metrics.registry).problems.labels(problem="NoPolicy").set(0)
    PressureMetrics(metrics.registry).filled.labels("team", "chat").set(0)
    SigningKeys(Path(), metrics.registry)
    quotas = QuotaMetrics(metrics.registry)
    quotas.limited.labels("acme", "requestsPerMinute").inc(0)
    quotas.left.labels("acme").set(0)
    Certificate(_nothing, lambda: 0.0, metrics.registry, folder="", secret="")
    EndingsMetrics(metrics.registry)
    UsageMetrics(metrics.registry)
    UsageExportMetrics(metrics.registry)
    metrics.age("pods", lambda: 1.0)
    return metrics


def answers() -> AnswerMetrics:
    """What a gateway tells of a canary's answers."""
    metrics = AnswerMetrics()
    metrics.routed("chat", model("chat", revision("v1", 90, ["10.0.0.1:8080"]), revision("v2", 10)))
    for name in ("v1", "v2"):
        good = answer(revision=name, took=900, ttft=100, itl=20)._replace(deployment="default/md-chat")
        metrics.answered([good, good._replace(outcome=Outcome.ERROR)])
        metrics.rated(good, bad=name == "v2")
    return metrics


def objectives() -> str:
    """What a gateway tells of answers that were judged."""
    evidence = counting(slo=SLO)
    evidence.answered([answer()])
    return asyncio.run(slo_page(evidence.report()))


def tokens() -> str:
    """What a gateway tells of the tokens of a request."""

    async def counted(folder: Path) -> str:
        usage, _, _ = counting_tokens(folder)
        usage.files.current.write_bytes(usage_line(cluster="team/chat/v1/c1") + b"\n")
        await usage.count()
        return usage.page()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(counted(Path(folder)))


def _named(registry: CollectorRegistry) -> set[str]:
    return {metric.name + suffix for metric in registry.collect() for suffix in _SUFFIXES[metric.type]}


def names() -> set[str]:
    """Every series' name."""
    page = asyncio.run(answers().page()) + objectives() + tokens()
    return _named(operator().registry) | _named(gateway().registry) | set(re.findall(r"^(\w+){", page, re.MULTILINE))


def pages() -> str:
    """What Prometheus reads of an operator and of a gateway, without Envoy's part."""
    own = (generate_latest(operator().registry) + generate_latest(gateway().registry)).decode()
    return own + asyncio.run(answers().page()) + objectives() + tokens()
