"""What is known of a pool's GPUs, and what is asked about the memory that the pool needs of them."""

from __future__ import annotations

import re

from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.serving import FIELD_ARGUMENTS
from tuneyard.planning.enginepresets import engine_of
from tuneyard.planning.quantities import whole
from tuneyard.planning.resolvedserving import GPU, Serving
from tuneyard.planning.settings import Settings

NODE_LABEL = "nvidia.com/gpu.memory"
"""Of NVIDIA's feature discovery: MiB of one GPU of the node."""
_CHANGE_MEMORY = frozenset(
    {*FIELD_ARGUMENTS, "--cpu-offload-gb", "--kv-cache-memory-bytes", "--hf-overrides", "--load-format"}
)
_CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""Of vLLM's CPU build: GiB of its KV cache."""
_UTILIZATION = 0.92
"""vLLM's own, where nothing is set."""


def gpu_memory(serving: Serving, settings: Settings) -> int | None:
    """Bytes of one GPU: as the pool says, as the nodes it selects say, as the chart says; None where nobody does."""
    if serving.settings.gpu_memory is not None:
        return whole(serving.settings.gpu_memory)
    if GPU not in (serving.resources.limits or {}):
        return None
    labelled = serving.node_selector.get(NODE_LABEL, "")
    if labelled.isdigit() and len(labelled) < len(str(1 << 40)):
        return int(labelled) << 20
    return whole(settings.gpu_memory) if settings.gpu_memory else None


def memory_demand(serving: Serving, settings: Settings) -> MemoryDemand:
    """What decides how much memory the pool needs."""
    given, lora = serving.settings, serving.lora
    return MemoryDemand(
        tensor_parallel_size=serving.tensor_parallel_size,
        pipeline_parallel_size=serving.pipeline_parallel_size,
        data_parallel_size=serving.data_parallel_size,
        expert_parallel=bool(given.expert_parallel),
        dtype=given.dtype,
        quantization=given.quantization,
        kv_cache_dtype=given.kv_cache_dtype,
        block_size=given.block_size,
        max_model_len=serving.max_model_len,
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        max_loras=min(lora.max_loras, lora.max_cpu_loras) if lora.on else 0,
        max_rank=lora.max_rank,
        max_cpu_loras=lora.max_cpu_loras if lora.on else 0,
        lora_dtype=lora.dtype,
        fully_sharded=bool(lora.fully_sharded),
        build=engine_of(serving, settings.images.vllm).build,
        gpu_memory=gpu_memory(serving, settings),
        cpu_cache=_cpu_cache(serving, settings),
        utilization=_UTILIZATION if given.gpu_memory_utilization is None else given.gpu_memory_utilization,
        draft_model=given.speculative is not None and given.speculative.draft is not None,
    )


def _cpu_cache(serving: Serving, settings: Settings) -> int | None:
    given = {**settings.engine_env, **serving.env}.get(_CPU_CACHE, "")
    return int(given) << 30 if given.isdigit() and len(given) < len(str(1 << 20)) else None


def memory_arguments(serving: Serving) -> list[str]:
    """The flags in extraArgs that say something of memory, which the estimate does not know."""
    flags = (re.split(r"[=.]", argument, maxsplit=1)[0].replace("_", "-") for argument in serving.extra_args)
    return [flag for flag in dict.fromkeys(flags) if flag in _CHANGE_MEMORY]


def checked_demand(serving: Serving, settings: Settings) -> MemoryDemand | None:
    """What a pod compares with its base before the engine starts; None where there is nothing to compare.

    Pods of which nothing new is asked are told nothing, so that they stay as they are; nor those whose extraArgs say
    something of memory, which the estimate does not know: a pool is refused for what is certain alone.
    """
    if memory_arguments(serving):
        return None
    demand = memory_demand(serving, settings)
    if demand.gpu_memory is None and demand.pipeline_parallel_size == 1 and not demand.expert_parallel:
        return None
    return demand
