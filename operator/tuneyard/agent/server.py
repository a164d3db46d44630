"""HTTP on the pod's loopback, for the engine's preStop hook and for people with a shell in the pod.

GET /healthz  200 while the agent runs
GET /report   the PodReport that others can read: what was published last, 503 while nothing is. The readiness probe
              goes by it: a Deployment takes an old pod away for a new one only once gateways can know what that has
POST /drain   answers when the pod is drained
"""

from __future__ import annotations

from aiohttp import web

from tuneyard.agent.draining import Drain
from tuneyard.agent.knowledge import Knowledge


def application(knowledge: Knowledge, drain: Drain) -> web.Application:
    """The agent's HTTP application."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def report(_: web.Request) -> web.Response:
        found = knowledge.state.published
        return web.json_response(found.to_dict() if found else {}, status=200 if found else 503)

    async def drained(_: web.Request) -> web.Response:
        idle = await drain.drain()
        return web.json_response({"idle": idle})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/report", report), web.post("/drain", drained)])
    return app
