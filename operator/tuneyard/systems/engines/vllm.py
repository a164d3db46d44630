"""vLLM as its neighbours see it: health, models, adapters in and out, and a token on request.

Rules:
- reply texts change between releases; only statuses and `/v1/models` are relied on;
- an engine that is not there (EngineGoneError) is another thing than one that does not answer in time
  (EngineSlowError): the first lost its adapters, the second may be under load;
- every request has a connection of its own: with kept ones, an engine that closes an idle connection in the moment
  it is used again looks like an engine that is gone;
- the key goes into the Authorization header and nowhere else; no error's text holds a header.

Measured on vLLM 0.32 (docs: engines): load 5 to 54 ms, unload 2 ms, a running stream outlives the unloading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

_CONNECT = 2.0
_PROMPT = "Hello, my name is"
_LORA_INFO = re.compile(r"^vllm:lora_requests_info\{(?P<labels>.*)\}\s+(?P<value>\S+)", re.MULTILINE)
_WAITING = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})?\s+(?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_SAME = 0.02
_NO_LOGPROBS = (400, 500)
"""What an engine answers that cannot give log-probabilities; an overloaded one says 503."""


class EngineError(Exception):
    """The engine did not do what was asked; the text is for people."""


class EngineGoneError(EngineError):
    """Nothing listens, or the connection was cut."""


class EngineSlowError(EngineError):
    """No answer in time."""


class EngineRefusedError(EngineError):
    """The engine answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What the engine generated."""

    model: str
    """The name under which it says it has answered."""
    text: str
    logprobs: tuple[Mapping[str, float], ...] = ()
    """For each token, the likeliest tokens' log-probabilities; empty where the engine gives none."""

    def is_broken(self, reference: Answer) -> bool:
        """Whether the engine computed NaN, where the same engine once gave `reference`.

        NaN cannot be written as JSON, so that an engine refuses to tell the log-probabilities; its text is then
        nothing, or the first word of the vocabulary over and over.
        """
        if reference.logprobs:
            return not any(map(_finite, self.logprobs))
        return bool(reference.text) and not self.text

    def equals(self, other: Answer) -> bool:
        """Whether two models answered the same: text, and how sure they were of every token."""
        if self.text != other.text or len(self.logprobs) != len(other.logprobs):
            return False
        return all(_close(mine, theirs) for mine, theirs in zip(self.logprobs, other.logprobs, strict=True))


class Vllm:
    """A client of one engine; use it as an asynchronous context manager."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
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
        status, _ = await self._request("GET", "/health", seconds=seconds)
        return status == 200

    async def models(self, seconds: float = 5.0) -> frozenset[str]:
        """Every name that requests may be sent under: the base's and the loaded adapters'."""
        answer = await self._json("GET", "/v1/models", seconds=seconds)
        return frozenset(str(model["id"]) for model in answer.get("data", []))

    async def busy_adapters(self, seconds: float = 5.0) -> frozenset[str] | None:
        """Names of adapters with requests in the engine; None where it does not tell."""
        status, text = await self._request("GET", "/metrics", seconds=seconds)
        return busy_in(text) if status == 200 else None

    async def load(self, name: str, path: str, seconds: float = 120.0) -> None:
        """Load the adapter at `path` (a folder that the engine sees) under `name`; fine if it is loaded already."""
        try:
            await self._json("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, seconds)
        except EngineRefusedError as error:
            if error.status != 400 or name not in await self.models():
                raise

    async def unload(self, name: str, seconds: float = 30.0) -> None:
        """Take a name out; running requests end with their adapter. It is fine if it is not there."""
        try:
            await self._json("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds)
        except EngineRefusedError as error:
            if error.status != 404:
                raise

    async def ask(self, model: str, tokens: int = 1, seconds: float = 120.0) -> Answer:
        """Generate `tokens` tokens from a fixed prompt, greedily, with the log-probabilities of the likeliest ones.

        Where the engine answers, but twice not with log-probabilities, it gives none at all or it computes NaN, which
        JSON cannot hold: then the answer has none.
        """
        body = {"model": model, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        plain: dict[str, Any] | None = None
        for _ in range(2):
            try:
                return _answer(await self._json("POST", "/v1/completions", {**body, "logprobs": 3}, seconds))
            except EngineRefusedError as error:
                if error.status not in _NO_LOGPROBS:
                    raise
            plain = plain or await self._json("POST", "/v1/completions", body, seconds)
        return _answer(plain or {})

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


def busy_in(metrics: str) -> frozenset[str] | None:
    """Adapters with requests in the engine, from vLLM's metrics page; None while that cannot be told.

    The gauge has the names in its labels and the time of the observation as value: the latest one counts. It names a
    request's adapter only from its first token on, so that while requests wait anybody may be among them.
    """
    if any(_number(match["value"]) for match in _WAITING.finditer(metrics)):
        return None
    found = [(_number(match["value"]), match["labels"]) for match in _LORA_INFO.finditer(metrics)]
    if not found:
        return None
    labels = dict(_LABEL.findall(max(found)[1]))
    names = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
    return frozenset(name.strip() for name in names.split(",") if name.strip())


def _answer(body: Mapping[str, Any]) -> Answer:
    try:
        choice = body["choices"][0]
        tops = (choice.get("logprobs") or {}).get("top_logprobs") or []
        logprobs = tuple({str(k): float(v) for k, v in top.items() if v is not None} for top in tops if top)
        return Answer(str(body["model"]), str(choice.get("text") or ""), logprobs)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's answer has no {error}") from error


def _message(text: str) -> str:
    """The message of an error, in OpenAI's shape or vLLM's older flat one."""
    try:
        found = json.loads(text)
        return str((found.get("error") or found).get("message") or "")[:2000]
    except (ValueError, AttributeError):
        return text[:500]


def _finite(top: Mapping[str, float]) -> bool:
    return any(map(math.isfinite, top.values()))


def _close(mine: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    return mine.keys() == theirs.keys() and all(abs(mine[k] - theirs[k]) <= _SAME for k in mine)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
