"""llama.cpp's server: it takes adapters only when it begins, knows them by number, and never says no.

Rules:
- what it begins with stands in a file that the loop in its container watches (planning/llamacppcontainer.py);
- it answers any `model` and any number of an adapter with 200, most with the base: so which number is whose is read
  from the server at every look and told to the front (frontnames.py), which refuses whatever is not among them;
- every adapter begins at scale 0 and a request names its own with scale 1: what names none is the base;
- an adapter that is unloaded loses its name, and stays in the server until that begins anew: its folder is kept until
  then, because a server that ends by itself begins with it again;
- a server that does not come up with new adapters is told to begin as before: what was served is served again.

Measured on build 11434: ready after 0.3 to 0.6 s on a small model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tuneyard.systems.engines.base import Answer, EngineError, EngineGoneError, EngineSlowError
from tuneyard.systems.engines.frontnames import Called, FrontNames
from tuneyard.systems.engines.http import HttpEngine

_log = logging.getLogger(__name__)

ADAPTER = "adapter.gguf"
_LOOK = 0.1
ABSENT = 45.0
"""Seconds that nobody listens until it counts as not coming: it listens before it reads its base, and the kubelet
begins a container that has ended again after 10 and 20 seconds."""
_MOST_ENDS = 2
"""The server before it ends once; a second end is the new one's."""


class LlamaCpp(HttpEngine):
    """A client of one server; `model` is the base's file, `orders` what the server begins with."""

    def __init__(
        self, url: str, base: str, model: Path, orders: Path, names: FrontNames, *, patience: float = 600.0
    ) -> None:
        """`patience`: seconds that a server may take to come up with other adapters."""
        super().__init__(url)
        self._base, self._model, self._orders, self._names = base, model, orders, names
        self._patience = patience
        self._numbers: dict[str, int] = {}
        self._beginning = False

    def begun(self) -> frozenset[str] | None:
        """The adapters that the server begins with."""
        lines = self._read()
        return None if lines is None else frozenset(_names_in(lines))

    async def begin(self, adapters: Mapping[str, str]) -> None:
        """Have it begin anew with these."""
        before = self._read()
        self._beginning = True
        try:
            self._names.write({})
            self._write(adapters)
            async with asyncio.timeout(self._patience):
                came_up = await self._came_up(frozenset(adapters))
        except TimeoutError:
            came_up = False
        finally:
            self._beginning = False
        if not came_up:
            self._store(before[1:] if before else ["--model", str(self._model)])
            raise EngineError(f"llama-server does not come up with {', '.join(sorted(adapters)) or 'its base'}")

    async def models(self) -> frozenset[str]:
        """The base, and the adapters that the server has and that were not unloaded; the front serves these."""
        if self._beginning:
            raise EngineGoneError("llama-server begins anew")
        listed = await self._listed()
        if listed.keys() != (self.begun() or frozenset()):
            # numbers of one that is about to end
            raise EngineGoneError("llama-server is about to begin anew")
        told = self._names.read()
        lapsed = (self._numbers.keys() - told) if told else frozenset()
        kept = {name: number for name, number in listed.items() if name not in lapsed}
        self._serve(kept)
        return frozenset({self._base, *kept})

    async def busy_adapters(self) -> frozenset[str]:
        """All that it would begin with again."""
        return self.begun() or frozenset()

    async def load(self, name: str, path: str) -> None:
        """Give an adapter that it has its name again; it takes none that it did not begin with."""
        if name not in self._numbers:
            raise EngineError(f"llama-server begins with its adapters: {name} at {path} is none of them")
        told = self._names.read() | {name}
        self._serve({n: number for n, number in self._numbers.items() if n in told})

    async def unload(self, name: str) -> None:
        """The front refuses the name from now on; running requests end with their adapter."""
        self._serve({n: number for n, number in self._numbers.items() if n != name and n in self._names.read()})

    async def ask(self, model: str, tokens: int = 1, seconds: float = 120.0) -> Answer:
        """Generate `tokens` tokens with an adapter by its number, or with none."""
        if model != self._base and model not in self._numbers:
            raise EngineError(f"{model} is not served here")
        answer = await self.completed(self._base, tokens, seconds, lora=self._lora(model), cache_prompt=False)
        # it calls every answer the base's; whose number it was given is known here
        return replace(answer, model=model)

    def _lora(self, name: str) -> list[dict[str, float]]:
        return [] if name == self._base else [{"id": self._numbers[name], "scale": 1.0}]

    def _serve(self, numbers: Mapping[str, int]) -> None:
        called = {name: Called(self._base, json.dumps([{"id": n, "scale": 1.0}])) for name, n in numbers.items()}
        self._names.write({self._base: Called(self._base, "[]"), **called})

    async def _listed(self) -> dict[str, int]:
        """The server's adapters that it was told to begin with, by name their number."""
        status, text = await self._request("GET", "/lora-adapters", seconds=5.0)
        if status != 200:
            raise EngineError(f"/lora-adapters answered {status}")
        try:
            self._numbers = {Path(item["path"]).parent.name: int(item["id"]) for item in json.loads(text)}
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError("/lora-adapters cannot be read") from error
        return dict(self._numbers)

    async def _came_up(self, adapters: frozenset[str]) -> bool:
        """Wait until it lists these; False when it went again once more than the one before it, or does not come."""
        went, there, last = 0, False, time.monotonic()
        while went < _MOST_ENDS and time.monotonic() - last < ABSENT:
            try:
                healthy = await self.healthy()
                there, last = True, time.monotonic()
                if healthy and (await self._listed()).keys() == adapters:
                    return True
            except EngineGoneError:
                went, there = went + there, False
            except EngineSlowError:
                last = time.monotonic()  # it reads its base
            await asyncio.sleep(_LOOK)
        return False

    def _read(self) -> list[str] | None:
        try:
            return self._orders.read_text().splitlines() or None
        except OSError:
            return None

    def _write(self, adapters: Mapping[str, str]) -> None:
        arguments = ["--model", str(self._model)]
        for _, folder in sorted(adapters.items()):
            arguments += ["--lora-scaled", f"{folder}/{ADAPTER}:0"]
        self._store(arguments)

    def _store(self, arguments: list[str]) -> None:
        """The first line differs from the one before, so that the server begins anew whatever the others are."""
        scratch = self._orders.with_name(f".{self._orders.name}.new")
        try:
            scratch.write_text("\n".join([str(time.time_ns()), *arguments]) + "\n")
            scratch.chmod(0o644)
            scratch.replace(self._orders)
        except OSError as error:
            raise EngineError(f"the engine cannot be told what to begin with: {error.strerror}") from error


def _names_in(lines: list[str]) -> list[str]:
    suffix = f"/{ADAPTER}:0"
    return [Path(line.removesuffix(suffix)).name for line in lines if line.endswith(suffix)]
