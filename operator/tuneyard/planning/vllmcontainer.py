"""How a pool's engine container runs vLLM: its command, its arguments, its environment."""

from __future__ import annotations

from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.serving import LoRASettings
from tuneyard.planning.engineinit import under_init
from tuneyard.planning.podparts import key_variable, literal, value
from tuneyard.planning.podvolumes import ARTIFACTS, COMPILE_CACHE, base_path
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings
from tuneyard.planning.vllmflags import setting_flags

COMMAND = under_init(["python3", "-m", "vllm.entrypoints.openai.api_server"])
HOME = "/home/engine"
ENGINE_SHUTDOWN = 20
"""Seconds that an engine gets to end what runs when it is told to end; above 0, or vLLM leaves its streams hanging.

Not the drain timeout: the preStop hook has waited that long already, whatever runs then belongs to an engine that is
not well or to a client that has had its time, and vLLM waits as long as this for a core that hangs.
"""

_ENGINE_ENV = {
    "HF_HUB_OFFLINE": "1",
    "HOME": HOME,
    "USER": "engine",
    "LOGNAME": "engine",
    "XDG_CACHE_HOME": f"{HOME}/.cache",
    "HF_HOME": f"{HOME}/.cache/huggingface",
    "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/torchinductor",
    "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
    "VLLM_NO_USAGE_STATS": "1",
}
_COMPILED = {
    "VLLM_CACHE_ROOT": f"{COMPILE_CACHE}/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{COMPILE_CACHE}/torchinductor",
    "TRITON_CACHE_DIR": f"{COMPILE_CACHE}/triton",
}
"""Where what was compiled goes, if it is to outlive the pod."""


def arguments(pool: Pool, base: BaseModelResource, settings: Settings) -> list[str]:
    """What the engine is started with; the key is not among it."""
    serving, lora = pool.serving, pool.serving.lora
    arguments = {
        "--model": literal(base_path(base)),
        "--served-model-name": literal(pool.base_model),
        "--host": "127.0.0.1",
        "--port": str(names.ENGINE_PORT),
        **(_slots(lora) if lora.on else {}),
        "--tensor-parallel-size": str(serving.tensor_parallel_size),
        "--shutdown-timeout": str(ENGINE_SHUTDOWN),
    }
    if serving.max_model_len is not None:
        arguments["--max-model-len"] = str(serving.max_model_len)
    if settings.tracing.otlp_endpoint:
        arguments["--otlp-traces-endpoint"] = settings.tracing.otlp_endpoint
    flags = [part for argument in arguments.items() for part in argument]
    # without the second one nobody says which tokens of a prompt came from the cache
    ours = [*(["--enable-lora"] if lora.on else []), "--enable-prompt-tokens-details", *flags]
    return [*ours, *setting_flags(serving, ARTIFACTS), *serving.extra_args]


def _slots(lora: LoRASettings) -> dict[str, str]:
    return {
        # vLLM refuses to start with fewer places in memory than slots.
        "--max-loras": str(min(lora.max_loras, lora.max_cpu_loras)),
        "--max-lora-rank": str(lora.max_rank),
        "--max-cpu-loras": str(lora.max_cpu_loras),
    }


def environment(pool: Pool, settings: Settings) -> list[dict[str, Any]]:
    """The pool's variables over the chart's over ours; what the agent depends on cannot be changed."""
    compiled = _COMPILED if pool.serving.compile_cache is not None else {}
    chosen = {**_ENGINE_ENV, **compiled, **_span_env(pool, settings), **settings.engine_env, **pool.serving.env}
    loads = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    fixed = {loads: value(loads, str(pool.serving.lora.on))}
    fixed["VLLM_API_KEY"] = key_variable("VLLM_API_KEY", pool.name)
    return [*fixed.values(), *(value(n, v) for n, v in sorted(chosen.items()) if n not in fixed)]


def _span_env(pool: Pool, settings: Settings) -> dict[str, str]:
    """Whose spans they are, where engines send any."""
    if not settings.tracing.otlp_endpoint:
        return {}
    attributes = f"k8s.namespace.name={pool.namespace},tuneyard.pool={pool.name}"
    return {"OTEL_SERVICE_NAME": "tuneyard-engine", "OTEL_RESOURCE_ATTRIBUTES": attributes}
