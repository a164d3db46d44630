"""What the gateway process answers over HTTP: to the operator, to the kubelet, to Prometheus.

- GET /v1/applied?after=N   what is in force, with the bearer token; waits up to 20 s for a version other than N
- GET /v1/demand?after=N    what is asked of whom, in the same way
- GET /v1/evidence?after=N  what has been counted of answers, in the same way
- POST /v1/feedback         what a user of another gateway thought of an answer of this one, with the same token
- GET /v1/mirror            what mirrors have seen, with the same token, at once
- GET /v1/pools             what is under way to pools through this gateway, with the same token, at once
- POST /v1/quotas           what gateways tell each other of tenants' limits, with the same token (quotafleet.py)
- GET /healthz              fails when the API server answers but a watch has been silent for too long
- GET /readyz               Envoy works with what this process knows, and nobody is leaving
- GET /metrics              this process's metrics, those of answers and of usage, then Envoy's
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import web
from prometheus_client.exposition import generate_latest

from tuneyard.api.base import ApiModel
from tuneyard.api.documents import EvidenceReport
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.gateway.envoyadmin import EnvoyAdmin
from tuneyard.gateway.feedback import Feedback, Given, Taken, join
from tuneyard.gateway.looks import Looks
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.slometrics import slo_page

WAIT = 20.0
ReportAfter = Callable[[int, float], Awaitable[ApiModel]]
"""A report as soon as its version is another, or after so many seconds."""


def _trusted(wanted: str, request: web.Request) -> bool:
    """Whether a request comes with the token."""
    return hmac.compare_digest(request.headers.get("Authorization", "").encode(), wanted.encode())


async def _report(
    report_after: ReportAfter, trusted: Callable[[web.Request], bool], request: web.Request
) -> web.Response:
    """A report to whom is trusted."""
    if not trusted(request):
        return web.json_response({"error": "the bearer token is missing or wrong"}, status=401)
    try:
        after = int(request.query.get("after", "-1"))
    except ValueError:
        return web.json_response({"error": "after must be a number"}, status=400)
    report = await report_after(after, WAIT)
    text = report.model_dump_json(by_alias=True, exclude_none=True)
    return web.Response(text=text, content_type="application/json")


def application(
    reports: Mapping[str, ReportAfter],
    feedback: Feedback,
    token: str,
    *,
    alive: Callable[[], bool],
    ready: Callable[[], bool],
    metrics: Metrics,
    answers: AnswerMetrics,
    evidence: Callable[[], EvidenceReport],
    envoy: EnvoyAdmin,
    looks: Looks,
    usage: Callable[[], str] = str,
    quotas: Callable[[web.Application, Callable[[web.Request], bool]], None] | None = None,
) -> web.Application:
    """The routes; `reports` by path, `token` is what the operator proves itself with, `evidence` what was counted.

    `usage`: the tokens' metrics; `looks` hears of each look at the page; `quotas` adds what gateways tell of limits.
    """
    trusted = partial(_trusted, f"Bearer {token}")

    async def rated(given: Given) -> Taken:
        return feedback.take(given)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if alive() else web.Response(status=503, text="watches are stale\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if ready() else web.Response(status=503, text="not ready\n")

    async def metrics_page(_: web.Request) -> web.Response:
        with looks.one():
            own = generate_latest(metrics.registry).decode()
            text = own + await answers.page() + await slo_page(evidence()) + usage() + await envoy.metrics()
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    app = web.Application()
    for path, report_after in reports.items():
        app.router.add_get(path, partial(_report, report_after, trusted))
    join(app, "/v1/feedback", rated, trusted)
    if quotas is not None:
        quotas(app, trusted)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_page)
    return app
