"""Where a gateway process is asked by the Envoy of its pod alone: Unix sockets."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tuneyard.systems.envoy.listening import make_way, protect


async def serve_unix(app: web.Application, socket: Path, *, handler_cancellation: bool = False) -> web.AppRunner:
    """Listen on a Unix socket that only this pod's user may open; one that an earlier process left is replaced.

    `handler_cancellation`: a handler ends with the call that it answers.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=handler_cancellation)
    await runner.setup()
    make_way(socket)
    await web.UnixSite(runner, str(socket), backlog=1024).start()
    protect(socket)
    return runner
