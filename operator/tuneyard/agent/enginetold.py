"""What the pod template says of the engine that a pod has; says it nothing, that is vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from tuneyard.planning.enginepresets import Build
from tuneyard.planning.engines import ENGINES, Loading


@dataclass(frozen=True)
class EngineTold:
    """The engine of a pod."""

    name: str = "vllm"
    adapters: Loading = Loading.AT_RUN_TIME
    health_path: str = "/health"
    model: str = ""
    """What the engine wants to read as `model` for the base; empty: the base's name."""
    version: str = ""
    """Of vLLM, where it is known what this version and build have (enginepresets.py); empty: nothing is known."""
    build: Build = "CUDA"

    @property
    def guards(self) -> bool:
        """Whether the engine itself demands the key and refuses models that it does not know."""
        return ENGINES[self.name].guards

    @property
    def metrics(self) -> bool:
        """Whether it may have a page of metrics."""
        return ENGINES[self.name].metrics


VLLM = EngineTold()


def engine_from(environment: Mapping[str, str]) -> EngineTold:
    """The engine that the environment names; an unknown one is a template of a newer operator's: ValueError."""
    name = environment.get("TUNEYARD_ENGINE")
    if name is None:
        version, build = (environment.get(f"TUNEYARD_ENGINE_{what}", "") for what in ("VERSION", "BUILD"))
        return replace(VLLM, version=version, build=cast("Build", build))
    if name not in ENGINES:
        raise ValueError(f"TUNEYARD_ENGINE {name!r} is no engine that this version knows")
    row = ENGINES[name]
    return EngineTold(
        name,
        Loading(environment.get("TUNEYARD_ENGINE_ADAPTERS", row.adapters.value)),
        environment.get("TUNEYARD_ENGINE_HEALTH", row.health_path),
        environment.get("TUNEYARD_ENGINE_MODEL", ""),
    )
