"""OpenAI's protocol as an agent speaks it to an engine: health, a token on request, and errors told apart.

Rules:
- every request has a connection of its own: with kept ones, an engine that closes an idle connection in the moment
  it is used again looks like an engine that is gone;
- the key goes into the Authorization header and nowhere else; no error's text holds a header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from tuneyard.systems.engines.base import (
    Answer,
    EngineError,
    EngineGoneError,
    EngineRefusedError,
    EngineSlowError,
)

_CONNECT = 2.0
_PROMPT = "Hello, my name is"
_NO_LOGPROBS = (400, 422, 500)
"""What an engine answers that cannot give log-probabilities; an overloaded one says 503."""


class HttpEngine:
    """A client of one engine; use it as an asynchronous context manager."""

    def __init__(self, url: str, key: str = "", health_path: str = "/health") -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._health_path = health_path
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(force_close=True, limit=64)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def healthy(self, seconds: float = 2.0) -> bool:
        """Whether the engine says that it is healthy; raises EngineGoneError and EngineSlowError."""
        status, _ = await self._request("GET", self._health_path, seconds=seconds)
        return status == 200

    def begun(self) -> frozenset[str] | None:
        """Nothing: it takes adapters while it runs, or none."""
        return None

    async def begin(self, adapters: Mapping[str, str]) -> None:
        """Refused: it is not told what to begin with."""
        raise EngineError(f"this engine is not begun anew for adapters ({len(adapters)} are wanted)")

    async def completed(self, model: str, tokens: int, seconds: float, **more: Any) -> Answer:
        """Generate `tokens` tokens from a fixed prompt, greedily, with the log-probabilities of the likeliest ones.

        Where the engine answers, but twice not with log-probabilities, it gives none at all or it computes NaN, which
        JSON cannot hold: then the answer has none.
        """
        body = {"model": model, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        plain: dict[str, Any] | None = None
        for _ in range(2):
            try:
                return answer_in(await self._json("POST", "/v1/completions", {**body, "logprobs": 3}, seconds))
            except EngineRefusedError as error:
                if error.status not in _NO_LOGPROBS:
                    raise
            plain = plain or await self._json("POST", "/v1/completions", body, seconds)
        return answer_in(plain or {})

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = 30.0
    ) -> dict[str, Any]:
        """The JSON of a good answer ({} for a text); raises EngineRefusedError with the engine's message otherwise."""
        status, text = await self._request(method, path, body, seconds=seconds)
        if status != 200:
            raise EngineRefusedError(status, _message(text) or f"{path} answered {status}")
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float
    ) -> tuple[int, str]:
        if self._session is None:
            raise EngineGoneError("the client is closed")
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT)
        try:
            async with self._session.request(
                method, self._url + path, json=body, headers=self._headers, timeout=limits
            ) as response:
                return response.status, await response.text(errors="replace")
        except TimeoutError as error:
            raise EngineSlowError(f"the engine did not answer {path} within {seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise EngineGoneError(f"the engine does not answer {path}: {type(error).__name__}") from error


def answer_in(body: Mapping[str, Any]) -> Answer:
    """The answer in a completion; raises EngineError."""
    try:
        choice = body["choices"][0]
        return Answer(str(body["model"]), str(choice.get("text") or ""), _logprobs(choice.get("logprobs") or {}))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's answer has no {error}") from error


def _logprobs(told: Mapping[str, Any]) -> tuple[dict[str, float], ...]:
    """Each token's likeliest tokens: a mapping in OpenAI's older form, a list in the newer one that llama.cpp has."""
    tops = told.get("top_logprobs") or []
    for token in told.get("content") or []:
        tops = [*tops, {t["token"]: t["logprob"] for t in token.get("top_logprobs") or []}]
    return tuple({str(k): float(v) for k, v in top.items() if v is not None} for top in tops if top)


def _message(text: str) -> str:
    """The message of an error, in OpenAI's shape or vLLM's older flat one."""
    try:
        found = json.loads(text)
        return str((found.get("error") or found).get("message") or "")[:2000]
    except (ValueError, AttributeError):
        return text[:500]
