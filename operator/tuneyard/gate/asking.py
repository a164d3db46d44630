"""Asks a model through the gateway like any client, and tells when its tokens came.

Rules:
- a revision is chosen by header, with the token that allows it; both are sent to the gateway only;
- time to the first token is that of the first chunk with text, never of the headers: engines send those at once;
- an answer of another revision than the one that was asked is no measurement of anything: a gateway that does not know
  the gate yet ignores the header, and stable would be measured as its own candidate. Or it refuses the token, where
  clients need keys, or knows no such revision yet. Then nothing is measured;
- each request says how far the run is (GateRun): there is no other way to tell anybody before it ends;
- whatever else goes wrong with a request is an outcome of it and no exception: what it means is for the caller to say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tuneyard.api import names
from tuneyard.api.gatereports import GateRun

_FIRST_BYTE_SECONDS, _WHOLE_SECONDS = 120.0, 600.0
_LINE_LIMIT = 1 << 22
_UNKNOWN, _FULL = (401, 404), 429
"""By the gateway itself: what a revision answers is marked with its name."""
_TEXT_LIMIT = 200


@dataclass(frozen=True)
class Answer:
    """What came of one request. Times are milliseconds."""

    text: str = ""
    error: str | None = None
    """Why there is no whole answer, in words."""
    reached: bool = True
    """Whether anybody answered at all."""
    served: bool = True
    """False: no pod took it (503, a full pool, or nobody was reached): nobody knows what the revision would answer."""
    tokens: int = 0
    ttft: float | None = None
    itl: float | None = None
    """Mean time between two chunks with text."""
    e2e: float = 0.0


class MisroutedError(Exception):
    """Another revision answered than the one that was asked, or a gateway knows nothing of it."""


class Asker:
    """Requests to one model of one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: str, model: str, token: str, job: str = "") -> None:
        """`job`: whose requests these are, for those who want to know how far it is."""
        self._session = session
        self._gateway = gateway
        self._model = model
        self._headers = {names.GATE_TOKEN_HEADER: token}
        self._job = job

    def is_at(self, done: int, total: int) -> None:
        """So much of the run is done: what requests say from now on."""
        if self._job:
            self._headers[names.GATE_RUN_HEADER] = GateRun(job=self._job, done=done, total=total).header

    async def ask(self, revision: str, body: Mapping[str, Any]) -> Answer:
        """One request, streamed; `body` has messages or a prompt, and all else but the model. Raises MisroutedError."""
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        asked = {**body, "model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        headers = {names.REVISION_HEADER: revision, **self._headers}
        began = time.monotonic()
        try:
            async with self._session.post(self._gateway + path, json=asked, headers=headers) as response:
                told = response.headers.get(names.REVISION_HEADER)
                if told != revision and (told is not None or response.status == 200):
                    raise MisroutedError(
                        f"a gateway sent a request for {revision} to {told}: it does not know this gate (yet)"
                    )
                if told is None and response.status in _UNKNOWN:
                    raise MisroutedError(
                        f"a gateway refused a request for {revision} with {response.status}: "
                        "it does not know this gate or this revision (yet)"
                    )
                if response.status != 200:
                    said = (await response.content.read(2000)).decode(errors="replace")
                    words = f"status {response.status}: {_message(said)}"
                    full = told is None and response.status == _FULL
                    return Answer(error=words, served=response.status != 503 and not full, e2e=_since(began))
                return await _streamed(response, began)
        except (aiohttp.ClientConnectorError, aiohttp.ClientOSError) as error:
            words = f"no connection: {type(error).__name__}"
            return Answer(error=words, reached=False, served=False, e2e=_since(began))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Answer(error=f"broken off: {type(error).__name__}", e2e=_since(began))


def session(concurrency: int) -> aiohttp.ClientSession:
    """A client for that many requests at once."""
    timeout = aiohttp.ClientTimeout(total=_WHOLE_SECONDS, sock_read=_FIRST_BYTE_SECONDS)
    connector = aiohttp.TCPConnector(limit=concurrency)
    return aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=_LINE_LIMIT, trust_env=False)


async def _streamed(response: aiohttp.ClientResponse, began: float) -> Answer:
    texts: list[str] = []
    first = last = None
    said, done = None, False
    async for line in response.content:
        data = line.strip()
        if not data.startswith(b"data:"):
            continue
        data = data.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            done = True
            break
        event = json.loads(data)
        if "error" in event:
            return Answer(error=f"broken off: {_message(data.decode(errors='replace'))}", e2e=_since(began))
        piece = _piece(event)
        if piece:
            last = _since(began)
            first = last if first is None else first
            texts.append(piece)
        said = (event.get("usage") or {}).get("completion_tokens") or said
    if not done:
        return Answer(error="broken off before its end", e2e=_since(began))
    chunks = len(texts)
    return Answer(
        text="".join(texts),
        tokens=int(said or chunks),
        ttft=first,
        itl=(last - first) / (chunks - 1) if first is not None and last is not None and chunks > 1 else None,
        e2e=_since(began),
    )


def _piece(event: Mapping[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    choice = choices[0]
    return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _message(body: str) -> str:
    """The words of an error in OpenAI's shape, else the beginning of what was said."""
    try:
        return str(json.loads(body)["error"]["message"])[:_TEXT_LIMIT]
    except (ValueError, KeyError, TypeError):
        return body.strip()[:_TEXT_LIMIT]
