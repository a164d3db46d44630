"""A serving block with every default filled in: what the pods of a pool are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tuneyard.api.autoscaling import Autoscaling
from tuneyard.api.enginesettings import EngineSettings
from tuneyard.api.schema import seconds
from tuneyard.api.serving import (
    ArtifactCache,
    ArtifactVolume,
    CompileCache,
    CustomEngine,
    LoRASettings,
    Resources,
    ServingSpec,
    Toleration,
)
from tuneyard.planning import engines
from tuneyard.planning.poolreplicas import sleeps_after, spec_replicas

GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Serving:
    """A serving block with every default filled in. Durations are in seconds."""

    engine: str
    image: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    settings: EngineSettings
    """As they were given: what is unset there is the engine's own choice."""
    nodes_per_replica: int
    exclusive_topology_key: str | None
    replicas: int
    scale_to_zero_after: int | None
    max_model_len: int | None
    lora: LoRASettings
    resources: Resources
    artifact_volumes: tuple[ArtifactVolume, ...]
    cache: ArtifactCache
    compile_cache: CompileCache | None
    node_selector: Mapping[str, str]
    tolerations: tuple[Toleration, ...]
    env: Mapping[str, str]
    extra_args: tuple[str, ...]
    update: Literal["Surge", "Replace"]
    drain_timeout: int
    startup_timeout: int
    custom: CustomEngine | None = None
    autoscaling: Autoscaling | None = None
    """Who decides on `replicas`; None: the spec."""

    @property
    def ranks_per_pod(self) -> int:
        """How many parts of the engine a pod runs, each on a GPU of its own where it is one for GPUs."""
        ranks = self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size
        return ranks // self.nodes_per_replica

    @property
    def scales_outside(self) -> bool:
        """Whether somebody else decides on the Deployment's replicas."""
        return bool(self.autoscaling and self.autoscaling.external)

    @property
    def scaled(self) -> Autoscaling | None:
        """By what the operator decides on `replicas`, if it does."""
        return None if self.scales_outside else self.autoscaling

    def declares(self, volume: str) -> bool:
        """Whether pods of the pool have that artifact volume."""
        return any(v.name == volume for v in self.artifact_volumes)


def resolved_serving(*blocks: ServingSpec | None) -> Serving:
    """The blocks on top of each other, the first one uppermost, over the defaults."""
    spec = ServingSpec()
    for block in reversed(blocks):
        spec = block.over(spec) if block else spec
    tensor, pipeline, data = spec.tensor_parallel_size, spec.pipeline_parallel_size, spec.data_parallel_size
    engine = spec.engine or "vllm"
    serving = Serving(
        engine=engine,
        custom=spec.custom,
        image=spec.image,
        tensor_parallel_size=tensor or 1,
        pipeline_parallel_size=pipeline or 1,
        data_parallel_size=data or 1,
        nodes_per_replica=spec.nodes_per_replica or 1,
        exclusive_topology_key=spec.exclusive_topology_key,
        settings=EngineSettings.model_validate(spec.model_dump(include=set(EngineSettings.model_fields))),
        replicas=spec_replicas(spec),
        scale_to_zero_after=sleeps_after(spec),
        max_model_len=spec.max_model_len,
        lora=spec.lora or LoRASettings(),
        resources=Resources() if spec.resources is None else spec.resources,
        artifact_volumes=tuple(spec.artifact_volumes or ()),
        cache=spec.cache or ArtifactCache(),
        compile_cache=spec.compile_cache,
        node_selector=dict(spec.node_selector or {}),
        tolerations=tuple(spec.tolerations or ()),
        env={e.name: e.value for e in spec.env or ()},
        extra_args=tuple(spec.extra_args or ()),
        update=spec.update or "Surge",
        drain_timeout=seconds(spec.drain_timeout or "10m"),
        startup_timeout=seconds(spec.startup_timeout or "30m"),
        autoscaling=spec.autoscaling,
    )
    if spec.resources is not None or not engines.ENGINES[engine].gpus:
        return serving
    return replace(serving, resources=Resources(limits={GPU: serving.ranks_per_pod}))
