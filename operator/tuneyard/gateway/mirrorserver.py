"""Where Envoy's script hands over copies and answers: a Unix socket.

Nobody waits for what is answered here, but Envoy lets only so many calls be open: an answer is compared within its
call, so that a process that cannot keep up is told less instead of piling it up. What does not fit is dropped with 400.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from tuneyard.gateway.mirroring import Copy, Mirroring
from tuneyard.planning.mirrored import Came
from tuneyard.systems.envoy.listening import make_way, protect
from tuneyard.systems.envoy.mirroring import ANSWER_LIMIT, ANSWER_PATH, BODY_LIMIT, COPY_PATH

_LONGEST_ID = 128
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


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
    path, body = _header(request, "path"), await request.read()
    if path not in _PATHS or not 1 < first <= last < len(body):
        raise ValueError("not a copy of a request")
    return Copy(
        id=_header(request, "id"),
        model=_header(request, "model"),
        revision=_header(request, "revision"),
        against=_header(request, "against"),
        request_id=told_id(_header(request, "request")),
        path=path,
        first=first,
        last=last,
        body=body,
    )


def application(mirroring: Mirroring) -> web.Application:
    """What the script tells."""

    async def copied(request: web.Request) -> web.Response:
        why = _header(request, "skipped")
        if why:
            mirroring.skipped(_header(request, "model"), "too-long")
            return web.Response(status=202)
        try:
            taken = mirroring.copy(await _copy(request))
        except ValueError:
            return web.Response(status=400)
        return web.Response(status=202 if taken else 429)

    async def answered(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            came = Came(
                status=int(_header(request, "status")),
                kind=_header(request, "kind"),
                body=None if _header(request, "skipped") else body,
                first_ms=_milliseconds(_header(request, "first-ms")),
                whole_ms=_milliseconds(_header(request, "whole-ms")),
            )
        except ValueError:
            return web.Response(status=400)
        await mirroring.answered(_header(request, "id"), came)
        return web.Response(status=202)

    app = web.Application(client_max_size=max(BODY_LIMIT, ANSWER_LIMIT) + 1)
    app.router.add_post(COPY_PATH, copied)
    app.router.add_post(ANSWER_PATH, answered)
    return app


async def serve(mirroring: Mirroring, socket: Path) -> web.AppRunner:
    """Listen on a Unix socket that only this pod's user may open; one that an earlier process left is replaced."""
    runner = web.AppRunner(application(mirroring), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    make_way(socket)
    await web.UnixSite(runner, str(socket), backlog=1024).start()
    protect(socket)
    return runner
