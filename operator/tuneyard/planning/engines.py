"""What each engine can do, as far as plans depend on it: one row per engine, and the checks that follow from the row.

A row says what Tuneyard does with the engine, which may be less than the engine can do. How its container is run is in
a file per engine (vllmcontainer.py, llamacppcontainer.py, presetcontainers.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from tuneyard.api.reasons import Reason
from tuneyard.api.serving import CustomEngine
from tuneyard.planning.observations import Problem

Weights = Literal["safetensors", "gguf"]


class Loading(StrEnum):
    """When an engine takes adapters."""

    AT_RUN_TIME = "AtRunTime"
    AT_START = "AtStart"
    NEVER = "Never"


@dataclass(frozen=True)
class Capabilities:
    """What plans ask about an engine."""

    adapters: Loading
    weights: frozenset[Weights]
    gpus: bool
    """Whether its pods ask for a GPU where nothing is said of resources."""
    parallel: bool
    """Whether serving.tensorParallelSize means something to it."""
    context: bool
    """Whether serving.maxModelLen does."""
    guards: bool
    """Whether the engine itself demands the key and refuses models that it does not know; else the front does."""
    health_path: str = "/health"
    metrics: bool = True
    """Whether it may have a page of metrics."""
    parts: bool = True
    """Whether it may read a GGUF model that is split into several files."""
    own_image: bool = False
    """Whether serving.image has to name its image."""
    model_name: str | None = None
    """What it wants to read as `model` for the base; None: the BaseModel's name."""


_SAFETENSORS: frozenset[Weights] = frozenset({"safetensors"})
_GGUF: frozenset[Weights] = frozenset({"gguf"})

ENGINES: Mapping[str, Capabilities] = MappingProxyType(
    {
        "vllm": Capabilities(Loading.AT_RUN_TIME, _SAFETENSORS, gpus=True, parallel=True, context=True, guards=True),
        "llamaCpp": Capabilities(Loading.AT_START, _GGUF, gpus=False, parallel=False, context=True, guards=False),
        "ollama": Capabilities(
            *(Loading.NEVER, _GGUF),
            gpus=False,
            parallel=False,
            context=True,
            guards=False,
            health_path="/",
            metrics=False,
            parts=False,
            own_image=True,
        ),
        "sglang": Capabilities(
            Loading.NEVER, _SAFETENSORS, gpus=True, parallel=True, context=True, guards=False, own_image=True
        ),
        "tgi": Capabilities(
            *(Loading.NEVER, _SAFETENSORS),
            gpus=True,
            parallel=True,
            context=True,
            guards=False,
            own_image=True,
            model_name="tgi",
        ),
        "custom": Capabilities(
            *(Loading.NEVER, _SAFETENSORS | _GGUF),
            gpus=False,
            parallel=False,
            context=False,
            guards=False,
            own_image=True,
        ),
    }
)
LOADING = tuple(name for name, row in ENGINES.items() if row.adapters is not Loading.NEVER)
"""Engines that serve adapters."""


def capabilities(engine: str, custom: CustomEngine | None) -> Capabilities:
    """What an engine can do; of a custom one, what is said of it."""
    row = ENGINES[engine]
    if engine != "custom" or custom is None:
        return row
    return replace(
        row, adapters=_LOADING[custom.adapters], health_path=custom.health_path, model_name=custom.model_name
    )


_LOADING = {"None": Loading.NEVER, "AtRunTime": Loading.AT_RUN_TIME}


def serving(weights: Weights) -> list[str]:
    """Engines that serve bases of this format, custom ones left out."""
    return [name for name, row in ENGINES.items() if weights in row.weights and name != "custom"]


def weights_not_served(engine: str, weights: Weights) -> Problem | None:
    """A base in a format that the engine does not read."""
    if weights in ENGINES[engine].weights:
        return None
    kind = {"gguf": "GGUF", "safetensors": "safetensors"}[weights]
    other = "" if weights == "gguf" else ", or convert the base to GGUF"
    words = f"the base is {kind}, which engine {engine} does not serve: use serving.engine {listed(serving(weights))}"
    return Problem(Reason.ENGINE_UNSUITABLE, words + other)


def having(capability: Literal["parallel", "context"]) -> list[str]:
    """Engines to which a field of the serving block means something."""
    return [name for name, row in ENGINES.items() if getattr(row, capability)]


def listed(engines: Iterable[str]) -> str:
    """Names for people: `a, b or c`."""
    *others, last = engines
    return f"{', '.join(others)} or {last}" if others else last
