"""A copy of a request on its way to a pod of the mirrored revision: asked once, for a time, and never again.

Rules:
- none of the user's headers goes with it: no credentials, and no request id either, because engines take two requests
  of one id for the same, and both may be in one engine;
- the answer is read to its end, so that the pod does the work that it would do for a user, and kept up to a limit;
- a pod that is just leaving says so by header; that is nobody's fault, and the copy counts as withdrawn.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import aiohttp

from tuneyard.planning.mirrored import Came, Outcome
from tuneyard.systems.envoy.bootstrap import HOP_HEADER
from tuneyard.systems.envoy.documents import DRAINING_HEADER, RETRY_HEADER
from tuneyard.systems.envoy.mirroring import ANSWER_LIMIT

DEADLINE = 120.0
"""Seconds that a copy may take."""
_CONNECT = 5.0
"""Seconds for a connection: longer than this process may be without CPU, which is no fault of the pod."""


@dataclass(frozen=True)
class Question:
    """What a pod is asked."""

    id: str
    address: str
    path: str
    key: str
    """The engine's key."""
    body: bytes
    server_name: str = ""
    """What its certificate must say; empty: it is asked without TLS."""

    def __repr__(self) -> str:
        return f"Question({self.id} to {self.address})"


class Pods:
    """Asks pods; needs a running event loop."""

    def __init__(self, deadline: float = DEADLINE, authority: str = "") -> None:
        """`authority`: who has signed the certificates of pods, in PEM."""
        self._deadline = deadline
        self._tls = ssl.create_default_context(cadata=authority or None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
        )

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()

    async def ask(self, question: Question) -> Came | Outcome | None:
        """The answer, or how it failed; None where the pod was just leaving."""
        begun = asyncio.Event()
        try:
            async with asyncio.timeout(self._deadline):
                return await self._ask(question, begun)
        except aiohttp.ConnectionTimeoutError:
            return "unreachable"
        except TimeoutError:
            return "timeout"
        except (aiohttp.ClientError, OSError):
            return "broken" if begun.is_set() else "unreachable"

    async def _ask(self, question: Question, begun: asyncio.Event) -> Came | None:
        clock = asyncio.get_running_loop().time
        start, first, size = clock(), None, 0
        kept: list[bytes] = []
        headers = {
            "authorization": f"Bearer {question.key}",
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": f"mirror-{question.id}",
            HOP_HEADER: "1",
        }
        url = f"{'https' if question.server_name else 'http'}://{question.address}{question.path}"
        async with self._session.post(
            url,
            data=question.body,
            headers=headers,
            allow_redirects=False,
            ssl=self._tls,
            server_hostname=question.server_name or None,
        ) as response:
            if RETRY_HEADER in response.headers or DRAINING_HEADER in response.headers:
                return None
            begun.set()
            async for chunk in response.content.iter_any():
                if first is None and not chunk.startswith(b":"):
                    first = clock() - start
                size += len(chunk)
                if size <= ANSWER_LIMIT:
                    kept.append(chunk)
                else:
                    kept.clear()
        return Came(
            status=response.status,
            kind=response.headers.get("content-type", ""),
            body=b"".join(kept) if size <= ANSWER_LIMIT else None,
            first_ms=None if first is None else first * 1000,
            whole_ms=(clock() - start) * 1000,
        )
