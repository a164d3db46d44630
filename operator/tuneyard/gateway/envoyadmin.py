"""The admin interface of the Envoy beside this process, over its Unix socket, and what is done with it.

Draining is `/healthcheck/fail` (every answer closes its connection), because `/healthcheck/ok` takes it back. The
kubelet may end this process alone, and its successor must find an Envoy that serves as before: nothing undoes
`/drain_listeners`.
"""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from tuneyard.systems.envoy.bootstrap import STAT_PREFIX

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_ACTIVE = f"http.{STAT_PREFIX}.downstream_rq_active"
_TOTAL = f"http.{STAT_PREFIX}.downstream_rq_total"
_QUIET = 1.0
"""Seconds without any request, after which a client may be assumed to have gone elsewhere."""
_LOOK = 0.2

_log = logging.getLogger(__name__)


class EnvoyAdmin:
    """What is asked of Envoy."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def _ask(self, method: str, path: str) -> str:
        connector = aiohttp.UnixConnector(self._socket)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
            session.request(method, f"http://envoy{path}") as response,
        ):
            return await response.text()

    async def metrics(self) -> str:
        """Envoy's Prometheus page, without what was never used; empty while Envoy does not answer."""
        try:
            return await self._ask("GET", "/stats/prometheus?usedonly")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""

    async def certificates(self) -> str:
        """Envoy's page of the certificates it has in use; no key is on it. Raises aiohttp's errors and OSError."""
        return await self._ask("GET", "/certs")

    async def _requests(self) -> tuple[int, int]:
        """(active, ever)."""
        told = await self._ask("GET", f"/stats?filter=^http.{STAT_PREFIX}.downstream_rq_(active|total)$")
        stats = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
        return int(stats.get(_ACTIVE, 0)), int(stats.get(_TOTAL, 0))

    async def resume(self) -> None:
        """Take back what an earlier process began with `drain`; returns once Envoy has answered."""
        while True:
            try:
                await self._ask("POST", "/healthcheck/ok")
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(_LOOK)
            else:
                return

    async def reopen_logs(self) -> bool:
        """Have Envoy open its log files by their names anew; returns whether it was there to be asked."""
        try:
            await self._ask("POST", "/reopen_logs")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return True

    async def drain(self, within: float) -> bool:
        """Send clients elsewhere, let running requests finish; returns whether they did within so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        try:
            await self._ask("POST", "/healthcheck/fail")
            quiet_since, ever = loop.time(), -1
            while loop.time() < deadline:
                active, total = await self._requests()
                if active or total != ever:
                    quiet_since, ever = loop.time(), total
                elif loop.time() - quiet_since >= _QUIET:
                    return True
                await asyncio.sleep(_LOOK)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # Envoy is gone: nothing is left to wait for
            _log.warning("Envoy's admin interface does not answer: %s", error)
            return True
        return False
