"""What of a pool's settings decides how much of a GPU's memory it needs: told to who reads the base's files."""

from __future__ import annotations

from typing import Literal

from tuneyard.api.base import ApiModel


class MemoryDemand(ApiModel):
    """How a base is to be served. Sizes are in bytes; what is unset is the engine's own choice."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel: bool = False
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_loras: int = 0
    """0: no adapters."""
    max_rank: int = 16
    max_cpu_loras: int = 0
    lora_dtype: str | None = None
    fully_sharded: bool = False
    build: Literal["CUDA", "ROCm", "CPU"] = "CUDA"
    gpu_memory: int | None = None
    """Of one GPU; None where nothing tells."""
    cpu_cache: int | None = None
    """What an engine on CPUs is told to take for its KV cache; None where it is told nothing."""
    utilization: float = 0.92
    draft_model: bool = False
    """Whether a draft model needs memory besides, which nobody has read."""
