"""The file by which a pod's front knows which names are served and what the engine calls them.

The front (systems/envoy/lua/front_models.lua) reads it at each request; it is replaced as a whole. Names are Kubernetes
names with a digest, without white space.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tuneyard.systems.engines.base import EngineError


class Called(NamedTuple):
    """What an engine reads for a name."""

    model: str
    lora: str = "-"
    """JSON for llama.cpp; `-`: none."""


class FrontNames:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, names: Mapping[str, Called]) -> None:
        """These are served, and no others."""
        lines = [f"{name}\t{called.model}\t{called.lora}\n" for name, called in sorted(names.items())]
        text = "".join(lines)
        try:
            if self._path.exists() and self._path.read_text() == text:
                return
            scratch = self._path.with_name(f".{self._path.name}.new")
            scratch.write_text(text)
            scratch.chmod(0o644)
            scratch.replace(self._path)
        except OSError as error:
            raise EngineError(f"the front cannot be told what is served: {error.strerror}") from error

    def read(self) -> frozenset[str]:
        """The names that are served."""
        try:
            return frozenset(line.split("\t")[0] for line in self._path.read_text().splitlines())
        except OSError:
            return frozenset()
