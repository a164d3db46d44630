"""Engines that answer whoever asks: the front demands the key before them, and is told here which names are served.

`AloneEngine` serves its base alone, under whatever name it is asked. `CustomVllm` loads adapters as vLLM does, and the
front hears of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tuneyard.systems.engines.base import Answer, EngineError, EngineRefusedError
from tuneyard.systems.engines.frontnames import Called, FrontNames
from tuneyard.systems.engines.http import HttpEngine
from tuneyard.systems.engines.vllm import Vllm

_NO_COMPLETIONS = (404, 405, 501)


class AloneEngine(HttpEngine):
    """A client of an engine that serves `base`, which it calls `model`."""

    def __init__(self, url: str, base: str, model: str, names: FrontNames, health_path: str) -> None:
        super().__init__(url, health_path=health_path)
        self._base, self._model, self._names = base, model, names

    async def models(self) -> frozenset[str]:
        """The base alone: what the engine lists is of no matter to who cannot ask for it."""
        self._names.write({self._base: Called(self._model)})
        return frozenset({self._base})

    async def busy_adapters(self) -> frozenset[str]:
        """None has an adapter."""
        return frozenset()

    async def load(self, name: str, path: str) -> None:
        """Refused."""
        raise EngineError(f"this engine loads no adapters, neither {name} nor any other of {path}")

    async def unload(self, name: str) -> None:
        """Nothing was loaded."""

    async def ask(self, model: str, tokens: int = 1, seconds: float = 120.0) -> Answer:
        """Generate `tokens` tokens; servers that know only chats are asked in one."""
        if model != self._base:
            raise EngineError(f"{model} is not served here")
        try:
            answer = await self.completed(self._model, tokens, seconds)
        except EngineRefusedError as error:
            if error.status not in _NO_COMPLETIONS:
                raise
            answer = await self._chatted(tokens, seconds)
        # the base answers whatever it calls itself
        return replace(answer, model=self._base)

    async def _chatted(self, tokens: int, seconds: float) -> Answer:
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": self._model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        found = await self._json("POST", "/v1/chat/completions", body, seconds)
        try:
            return Answer(self._base, str(found["choices"][0]["message"].get("content") or ""))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(f"the engine's answer has no {error}") from error


class CustomVllm(Vllm):
    """A client of an engine with vLLM's way of loading adapters, behind a front that demands the key."""

    def __init__(self, url: str, base: str, model: str, names: FrontNames, health_path: str) -> None:
        super().__init__(url, health_path=health_path)
        self._base, self._model, self._names = base, model, names

    async def models(self, seconds: float = 5.0) -> frozenset[str]:
        """The names that the engine lists, its own for the base turned into ours; the front serves these."""
        listed = await super().models(seconds)
        found = {name: Called(name) for name in listed - {self._model, self._base}}
        if self._model in listed:
            found[self._base] = Called(self._model)
        self._names.write(found)
        return frozenset(found)

    async def unload(self, name: str, seconds: float = 30.0) -> None:
        """The front refuses it first: some engines would answer with the base."""
        kept: Mapping[str, Called] = {n: Called(self._model if n == self._base else n) for n in self._names.read()}
        self._names.write({n: called for n, called in kept.items() if n != name})
        await super().unload(name, seconds)

    async def ask(self, model: str, tokens: int = 1, seconds: float = 120.0) -> Answer:
        """Generate `tokens` tokens from a fixed prompt."""
        answer = await self.completed(self._model if model == self._base else model, tokens, seconds)
        return replace(answer, model=self._base) if answer.model == self._model else answer
