"""What `tuneyard plan` says of manifests: the pools that they make, and the memory that these need. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentSpec, Revision, TrafficTarget
from tuneyard.api.reasons import Reason
from tuneyard.planning import buildchecks, enginecontainer, servingchecks
from tuneyard.planning.enginepresets import engine_of, gpus_left_out
from tuneyard.planning.engines import Weights, weights_not_served
from tuneyard.planning.gpumemory import checked_demand, memory_arguments, memory_demand
from tuneyard.planning.groupchecks import uneven_groups
from tuneyard.planning.memory import estimate, gpu_memory_too_small, room
from tuneyard.planning.modelsize import ModelSize
from tuneyard.planning.observations import Problem
from tuneyard.planning.pools import Pool, no_adapters, pool_for, pools_of
from tuneyard.planning.quantities import whole
from tuneyard.planning.remedies import named
from tuneyard.planning.resolvedserving import GPU, Serving
from tuneyard.planning.settingchecks import unfit_for_base, unknown_engine_version, unserved_format
from tuneyard.planning.settings import Settings


class MemoryView(ApiModel):
    """Bytes on the fullest GPU of a pod, unless said otherwise."""

    weights: int
    adapters: int
    working: int
    kv_per_token: int
    context: int
    """Tokens of the longest request."""
    needed: int
    """With a single request of full length."""
    gpu_memory: int | None = None
    usable: int | None = None
    kv_cache: int | None = None
    kv_tokens: int | None = None
    requests_at_full_context: float | None = None
    adapters_in_memory: int = 0
    """Of the pod's memory."""
    not_counted: list[str] | None = None
    not_checked: str | None = None
    """Why no pod is refused for what is needed."""


class PoolView(ApiModel):
    """One pool that the manifests make."""

    name: str
    base_model: str
    used_by: list[str] | None = None
    """ModelDeployments of these manifests; none: it is made as soon as one refers to the base."""
    built_by: list[str] | None = None
    """Steps that make the base first, where Jobs do."""
    engine: str
    image: str
    pods: int
    groups: int | None = None
    """Replicas that the pods make, where each spans nodes."""
    gpus_per_pod: int
    gpus: int
    arguments: list[str]
    memory: MemoryView | None = None
    memory_unknown: str | None = None
    """Why there is no estimate."""
    problem: str | None = None
    warning: str | None = None


class PlanView(ApiModel):
    """All pools."""

    pools: list[PoolView]
    notes: list[str] | None = None
    """What these manifests leave open, and a cluster may have."""

    @property
    def sound(self) -> bool:
        """Whether every pool could start."""
        return all(pool.problem is None for pool in self.pools)


