"""What an agent asks of an engine, whichever it is, and what can go wrong.

Rules:
- an engine that is not there (EngineGoneError) is another thing than one that does not answer in time
  (EngineSlowError): the first lost its adapters, the second may be under load;
- names are those that gateways use; what an engine calls them is its client's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_SAME = 0.02


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


class Engine(Protocol):
    """A client of the engine on the pod's loopback. Every method raises EngineGoneError and EngineSlowError."""

    async def healthy(self) -> bool:
        """Whether the engine says that it is healthy."""
        ...

    async def models(self) -> frozenset[str]:
        """Every name that requests may be sent under: the base's and the loaded adapters'."""
        ...

    async def busy_adapters(self) -> frozenset[str] | None:
        """Names of adapters whose folders the engine may still need; None where it does not tell."""
        ...

    async def load(self, name: str, path: str) -> None:
        """Load the adapter at `path` (a folder that the engine sees) under `name`; fine if it is loaded already."""
        ...

    async def unload(self, name: str) -> None:
        """Take a name out; running requests end with their adapter. It is fine if it is not there."""
        ...

    async def ask(self, model: str, tokens: int = 1) -> Answer:
        """Generate `tokens` tokens from a fixed prompt, greedily."""
        ...

    def begun(self) -> frozenset[str] | None:
        """Adapters that it was told to begin with; None: nothing yet, or it loads them while it runs."""
        ...

    async def begin(self, adapters: Mapping[str, str]) -> None:
        """Have it begin anew with these adapters, by name the folder, and wait until it lists them.

        Raises EngineError where it does not come up with them; it has then been told to begin as before. Only engines
        that load at start do this; requests that run end.
        """
        ...


def _finite(top: Mapping[str, float]) -> bool:
    return any(map(math.isfinite, top.values()))


def _close(mine: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    return mine.keys() == theirs.keys() and all(abs(mine[k] - theirs[k]) <= _SAME for k in mine)
