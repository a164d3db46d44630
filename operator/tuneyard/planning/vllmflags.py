"""The flags of vLLM that a pool's settings become.

Rule: a setting that is unset becomes no flag, so that a new operator changes no pod.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

from tuneyard.api.enginesettings import EngineSettings, Speculative
from tuneyard.api.serving import LoRASettings
from tuneyard.planning.podparts import literal
from tuneyard.planning.resolvedserving import Serving

_VALUES = {
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "data_parallel_size": "--data-parallel-size",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "block_size": "--block-size",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_queued_requests": "--max-num-queued-reqs",
    "reasoning_parser": "--reasoning-parser",
}
_SWITCHES = {
    "expert_parallel": "enable-expert-parallel",
    "prefix_caching": "enable-prefix-caching",
    "chunked_prefill": "enable-chunked-prefill",
    "sleep_mode": "enable-sleep-mode",
}
_METHODS = {"NGram": "ngram", "DraftModel": "draft_model", "Eagle": "eagle", "Eagle3": "eagle3"}


def setting_flags(serving: Serving, artifacts: str) -> list[str]:
    """The flags of everything that is set. `artifacts`: where the pods have their artifact volumes."""
    settings = serving.settings
    flags = []
    for field, flag in _VALUES.items():
        value = getattr(settings, field)
        if value is not None:
            flags += [flag, str(value)]
    for field, name in _SWITCHES.items():
        switch = getattr(settings, field)
        if switch is not None:
            flags.append(f"--{name}" if switch else f"--no-{name}")
    return [*flags, *_structured(settings, artifacts), *_of_adapters(serving.lora)]


def _structured(settings: EngineSettings, artifacts: str) -> list[str]:
    """Settings that are more than a value."""
    flags = []
    if settings.scheduling_policy is not None:
        flags += ["--scheduling-policy", settings.scheduling_policy.lower()]
    if settings.speculative is not None:
        flags += ["--speculative-config", literal(_json(speculative_config(settings.speculative, artifacts)))]
    if settings.structured_outputs is not None:
        flags += ["--structured-outputs-config", _json({"backend": settings.structured_outputs.backend})]
    if settings.tool_calls is not None:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_calls.parser]
    return flags


def speculative_config(speculative: Speculative, artifacts: str) -> dict[str, Any]:
    """What vLLM is told of speculative decoding."""
    config: dict[str, Any] = {
        "method": _METHODS[speculative.method],
        "num_speculative_tokens": speculative.tokens,
        "prompt_lookup_min": speculative.prompt_lookup_min,
        "prompt_lookup_max": speculative.prompt_lookup_max,
    }
    if speculative.draft is not None:
        config["model"] = posixpath.normpath(f"{artifacts}/{speculative.draft.volume}/{speculative.draft.path}")
    return {key: value for key, value in config.items() if value is not None}


def _of_adapters(lora: LoRASettings) -> list[str]:
    if not lora.on:
        return []
    flags = ["--lora-dtype", lora.dtype] if lora.dtype is not None else []
    if lora.fully_sharded is not None:
        flags.append("--fully-sharded-loras" if lora.fully_sharded else "--no-fully-sharded-loras")
    return flags


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
