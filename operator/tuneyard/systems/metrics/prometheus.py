"""One number from a server that speaks Prometheus' HTTP API (Prometheus, Thanos, Mimir, VictoriaMetrics).

Rules:
- an answer is one number: a scalar, or a vector of one element. Everything else is `NoNumberError`, whose words name
  the cause and nothing of what the server has sent: labels, and errors that quote them, are other tenants'. Only what
  it says of the query's own syntax is told on;
- a cluster that is not heard whole gives none: Thanos and VictoriaMetrics are asked not to answer by a part of their
  stores, in the words of each;
- a query takes TIMEOUT seconds at most with all that belongs to it, an answer LIMIT bytes; no redirect is followed, so
  that the token goes to the address that was set and nowhere else;
- token and authorities are read at each request, so that what is renewed is used; they stand in no text.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tuneyard.planning.settings import PrometheusSettings

TIMEOUT = 10.0
"""Seconds."""
LIMIT = 1 << 20
"""Bytes of an answer; one of a single element has some hundred."""
_WHOLE = {"partial_response": "false", "deny_partial_response": "1"}
"""Of Thanos, and of VictoriaMetrics; the others do not read it."""
_SYNTAX = "parse error"
_TOLD = 200
_CONNECTIONS = 32


class NoNumberError(Exception):
    """There is no number; the message says why."""


@asynccontextmanager
async def connected(settings: PrometheusSettings, within: float = TIMEOUT) -> AsyncIterator[Prometheus]:
    """The server of the settings; belongs to the loop that opened it. `within`: seconds of each query."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=within),
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    ) as session:
        yield Prometheus(settings, session, within)


class Prometheus:
    """One server."""

    def __init__(self, settings: PrometheusSettings, session: aiohttp.ClientSession, within: float) -> None:
        self._url = f"{settings.url.rstrip('/')}/api/v1/query"
        self._token_file = settings.token_file
        self._ca_file = settings.ca_file
        self._session = session
        self._within = within
        self._authorities: tuple[bytes, ssl.SSLContext] | None = None

    async def ask(self, query: str) -> float:
        """The number that the query gives now; raises NoNumberError."""
        headers, trust = self._headers(), self._trust()
        form = {"query": query, "timeout": f"{self._within:g}s", **_WHOLE}
        try:
            async with self._session.post(
                self._url, data=form, headers=headers, ssl=trust, allow_redirects=False
            ) as response:
                text = await _read(response)
                return _number(response.status, response.headers.get("Location"), text)
        except TimeoutError:
            raise NoNumberError(f"Prometheus has not answered within {self._within:g} s") from None
        except aiohttp.ClientConnectorCertificateError:
            raise NoNumberError(
                "Prometheus' certificate is not trusted: set prometheus.caConfigMap in Tuneyard's chart"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NoNumberError(f"Prometheus cannot be reached ({type(error).__name__}): see prometheus.url") from None

    def _headers(self) -> Mapping[str, str]:
        if not self._token_file:
            return {}
        token = _contents(self._token_file, "token", "prometheus.tokenSecret").decode(errors="replace").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise NoNumberError(
                "the token for Prometheus is empty or not one line of ASCII: see prometheus.tokenSecret"
            )
        return {"Authorization": f"Bearer {token}"}

    def _trust(self) -> ssl.SSLContext | bool:
        if not self._ca_file or not self._url.startswith("https:"):
            return True
        pem = _contents(self._ca_file, "authorities", "prometheus.caConfigMap")
        if self._authorities is None or self._authorities[0] != pem:
            context = ssl.create_default_context()
            try:
                context.load_verify_locations(cadata=pem.decode())
            except (ssl.SSLError, ValueError):
                raise NoNumberError("ca.crt of prometheus.caConfigMap holds no certificate") from None
            self._authorities = pem, context
        return self._authorities[1]


def _contents(path: str, what: str, value: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        words = f"the {what} for Prometheus cannot be read ({error.strerror}): see {value} in Tuneyard's chart"
        raise NoNumberError(words) from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body; of more than LIMIT bytes nothing is kept."""
    text = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        text += chunk
        if len(text) > LIMIT:
            raise NoNumberError(f"the answer is longer than {LIMIT >> 20} MiB: the query has far too many elements")
    return bytes(text)


def _number(status: int, elsewhere: str | None, text: bytes) -> float:
    if elsewhere is not None and 300 <= status < 400:
        raise NoNumberError(f"Prometheus redirects (HTTP status {status}), which is not followed: see prometheus.url")
    answer = _parsed(text)
    if status != 200 or answer.get("status") != "success":
        raise NoNumberError(_refusal(status, answer))
    if answer.get("isPartial"):
        raise NoNumberError("the answer is partial: some of the cluster's storage has not answered")
    data = answer.get("data")
    if not isinstance(data, dict):
        raise NoNumberError("the answer is not one of Prometheus' API: see prometheus.url")
    return _single(data.get("resultType"), data.get("result"))


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(status: int, answer: Mapping[str, Any]) -> str:
    words = f"Prometheus answered with HTTP status {status}"
    if status in (401, 403):
        return f"{words}: see prometheus.tokenSecret in Tuneyard's chart"
    kind, told = answer.get("errorType"), str(answer.get("error") or "")
    if status == 400 and kind == "bad_data" and _SYNTAX in told:
        return f"{words}: {told[told.index(_SYNTAX) :][:_TOLD]}"
    known = (
        "bad_data",
        "execution",
        "timeout",
        "canceled",
        "internal",
        "unavailable",
        "not_found",
        "too_many_requests",
    )
    return f"{words} ({kind})" if kind in known else words


def _single(kind: Any, result: Any) -> float:
    """The number of a scalar or of a vector's only element."""
    sample = result
    if kind == "vector":
        elements = result if isinstance(result, list) else []
        if not elements:
            raise NoNumberError("the query gives nothing: no series matches now")
        if len(elements) > 1:
            words = f"the query gives {len(elements)} elements, and has to give one: wrap it in sum() or max()"
            raise NoNumberError(words)
        sample = elements[0].get("value") if isinstance(elements[0], dict) else None
    elif kind != "scalar":
        raise NoNumberError("the query gives no instant number: its type must be scalar or vector")
    try:
        return float(sample[1])
    except (TypeError, ValueError, IndexError, KeyError):
        raise NoNumberError("the query gives a histogram or a text, and no number") from None
