"""Which client an agent talks to its engine with."""

from __future__ import annotations

from pathlib import PurePosixPath

from tuneyard.agent.basefiles import gguf_name_of
from tuneyard.agent.settings import Settings, SettingsError
from tuneyard.planning.engines import Loading
from tuneyard.planning.llamacppcontainer import ORDERS
from tuneyard.systems.engines.frontnames import FrontNames
from tuneyard.systems.engines.llamacpp import LlamaCpp
from tuneyard.systems.engines.unguarded import AloneEngine, CustomVllm
from tuneyard.systems.engines.vllm import Vllm


def client_of(settings: Settings) -> Vllm | AloneEngine | LlamaCpp:
    """A client of the pod's engine, which is not connected yet; raises SettingsError, ArtifactError."""
    told, url, base = settings.engine, settings.engine_url, settings.base_model
    if told.guards:
        return Vllm(url, settings.engine_key)
    names = FrontNames(settings.run / "front-models")
    if told.name == "llamaCpp":
        file = gguf_name_of(settings.base_path)
        if file is None:
            raise SettingsError(f"{settings.base_path} has no GGUF file: llama.cpp serves no other")
        orders = settings.adapters / PurePosixPath(ORDERS).name
        return LlamaCpp(url, base, settings.base_path / file, orders, names)
    kind = CustomVllm if told.adapters is Loading.AT_RUN_TIME else AloneEngine
    return kind(url, base, told.model or base, names, told.health_path)
