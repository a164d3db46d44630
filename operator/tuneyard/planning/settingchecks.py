"""Settings that an engine's version or build does not have: what keeps a pool from being made with them.

Rules:
- an engine without a table (enginepresets.py) gets its settings unchecked, and a warning says so;
- a refusal names the field, what the engine has, and what to do; what one object can say by itself is CEL's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from tuneyard.api.enginesettings import EngineSettings
from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings
from tuneyard.planning.enginepresets import Engine, Preset, engine_of, gpus_left_out, preset_of
from tuneyard.planning.modelsize import ModelSize
from tuneyard.planning.observations import Problem
from tuneyard.planning.remedies import some_of
from tuneyard.planning.resolvedserving import Serving

_MOST_NAMED = 12
_DEFAULT_SHARE = 16
"""Tokens in a step for each sequence where neither number is set: 8, or so many, by the GPU."""
_OPERATORS = frozenset({"engine_version", "engine_build", "gpu_memory"})
"""Settings that only the operator is told."""


def unsupported_setting(serving: Serving, default_image: str) -> Problem | None:
    """The first setting that the pool's engine does not have, or that does not go with another one."""
    engine = engine_of(serving, default_image)
    if engine.name != "vllm":
        return _setting_of_another_engine(serving)
    if words := _contradiction(serving):
        return Problem(Reason.UNSUPPORTED_SETTING, words)
    preset = preset_of(engine)
    if preset is None:
        return None
    words = _value_not_there(engine, preset, serving) or _beyond_the_build(engine, preset, serving)
    if words is None:
        return None
    # who only forgot the GPUs in resources is not helped by what a build for CPUs has
    guessed = gpus_left_out(serving, default_image)
    return Problem(Reason.UNSUPPORTED_SETTING, f"{words}. It is taken for that build: {guessed}" if guessed else words)


def _value_not_there(engine: Engine, preset: Preset, serving: Serving) -> str | None:
    for field, value in given_values(serving):
        known = preset.values.get(field)
        if known is not None and value not in known:
            return _unknown_value(engine, preset, field, value)
    return None


def _beyond_the_build(engine: Engine, preset: Preset, serving: Serving) -> str | None:
    """What this build takes, and does not do or does not survive."""
    speculative = serving.settings.speculative
    if serving.pipeline_parallel_size > 1 and not preset.pipelines:
        return f"serving.pipelineParallelSize: {engine} ends with its first request then: use tensorParallelSize"
    if serving.settings.sleep_mode and not preset.sleeps:
        return f"serving.sleepMode: {engine} has no sleep mode: remove it"
    heads = speculative is not None and speculative.method in ("Eagle", "Eagle3")
    if speculative is not None and heads and serving.lora.on and not preset.heads_with_adapters:
        return (
            f"serving.speculative.method: {engine} ends with several requests at once where {speculative.method} meets "
            "adapters: use DraftModel or NGram, or set lora.enabled to false"
        )
    return None


def _setting_of_another_engine(serving: Serving) -> Problem | None:
    """A field that the engine would leave out without a word."""
    told = (name for name in EngineSettings.model_fields if name not in _OPERATORS)
    given = [to_camel(name) for name in told if getattr(serving.settings, name) is not None]
    given += [f"lora.{name}" for name, value in _lora(serving.lora).items() if value is not None]
    if not given:
        return None
    words = f"serving.{given[0]} is a setting of vllm, and the pool's engine is {serving.engine}: say it in extraArgs"
    return Problem(Reason.UNSUPPORTED_SETTING, words)


def _lora(lora: LoRASettings) -> dict[str, object]:
    return {"dtype": lora.dtype, "fullySharded": lora.fully_sharded}


def unknown_engine_version(serving: Serving, default_image: str) -> Problem | None:
    """Settings that cannot be checked, because nothing is known of the engine's version or build."""
    engine = engine_of(serving, default_image)
    fields = [field for field, _ in given_values(serving)] if engine.name == "vllm" else []
    if not fields or preset_of(engine) is not None:
        return None
    words = f"nothing is known of {engine}, so it gets serving.{', '.join(fields)} unchecked"
    if not engine.version:
        words += "; the image's tag does not tell the version, serving.engineVersion can"
    return Problem(Reason.UNKNOWN_ENGINE_VERSION, words)


def given_values(serving: Serving) -> Iterator[tuple[str, str]]:
    """The settings whose values differ between versions and builds, as they are given."""
    settings, lora = serving.settings, serving.lora
    given = {
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "kvCacheDtype": settings.kv_cache_dtype,
        "blockSize": settings.block_size,
        "speculative.method": settings.speculative and settings.speculative.method,
        "structuredOutputs.backend": settings.structured_outputs and settings.structured_outputs.backend,
        "reasoningParser": settings.reasoning_parser,
        "toolCalls.parser": settings.tool_calls and settings.tool_calls.parser,
        "lora.dtype": lora.dtype,
    }
    yield from ((field, str(value)) for field, value in given.items() if value is not None)


def unfit_for_base(size: ModelSize, demand: MemoryDemand) -> Problem | None:
    """How the base cannot be divided."""
    if demand.expert_parallel and not size.experts:
        words = "serving.expertParallel divides experts, and the base's config.json has none: remove it"
        return Problem(Reason.UNSUPPORTED_SETTING, words)
    stages = demand.pipeline_parallel_size
    if size.layers and stages > size.layers:
        words = f"serving.pipelineParallelSize {stages} is more than the base's {size.layers} layers: lower it"
        return Problem(Reason.UNSUPPORTED_SETTING, words)
    return None


