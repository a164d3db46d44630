"""What each version and build of an engine has: the values of its settings.

Rules:
- a table is taken from that version's own source and from what it did when it was run;
- a version without a table is not guessed from another one: its settings go to the engine unchecked, and a warning says
  so;
- None means every value: there is nothing to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tuneyard.planning.resolvedserving import GPU, Serving

_TAG = re.compile(r"^(?:.*/)?[^/]*vllm[^/:@]*:v?(?P<version>\d+\.\d+)(?:\.\d+)?(?:[-+._].*)?(?:@.*)?$")
_CPU_NAME = re.compile(r"(?:^|[-_./:])cpu(?:[-_./:@]|$)")


Build = Literal["CUDA", "ROCm", "CPU"]


@dataclass(frozen=True)
class Engine:
    """An engine as it is told from its image: `version` is major.minor, empty where nothing tells."""

    name: str
    version: str
    build: Build

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'of unknown version'} ({self.build})"


@dataclass(frozen=True)
class Preset:
    """Values that a version and build has, by the setting's name in the API."""

    values: Mapping[str, frozenset[str]]
    elsewhere: Mapping[tuple[str, str], str]
    """(setting, value) that it lacks -> what serves it instead."""
    sleeps: bool
    """Whether it has a sleep mode."""
    pipelines: bool
    """Whether it can divide a base's layers: the build for CPUs starts so, and ends with its first request."""
    heads_with_adapters: bool
    """Whether EAGLE's heads go with adapters. They share the base's embedding, which adapters wrap: the build for CPUs
    ends when it answers several requests at once, because it counts the base's tokens where the head has others.
    """


def engine_of(serving: Serving, default_image: str) -> Engine:
    """What a pool's image holds, by its settings, its name and what the pool asks for."""
    settings, image = serving.settings, serving.image or default_image
    given = settings.engine_version or ""
    match = _TAG.match(image)
    version = ".".join(given.split(".")[:2]) or (match["version"] if match else "")
    return Engine(serving.engine, version, settings.engine_build or _build(serving, image))


def _build(serving: Serving, image: str) -> Build:
    devices = set(serving.resources.limits or {})
    if _CPU_NAME.search(image):
        return "CPU"
    if any(d.startswith("amd.com/") for d in devices):
        return "ROCm"
    return "CUDA" if any("gpu" in d or d.startswith("nvidia.com/") for d in devices) else "CPU"


def gpus_left_out(serving: Serving, default_image: str) -> str | None:
    """That the pods get no GPU, for `resources` takes the place of the default, and nothing says that they need none.

    Devices of other makers are theirs to count. It is no refusal: an image for CPUs may have any name.
    """
    limits, image = serving.resources.limits or {}, serving.image or default_image
    told = serving.settings.engine_build is not None or _CPU_NAME.search(image) or any("/" in name for name in limits)
    if serving.engine != "vllm" or told:
        return None
    return (
        f"its pods ask for no GPU, as serving.resources.limits names none: set {GPU} there to "
        f"{serving.ranks_per_pod}, or engineBuild to CPU if the image is for CPUs"
    )


def preset_of(engine: Engine) -> Preset | None:
    """The table of an engine's version and build; None where there is none."""
    return _PRESETS.get((engine.name, engine.version, engine.build))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REASONING = _words(
    "deepseek_r1 deepseek_v3 deepseek_v4 deepseek_v41 poolside_v1 cohere_command3 cohere_command4 ernie45 gemma4 glm45 "
    "glm47 ling3 openai_gptoss granite granite_thinking_parser hf holo2 hunyuan_a13b hy_v3 hy_v4 kimi_k2 kimi_k3 "
    "k2_horizon mimo minicpmv minimax_m2 minimax_m2_append_think minimax_m3 mistral nemotron_v3 olmo3 plamo3 "
    "muse_glimmer qwen3 seed_oss step3 step3p5 inkling"
)
_TOOLS = _words(
    "dots deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 deepseek_v41 cohere_command3 cohere_command4 ernie45 glm45 "
    "glm47 ling3 granite-20b-fc granite granite4 hermes hf poolside_v1 hunyuan_a13b hy_v3 hy_v4 internlm jamba lfm2 "
    "kimi_k2 kimi_k3 k2_horizon llama3_json llama4_json llama4_pythonic longcat mimo minimax_m2 minimax_m3 minicpm5 "
    "mistral olmo3 plamo3 muse_glimmer openai phi4_mini_json pythonic qwen3_coder qwen3_json qwen3_xml seed_oss step3 "
    "step3p5 inkling xlam gigachat3 functiongemma gemma4 apertus"
)
_QUANTIZATION = _words(
    "awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq gptq "
    "gptq_marlin awq_marlin humming compressed-tensors experts_int8 quark moe_wna16 torchao inc mxfp4 gpt_oss_mxfp4 "
    "deepseek_v4_fp8 online fp8_per_tensor fp8_per_block fp8_per_channel int8_per_channel_weight_only nvfp4_per_token "
    "mxfp8"
)
_KV_CACHE = _words(
    "auto float16 bfloat16 fp8 fp8_e4m3 fp8_e5m2 fp8_ds_mla nvfp4_ds_mla turboquant_k8v4 turboquant_4bit_nc "
    "turboquant_k3v4_nc turboquant_3bit_nc ultraquant_4bit int4_per_token_head int8_per_token_head fp8_per_token_head "
    "nvfp4 nvfp4_4over6"
)
_GGUF = "a GGUF file is served by engine llamaCpp"
_BITSANDBYTES = "quantise the base beforehand (AWQ, GPTQ or FP8), or set quantization fp8 to have it done at the start"
_VLLM_032: dict[str, frozenset[str]] = {
    "dtype": _words("auto half float16 bfloat16 float float32"),
    "quantization": _QUANTIZATION,
    "kvCacheDtype": _KV_CACHE,
    "structuredOutputs.backend": _words("auto xgrammar guidance outlines lm-format-enforcer"),
    "reasoningParser": _REASONING,
    "toolCalls.parser": _TOOLS,
    "lora.dtype": _words("auto float16 bfloat16"),
    "speculative.method": _words("NGram DraftModel Eagle Eagle3"),
    "blockSize": _words("16 32 64 128 256"),
}
_ELSEWHERE = {("quantization", "gguf"): _GGUF, ("quantization", "bitsandbytes"): _BITSANDBYTES}
_ON_CPU: dict[str, frozenset[str]] = {
    "quantization": _words("awq auto_awq gptq auto_gptq compressed-tensors fp8 inc"),
    "kvCacheDtype": _words("auto fp8 fp8_e4m3 fp8_e5m2"),
    "blockSize": _words("32 64 128 256"),
}
_ELSEWHERE_ON_CPU = {
    **_ELSEWHERE,
    ("quantization", "bitsandbytes"): "quantise the base beforehand (AWQ, GPTQ or INT8)",
}
_PRESETS: dict[tuple[str, str, str], Preset] = {
    ("vllm", "0.32", "CUDA"): Preset(_VLLM_032, _ELSEWHERE, sleeps=True, pipelines=True, heads_with_adapters=True),
    ("vllm", "0.32", "CPU"): Preset(
        _VLLM_032 | _ON_CPU, _ELSEWHERE_ON_CPU, sleeps=False, pipelines=False, heads_with_adapters=False
    ),
}
