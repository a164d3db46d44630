"""Where Envoy's script hands over copies: a Unix socket.

Nobody waits for what is answered here, and what does not fit is dropped with 400. Envoy lets only so many calls be
open, so that a process that cannot keep up is told less instead of piling it up.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tuneyard.gateway.mirroring import Copy, Mirroring
from tuneyard.gateway.unixserver import serve_unix
from tuneyard.planning.mirrored import Came
from tuneyard.systems.envoy.front import INFERENCE_PATHS
from tuneyard.systems.envoy.mirroring import ANSWER_LIMIT, BODY_LIMIT, COPY_PATH

_LONGEST_ID = 128
_REASONS = ("too-long", "busy")
"""Why the script leaves a request out."""


def _header(request: web.Request, name: str) -> str:
    return request.headers.get(f"x-tuneyard-{name}", "")


def told_id(text: str) -> str:
    """A request's id as reports may hold it: clients may send any bytes for one."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:_LONGEST_ID])


def _milliseconds(text: str) -> float | None:
    return float(text) if text else None


async def _copy(request: web.Request) -> Copy:
    """ValueError where it is none."""
    first, last = (int(part) for part in _header(request, "at").split("-"))
    path, told, size = _header(request, "path"), await request.read(), int(_header(request, "size"))
    if path not in INFERENCE_PATHS or not 1 < first <= last < size <= len(told):
        raise ValueError("not a copy of a request")
    user = Came(
        status=int(_header(request, "status")),
        kind=_header(request, "kind"),
        body=told[size:] if _header(request, "answer") == "whole" else None,
        first_ms=_milliseconds(_header(request, "first-ms")),
        whole_ms=_milliseconds(_header(request, "whole-ms")),
    )
    return Copy(
        model=_header(request, "model"),
        revision=_header(request, "revision"),
        against=_header(request, "against"),
        request_id=told_id(_header(request, "request")),
        path=path,
        first=first,
        last=last,
        body=told[:size],
        user=user,
    )


def application(mirroring: Mirroring) -> web.Application:
    """What the script tells."""

    async def copied(request: web.Request) -> web.Response:
        if why := _header(request, "skipped"):
            if why not in _REASONS:
                return web.Response(status=400)
            mirroring.skipped(_header(request, "model"), why)
            return web.Response(status=202)
        try:
            taken = mirroring.copy(await _copy(request))
        except ValueError:
            return web.Response(status=400)
        return web.Response(status=202 if taken else 429)

    app = web.Application(client_max_size=BODY_LIMIT + ANSWER_LIMIT + 1)
    app.router.add_post(COPY_PATH, copied)
    return app


async def serve(mirroring: Mirroring, socket: Path) -> web.AppRunner:
    """Listen on a Unix socket."""
    return await serve_unix(application(mirroring), socket)