def unserved_format(engine: Engine, config: Mapping[str, Any], *, avx512: bool = True) -> Problem | None:
    """That vLLM cannot serve how the base is quantised, by its config.json; nothing where nothing is known of it.

    `avx512`: whether the node's CPU has these instructions, or is one that needs none.
    """
    known = preset_of(engine)
    given = config.get("quantization_config")
    if known is None or not isinstance(given, Mapping):
        return None
    # engines know more names for what they serve than the setting has values: only what is known to fail is refused
    method = str(given.get("quant_method") or "").lower()
    instead = known.elsewhere.get(("quantization", method))
    if instead is not None:
        words = f"the base is quantised by {method}, which {engine} does not serve: {instead}"
        return Problem(Reason.UNSUPPORTED_SETTING, words)
    if engine.build == "CPU" and _has_static_scales(given):
        words = f"the base's activations have static scales, with which {engine} does not start: build it anew as FP8"
        return Problem(Reason.UNSUPPORTED_SETTING, f"{words} or INT8")
    if engine.build == "CPU" and not avx512 and _has_weights_of_4_bits(method, given):
        words = f"the base has weights of 4 bits, for which {engine} needs a CPU with AVX-512, and this node's has none"
        return Problem(Reason.UNSUPPORTED_SETTING, f"{words}: select other nodes, or build it anew as INT8 or GGUF")
    return None


def _has_weights_of_4_bits(method: str, quantization: Mapping[str, Any]) -> bool:
    if method in ("awq", "gptq"):
        return quantization.get("bits", quantization.get("w_bit")) in (4, None)
    return any(weights.get("num_bits") == 4 for weights in _of_groups(quantization, "weights"))


def _has_static_scales(quantization: Mapping[str, Any]) -> bool:
    """As fp8 says it, or compressed-tensors; integers of 8 bits are served with either."""
    activations = _of_groups(quantization, "input_activations")
    return quantization.get("activation_scheme") == "static" or any(
        a.get("type") == "float" and not a.get("dynamic") for a in activations
    )


def _of_groups(quantization: Mapping[str, Any], what: str) -> Iterator[Mapping[str, Any]]:
    """How compressed-tensors says that weights or activations are rounded, by group of layers."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        said = group.get(what) if isinstance(group, Mapping) else None
        if isinstance(said, Mapping):
            yield said


def _contradiction(serving: Serving) -> str | None:
    """Two settings that vLLM refuses together, whatever its version."""
    settings, lora, tensor = serving.settings, serving.lora, serving.tensor_parallel_size
    batched, context = settings.max_num_batched_tokens, serving.max_model_len
    if batched and settings.max_num_seqs and batched < settings.max_num_seqs:
        return (
            f"serving.maxNumBatchedTokens {batched} is below maxNumSeqs {settings.max_num_seqs}, and each of these "
            "needs a token in a step: raise it, or lower maxNumSeqs"
        )
    if settings.chunked_prefill is False and batched and context and batched < context:
        return (
            f"serving.maxNumBatchedTokens {batched} is below maxModelLen {context}, and without chunkedPrefill a "
            "prompt is worked on in one step: raise it, or leave chunkedPrefill on"
        )
    if words := _too_few_tokens(serving):
        return words
    if lora.on and settings.expert_parallel and lora.fully_sharded:
        return (
            "serving.lora.fullySharded does not go with expertParallel, since both divide by the same GPUs: remove one "
            "of them"
        )
    if lora.on and settings.expert_parallel and tensor > 1 and serving.data_parallel_size > 1:
        return (
            "serving.expertParallel with tensorParallelSize and dataParallelSize takes no adapters: leave one of the "
            "three out, or set lora.enabled to false"
        )
    if lora.on and lora.fully_sharded and lora.max_rank % tensor:
        return (
            f"serving.lora.fullySharded divides maxRank {lora.max_rank} by tensorParallelSize {tensor}, which leaves a "
            "rest: choose another of them"
        )
    return None


def _too_few_tokens(serving: Serving) -> str | None:
    """Adapters and speculative decoding together need room in a step for every proposed token of every sequence."""
    settings = serving.settings
    if not serving.lora.on or settings.speculative is None:
        return None
    each, batched, sequences = settings.speculative.tokens + 1, settings.max_num_batched_tokens, settings.max_num_seqs
    if batched is None and sequences is None:
        enough = each <= _DEFAULT_SHARE or settings.chunked_prefill is False
    else:  # what the engine takes by itself for one of them depends on its GPU and its model
        enough = batched is None or sequences is None or batched >= sequences * each
    if enough:
        return None
    return (
        f"serving.speculative.tokens {settings.speculative.tokens} with adapters needs maxNumBatchedTokens of at least "
        f"{each} times maxNumSeqs: set both so, lower tokens, or set lora.enabled to false"
    )


def _unknown_value(engine: Engine, preset: Preset, field: str, value: str) -> str:
    instead = preset.elsewhere.get((field, value))
    if instead is None:
        instead = f"it has {some_of(sorted(preset.values[field]), _MOST_NAMED)}"
    return f"serving.{field}: {engine} has no {value}: {instead}"
