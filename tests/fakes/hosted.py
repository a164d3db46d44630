"""Somebody else's API as gateways see it: an upstream behind TLS that demands a key, under a base path of its own."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from typing import Self

from tests.fakes.upstream import Received, Upstream, _whole

BASE_PATH = "/openai/v1"
_LIMITED = "retry-after: 7\r\nset-cookie: __cf=1\r\nx-ratelimit-remaining-tokens: 5\r\n"


@dataclass
class Hosted(Upstream):
    """`async with Hosted("api", tls=...) as api:`."""

    tls: ssl.SSLContext | None = None
    keys: set[str] = field(default_factory=lambda: {"sk-hosted-1"})
    """Those that it takes."""
    limited: bool = False
    """It has had enough requests for now."""
    host: str = "127.0.0.1"
    shown: list[str] = field(default_factory=list)
    """The header authorization of each request."""

    @property
    def url(self) -> str:
        """As a revision names it."""
        return f"https://localhost:{self.port}{BASE_PATH}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=1 << 26, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        shown = request.headers.get("authorization", "")
        self.shown.append(shown)
        problem = self._problem(request, shown)
        if problem is None:
            return await super()._answer(request, writer)
        self.received.append(request)
        status, text, headers = problem
        writer.write(_whole(status, json.dumps({"error": {"message": text}}).encode(), headers))
        await writer.drain()
        return True

    def _problem(self, request: Received, shown: str) -> tuple[int, str, str] | None:
        if shown.removeprefix("Bearer ") not in self.keys:
            return 401, f"Incorrect API key provided: {shown}.", "www-authenticate: Bearer\r\n"
        if not request.path.startswith(f"{BASE_PATH}/"):
            return 404, "no such path", ""
        return (429, "Rate limit reached.", _LIMITED) if self.limited else None