@dataclass(frozen=True)
class SizeRead:
    """What was read of a base's files, or why nothing was."""

    size: ModelSize | None = None
    unread: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json."""
    weights: Weights | None = None
    """Their format, where it is one that engines are told apart by."""


def plan_view(
    bases: Sequence[BaseModelResource],
    deployments: Sequence[ModelDeploymentResource],
    sizes: Mapping[tuple[str, str], SizeRead],
    settings: Settings,
) -> PlanView:
    """The pools of all bases. `sizes`: by namespace and name."""
    return PlanView(
        pools=[
            _pool_view(pool, base, sizes.get(base.metadata.key, SizeRead()), settings)
            for base in bases
            for pool in pools_of(base, deployments) or (_unused(base),)
        ],
        notes=_elsewhere(bases, deployments) or None,
    )


def _elsewhere(bases: Sequence[BaseModelResource], deployments: Sequence[ModelDeploymentResource]) -> list[str]:
    """Bases that revisions name and that are not here: in the cluster, or mistyped."""
    known = {base.metadata.key for base in bases}
    users: dict[tuple[str, str], list[str]] = {}
    for deployment in deployments:
        wanted = {revision.base_model for revision in deployment.spec.revisions if not revision.external}
        for key in sorted((deployment.metadata.namespace, base) for base in wanted):
            if key not in known and not deployment.metadata.deletion_timestamp:
                users.setdefault(key, []).append(deployment.metadata.name)
    return [
        f"BaseModel {name} of namespace {namespace} is not in the files, so the pools of {', '.join(of)} with it are "
        "not shown: it has to be in the cluster, or its name is mistyped"
        for (namespace, name), of in users.items()
    ]


def _unused(base: BaseModelResource) -> Pool:
    """The shared pool of a base to which nothing refers yet."""
    revision = Revision(name="v1", base_model=base.metadata.name)
    spec = ModelDeploymentSpec(revisions=[revision], traffic=[TrafficTarget(revision="v1", weight=100)])
    deployment = ModelDeploymentResource(metadata=base.metadata.model_copy(update={"name": "-"}), spec=spec)
    return pool_for(base, deployment, revision)


def _pool_view(pool: Pool, base: BaseModelResource, read: SizeRead, settings: Settings) -> PoolView:
    serving = pool.serving
    started = enginecontainer.started(pool, base, settings)
    # which version another engine is, nothing tells
    engine = str(engine_of(serving, settings.images.vllm)) if serving.engine == "vllm" else serving.engine
    pods = serving.replicas * serving.nodes_per_replica
    gpus = whole((serving.resources.limits or {}).get(GPU, 0)) or 0
    problem = _violation(base, serving, settings) or _misfit(read, serving, settings) or _without_adapters(pool)
    warning = unknown_engine_version(serving, settings.images.vllm)
    return PoolView(
        name=pool.name,
        base_model=pool.base_model,
        used_by=[name for name in pool.used_by if name != "-"] or None,
        built_by=[str(step.kind) for step in build.steps] if (build := base.spec.source.build) else None,
        engine=engine,
        image=started["image"],
        pods=pods,
        groups=serving.replicas if serving.nodes_per_replica > 1 else None,
        gpus_per_pod=gpus,
        gpus=gpus * pods,
        arguments=started["args"],
        memory=_memory(read.size, serving, settings) if read.size else None,
        memory_unknown=read.unread or None,
        problem=named(problem) if problem else None,
        warning=named(warning) if warning else gpus_left_out(serving, settings.images.vllm),
    )


def _violation(base: BaseModelResource, serving: Serving, settings: Settings) -> Problem | None:
    """What keeps the base from being built, or the pool from being made; that it is not built yet does not."""
    build = base.spec.source.build
    wrong = buildchecks.violation(build) if build is not None else None
    found = wrong or servingchecks.violation(base, serving, settings)
    return None if found is not None and found.reason is Reason.BUILD_PENDING else found


def _misfit(read: SizeRead, serving: Serving, settings: Settings) -> Problem | None:
    """What a pod would refuse when it has read the base, whatever the CPU of its node."""
    misread = weights_not_served(serving.engine, read.weights) if read.weights else None
    size = read.size
    if misread or size is None:
        return misread
    tensor = serving.tensor_parallel_size
    if size.heads % tensor:
        words = f"tensorParallelSize {tensor} does not divide the model's {size.heads} attention heads"
        return Problem(Reason.TENSOR_PARALLEL_MISMATCH, f"{words}: choose one of {_fitting(size.heads)}")
    engine = engine_of(serving, settings.images.vllm)
    unserved = unserved_format(engine, read.config, avx512=True) or uneven_groups(engine, read.config, tensor)
    # as pods are told: what the estimate does not know may make it fit
    demand = checked_demand(serving, settings)
    if unserved or demand is None:
        return unserved
    return unfit_for_base(size, demand) or gpu_memory_too_small(size, demand)


def _without_adapters(pool: Pool) -> Problem | None:
    """What the operator says of each adapter that a revision wants of the pool."""
    return no_adapters(pool.serving) if pool.adapter_names or pool.idle else None


def _fitting(heads: int) -> str:
    return ", ".join(str(n) for n in range(1, min(heads, 64) + 1) if heads % n == 0)


def _memory(size: ModelSize, serving: Serving, settings: Settings) -> MemoryView:
    demand = memory_demand(serving, settings)
    found = estimate(size, demand)
    left = room(found, demand)
    unknown = ", ".join(memory_arguments(serving))
    return MemoryView(
        weights=found.weights,
        adapters=found.adapters,
        working=found.working,
        kv_per_token=found.kv_per_token,
        context=found.context,
        needed=found.needed,
        gpu_memory=demand.gpu_memory,
        usable=left.usable if left else None,
        kv_cache=left.kv_cache if left else None,
        kv_tokens=left.tokens if left else None,
        requests_at_full_context=round(left.requests, 1) if left else None,
        adapters_in_memory=found.adapters_in_memory,
        not_counted=list(found.notes) or None,
        not_checked=f"what {unknown} in extraArgs does to it is not known" if unknown else None,
    )


def caches_of(bases: Iterable[BaseModelResource], deployments: Iterable[ModelDeploymentResource]) -> list[str]:
    """The folders of nodes that the manifests name for caches."""
    blocks = [b.spec.serving for b in bases]
    for deployment in deployments:
        blocks += [deployment.spec.serving, *(r.serving for r in deployment.spec.revisions)]
    places = [place for block in blocks if block for place in (block.cache, block.compile_cache) if place]
    return sorted({place.host_path.path for place in places if place.host_path})
