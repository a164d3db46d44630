"""The pod's front through its admin socket: what passes, and the two switches that an agent has.

- `tuneyard.draining` refuses new inference requests (gateways try another pod);
- `tuneyard.unhealthy` fails the pod's health checks, which is how an agent has the engine's container restarted: it
  cannot reach another container, the kubelet can.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import aiohttp

from tuneyard.systems.envoy.front import ACTIVE_REQUESTS_STAT, DRAINING_KEY, TOTAL_REQUESTS_STAT, UNHEALTHY_KEY

_SECONDS = 2.0


class FrontError(Exception):
    """The front's admin interface does not answer."""


class Traffic(NamedTuple):
    """Inference requests: running now, and taken since the front began."""

    active: int
    total: int


class Front:
    """A client of one front's admin socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def traffic(self) -> Traffic:
        """What the front is passing to the engine; raises FrontError."""
        names = f"{ACTIVE_REQUESTS_STAT}|{TOTAL_REQUESTS_STAT}".replace(".", "[.]")
        text = await self._call("GET", "/stats", {"filter": f"^({names})$"})
        values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        try:
            return Traffic(int(values.get(ACTIVE_REQUESTS_STAT, 0)), int(values.get(TOTAL_REQUESTS_STAT, 0)))
        except ValueError as error:
            raise FrontError("the front's figures cannot be read") from error

    async def set_draining(self, draining: bool) -> None:
        """Refuse new inference requests, or take them again; raises FrontError."""
        await self._call("POST", "/runtime_modify", {DRAINING_KEY: "100" if draining else "0"})

    async def set_unhealthy(self, unhealthy: bool) -> None:
        """Fail the health checks, or pass them on to the engine again; raises FrontError."""
        await self._call("POST", "/runtime_modify", {UNHEALTHY_KEY: "100" if unhealthy else "0"})

    async def _call(self, method: str, path: str, query: dict[str, str]) -> str:
        limits = aiohttp.ClientTimeout(total=_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket))) as session,
                session.request(method, f"http://front{path}", params=query, timeout=limits) as response,
            ):
                text = await response.text()
                if response.status != 200:
                    raise FrontError(f"the front answers {path} with {response.status}")
                return text
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise FrontError(f"the front's admin socket does not answer: {type(error).__name__}") from error
