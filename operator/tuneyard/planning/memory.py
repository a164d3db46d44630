"""How much of a GPU's memory a pool needs, before it starts: weights, adapters, working memory, KV cache.

Rules:
- all is of the fullest GPU of a replica: with pipeline stages that is the one with most layers and the output layer;
- weights, adapters and the KV cache are exact to a few percent (benchmarks/memory_estimate.py measures them against the
  engine); working memory is a rule of thumb, and said to be one;
- only what is certain refuses a pool: more than TOLERANCE beyond the GPU. Within it the engine has the last word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.reasons import Reason
from tuneyard.planning.modelsize import Division, ModelSize, Part
from tuneyard.planning.observations import Problem
from tuneyard.planning.sizes import size_for_people

TOLERANCE = 0.1
"""By how much an estimate may be wrong, as a share."""
RUNTIME = 1 << 30
"""A GPU process's own: context, communication, graphs. A rule of thumb."""
_CPU_BLOCK, _GPU_BLOCK = 128, 16
"""Tokens in a block of the KV cache, where nothing is set."""
_DEFAULT_SEQUENCES = 256
_DEFAULT_BATCHED = 2048
_LARGE_GPU = 70 << 30
"""From here on vLLM 0.32 takes larger batches unless it is told otherwise."""
_BYTES = {"float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0}
_KV_BYTES = {
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "fp8_inc": 1.0,
    "fp8_per_token_head": 1.0,
    "int8_per_token_head": 1.0,
    "int4_per_token_head": 0.5,
    "nvfp4": 0.5625,
    "nvfp4_4over6": 0.5625,
}
_ONLINE = {
    "fp8": 1.0,
    "fp8_per_tensor": 1.0,
    "fp8_per_block": 1.0,
    "fp8_per_channel": 1.0,
    "experts_int8": 1.0,
    "int8_per_channel_weight_only": 1.0,
    "mxfp8": 1.03,
    "nvfp4_per_token": 0.5625,
}
"""Bytes of a linear weight that the engine itself quantises when it starts."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on the fullest GPU of a replica, unless said otherwise."""

    weights: int
    adapters: int
    """Slots for adapters that generate at the same moment; the engine reserves them when it starts."""
    working: int
    """Activations, the engine's own; a rule of thumb."""
    kv_per_token: int
    context: int
    """Tokens of the longest request."""
    adapters_in_memory: int
    """Bytes of the pod's memory, not of a GPU's, when it holds all adapters that it may, each of the highest rank."""
    notes: tuple[str, ...] = ()
    """What is not counted."""

    @property
    def fixed(self) -> int:
        """What is needed before the first token."""
        return self.weights + self.adapters + self.working

    @property
    def needed(self) -> int:
        """What is needed to serve a single request of full length."""
        return self.fixed + self.kv_per_token * self.context


@dataclass(frozen=True)
class Room:
    """What is left for the KV cache on a GPU of known size."""

    usable: int
    """What the engine may take of the GPU; of a CPU, what it is given for the KV cache."""
    kv_cache: int
    """Bytes; 0 where nothing is left."""
    tokens: int
    requests: float
    """Requests of full length that fit at the same moment."""


def estimate(size: ModelSize, demand: MemoryDemand) -> Estimate:
    """What a pool that serves the base like this needs."""
    lora_bytes = _BYTES.get(demand.lora_dtype or "", _width(size, demand))
    slots = demand.max_loras * demand.max_rank * lora_bytes
    whole = demand.model_copy(update={"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "fully_sharded": False})
    return Estimate(
        weights=_weights(size, demand),
        adapters=math.ceil(slots * _adapter_rows(size, demand)),
        working=_working(size, demand),
        kv_per_token=_kv_per_token(size, demand),
        context=demand.max_model_len or size.positions,
        adapters_in_memory=math.ceil(
            demand.max_cpu_loras * demand.max_rank * lora_bytes * _adapter_rows(size, whole, output=False)
        ),
        notes=_notes(size, demand),
    )


def room(found: Estimate, demand: MemoryDemand) -> Room | None:
    """What is left for the KV cache; None where the memory is not known."""
    if demand.build == "CPU":
        return None if demand.cpu_cache is None else _room(found, demand, demand.cpu_cache, demand.cpu_cache)
    if demand.gpu_memory is None:
        return None
    usable = int(demand.gpu_memory * demand.utilization)
    return _room(found, demand, usable, max(0, usable - found.fixed))


def _room(found: Estimate, demand: MemoryDemand, usable: int, cache: int) -> Room:
    block = demand.block_size or (_CPU_BLOCK if demand.build == "CPU" else _GPU_BLOCK)
    tokens = cache // (found.kv_per_token * block) * block if found.kv_per_token else 0
    return Room(usable, cache, tokens, tokens / found.context if found.context else 0.0)


def gpu_memory_too_small(size: ModelSize, demand: MemoryDemand) -> Problem | None:
    """More than the GPU has, and by more than an estimate is wrong."""
    found = estimate(size, demand)
    left = room(found, demand)
    if demand.build == "CPU" or left is None or found.needed <= left.usable * (1 + TOLERANCE):
        return None
    gpus = demand.tensor_parallel_size * demand.pipeline_parallel_size
    cache = found.kv_per_token * found.context
    words = (
        f"a GPU would need {size_for_people(found.needed)} (weights {size_for_people(found.weights)}, adapters "
        f"{size_for_people(found.adapters)}, working memory {size_for_people(found.working)}, KV cache of one request "
        f"of {found.context} tokens {size_for_people(cache)}) with the model over {gpus} GPUs, and may use "
        f"{size_for_people(left.usable)}: {_remedy(found, left)}"
    )
    return Problem(Reason.GPU_MEMORY_TOO_SMALL, words)


def _remedy(found: Estimate, left: Room) -> str:
    if found.fixed > left.usable:
        return "raise tensorParallelSize or pipelineParallelSize, quantise the base, or lower lora.maxLoras or maxRank"
    fitting = left.tokens
    return f"lower maxModelLen to at most {fitting}, set kvCacheDtype fp8, or raise tensorParallelSize"


def _width(size: ModelSize, demand: MemoryDemand) -> float:
    return _BYTES.get(demand.dtype or "", _BYTES[size.dtype])


def _stage_layers(size: ModelSize, demand: MemoryDemand) -> float:
    """The share of the layers that the fullest stage has."""
    stages = demand.pipeline_parallel_size
    return math.ceil(size.layers / stages) / size.layers if size.layers else 1.0 / stages


def _share(size: ModelSize, demand: MemoryDemand, division: Division) -> float:
    """The share of a part that one GPU of a stage has."""
    tensor = demand.tensor_parallel_size
    if division is Division.WHOLE:
        return 1.0
    if division is Division.KEYS:
        return max(1.0 / tensor, 1.0 / size.kv_heads if size.kv_heads else 0.0)
    return 1.0 / (tensor * demand.data_parallel_size) if division is Division.EXPERTS else 1.0 / tensor


def _weights(size: ModelSize, demand: MemoryDemand) -> int:
    width = _width(size, demand)
    linear = width if size.quantized else _ONLINE.get(demand.quantization or "", width)
    layers = sum(
        (part.linear * (linear if _quantized(division, demand) else width) + part.other * width + part.packed)
        * _share(size, demand, division)
        for division, part in size.parts.items()
    )
    tensor = demand.tensor_parallel_size
    ends = size.embeddings * width / tensor
    if demand.pipeline_parallel_size > 1 and not size.tied:
        # the embedding is on the first stage, the output layer on the last
        ends /= 2
    rotary = size.positions * size.head_size * width
    return math.ceil(layers * _stage_layers(size, demand) + ends + size.towers / tensor + rotary)


def _quantized(division: Division, demand: MemoryDemand) -> bool:
    return division is Division.EXPERTS or demand.quantization != "experts_int8"


def _adapter_rows(size: ModelSize, demand: MemoryDemand, *, output: bool = True) -> float:
    """Numbers that one adapter of rank 1 takes on one GPU."""
    tensor = demand.tensor_parallel_size
    first, second = (1.0 / tensor, 1.0 / tensor) if demand.fully_sharded else (1.0, 1.0)
    rows = 0.0
    for division, part in size.parts.items():
        share = _share(size, demand, division)
        if division is Division.ROWS:
            rows += part.inputs * share + part.outputs * second
        elif division is Division.WHOLE:
            rows += part.inputs + part.outputs
        elif division is Division.EXPERTS:
            rows += _expert_rows(part, size.expert_rows, demand)
        else:
            rows += part.inputs * first + part.outputs * share
    rows *= _stage_layers(size, demand)
    if output and size.adapters_to_output:
        # of the embedding and of the output layer, on the stages that have them
        stages = 1 if demand.pipeline_parallel_size > 1 else 2
        rows += stages * (size.vocabulary + size.hidden)
    return rows


def _expert_rows(columns: Part, rows: Part, demand: MemoryDemand) -> float:
    tensor, copies = demand.tensor_parallel_size, demand.data_parallel_size
    if demand.expert_parallel:
        # whole experts, a share of them
        return (columns.inputs + columns.outputs + rows.inputs + rows.outputs) / (tensor * copies)
    divided = tensor * copies
    first = 1.0 / tensor if demand.fully_sharded else 1.0
    return columns.inputs * first + columns.outputs / divided + rows.inputs / divided + rows.outputs * first


def _kv_per_token(size: ModelSize, demand: MemoryDemand) -> int:
    width = _KV_BYTES.get(demand.kv_cache_dtype or "", _BYTES.get(demand.kv_cache_dtype or "", _width(size, demand)))
    layers = math.ceil(size.kv_layers / demand.pipeline_parallel_size)
    if size.latent:
        return math.ceil(layers * size.latent * width)
    heads = max(1, math.ceil(size.kv_heads / demand.tensor_parallel_size))
    return math.ceil(2 * layers * heads * size.head_size * width)


def _working(size: ModelSize, demand: MemoryDemand) -> int:
    """Activations of the largest step, and what the process needs for itself."""
    large = demand.gpu_memory is not None and demand.gpu_memory >= _LARGE_GPU
    batched = demand.max_num_batched_tokens or _DEFAULT_BATCHED * (4 if large else 1)
    sequences = demand.max_num_seqs or _DEFAULT_SEQUENCES * (4 if large else 1)
    width, tensor = _width(size, demand), demand.tensor_parallel_size
    step = batched * (4 * size.hidden + 3 * size.intermediate / tensor) * width
    # logits are float32, and sampling has them twice
    logits = 2 * min(sequences, batched) * size.vocabulary * 4
    return math.ceil((RUNTIME if demand.build != "CPU" else 0) + step + logits)


def _notes(size: ModelSize, demand: MemoryDemand) -> tuple[str, ...]:
    notes = []
    if size.unknown_modules and demand.max_loras:
        notes.append(f"adapters of {size.unknown_modules} modules whose shape the files do not show")
    if demand.draft_model:
        notes.append("the draft model and its KV cache")
    if size.layers != size.kv_layers:
        notes.append("the fixed state of layers without attention")
    return tuple(notes)
