"""What the gateway process answers over HTTP: to the operator, to the kubelet, to Prometheus.

- GET /v1/applied?after=N   what is in force, with the bearer token; waits up to 20 s for a version other than N
- GET /v1/demand?after=N    what is asked of whom, in the same way
- GET /v1/mirror            what mirrors have seen, with the same token, at once
- GET /healthz              fails when the API server answers but a watch has been silent for too long
- GET /readyz               Envoy works with what this process knows, and nobody is leaving
- GET /metrics              this process's metrics, then Envoy's
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client.exposition import generate_latest

from tuneyard.api.documents import AppliedReport, DemandReport
from tuneyard.api.mirror import MirrorReport
from tuneyard.gateway.demand import Demand
from tuneyard.gateway.envoyadmin import EnvoyAdmin
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.mirroring import Mirroring
from tuneyard.gateway.publisher import Publisher

WAIT = 20.0
ReportAfter = Callable[[int, float], Awaitable[AppliedReport | DemandReport | MirrorReport]]
"""Gets a version and seconds, as Publisher.report_after."""


def application(
    publisher: Publisher,
    demand: Demand,
    mirroring: Mirroring,
    token: str,
    *,
    alive: Callable[[], bool],
    ready: Callable[[], bool],
    metrics: Metrics,
    envoy: EnvoyAdmin,
) -> web.Application:
    """The routes; `token` is what the operator proves itself with."""

    def telling(report_after: ReportAfter) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return web.json_response({"error": "the bearer token is missing or wrong"}, status=401)
            try:
                after = int(request.query.get("after", "-1"))
            except ValueError:
                return web.json_response({"error": "after must be a number"}, status=400)
            report = await report_after(after, WAIT)
            text = report.model_dump_json(by_alias=True, exclude_none=True)
            return web.Response(text=text, content_type="application/json")

        return answer

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if alive() else web.Response(status=503, text="watches are stale\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if ready() else web.Response(status=503, text="not ready\n")

    async def metrics_page(_: web.Request) -> web.Response:
        own = generate_latest(metrics.registry).decode()
        return web.Response(text=own + await envoy.metrics(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.router.add_get("/v1/applied", telling(publisher.report_after))
    app.router.add_get("/v1/demand", telling(demand.report_after))
    app.router.add_get("/v1/mirror", telling(mirroring.report_after))
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_page)
    return app
