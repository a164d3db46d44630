"""What an engine's version and build lacks is refused by name; what is unknown is let through with a warning."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import VOLUME, base_model
from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.enginepresets import Engine, engine_of, gpus_left_out
from tuneyard.planning.modelsize import ModelSize
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.servingchecks import targets_not_measured, violation
from tuneyard.planning.settingchecks import unfit_for_base, unknown_engine_version, unsupported_setting
from tuneyard.planning.settings import Settings

UPSTREAM = "vllm/vllm-openai:v0.32.0"
NO_GPUS: dict[str, object] = {"resources": {"limits": {"memory": "6Gi"}}}
CPU = {**NO_GPUS, "engineBuild": "CPU"}


def serving(**fields: object) -> Serving:
    return resolved_serving(ServingSpec.from_dict(dict(fields)))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, Engine("vllm", "0.32", "CUDA")),
        (CPU, Engine("vllm", "0.32", "CPU")),
        (NO_GPUS, Engine("vllm", "0.32", "CPU")),
        ({"image": "registry:5000/team/vllm-openai:0.33.1-ours"}, Engine("vllm", "0.33", "CUDA")),
        ({"image": "vllm/vllm-openai:v0.32.0@sha256:" + "0" * 64}, Engine("vllm", "0.32", "CUDA")),
        ({"image": "localhost/tuneyard/vllm-cpu:3b2f"}, Engine("vllm", "", "CPU")),
        ({"image": "vllm/vllm-openai:latest"}, Engine("vllm", "", "CUDA")),
        ({"image": "vllm/vllm-openai@sha256:" + "0" * 64}, Engine("vllm", "", "CUDA")),
        ({"image": "acme/served:1.4.0"}, Engine("vllm", "", "CUDA")),
        ({"image": "acme/served:1.4.0", "engineVersion": "0.32.0"}, Engine("vllm", "0.32", "CUDA")),
        ({"engineBuild": "CPU"}, Engine("vllm", "0.32", "CPU")),
        ({"resources": {"limits": {"amd.com/gpu": 1}}}, Engine("vllm", "0.32", "ROCm")),
        ({"resources": {"limits": {"nvidia.com/mig-3g.20gb": 1}}}, Engine("vllm", "0.32", "CUDA")),
    ],
)
def test_the_engine_is_told_from_what_is_known(fields, wanted):
    assert engine_of(serving(**fields), UPSTREAM) == wanted


def no_gpu(number):
    return (
        f"its pods ask for no GPU, as serving.resources.limits names none: set nvidia.com/gpu there to {number}, or "
        "engineBuild to CPU if the image is for CPUs"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, None),
        (NO_GPUS, no_gpu(1)),
        ({"resources": {"requests": {"memory": "64Gi"}}, "tensorParallelSize": 4}, no_gpu(4)),
        ({**NO_GPUS, "tensorParallelSize": 4, "pipelineParallelSize": 2, "nodesPerReplica": 2}, no_gpu(4)),
        # who says that it is for CPUs, or counts devices
        (CPU, None),
        ({**NO_GPUS, "image": "localhost/tuneyard/vllm-cpu:3b2f"}, None),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}}}, None),
        ({"resources": {"limits": {"amd.com/gpu": 1}}}, None),
        ({"resources": {"limits": {"habana.ai/gaudi": 1}}}, None),
        ({**NO_GPUS, "engine": "llamaCpp"}, None),
    ],
)
def test_who_forgets_the_gpus_beside_other_resources_is_told(fields, words):
    assert gpus_left_out(serving(**fields), UPSTREAM) == words


def needs_tokens(tokens):
    return (
        f"serving.speculative.tokens {tokens} with adapters needs maxNumBatchedTokens of at least {tokens + 1} times "
        "maxNumSeqs: set both so, lower tokens, or set lora.enabled to false"
    )


def drafted(method, **fields):
    return {"speculative": {"method": method, "tokens": 3, "draft": {"volume": "v", "path": "p"}}, **fields}


def meets_adapters(method):
    return (
        f"serving.speculative.method: vllm 0.32 (CPU) ends with several requests at once where {method} meets "
        "adapters: use DraftModel or NGram, or set lora.enabled to false"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantization": "awq", "kvCacheDtype": "fp8", "dtype": "bfloat16"}, None),
        ({"sleepMode": True}, None),
        ({"sleepMode": True, **CPU}, "serving.sleepMode: vllm 0.32 (CPU) has no sleep mode: remove it"),
        (
            {"quantization": "gguf"},
            "serving.quantization: vllm 0.32 (CUDA) has no gguf: a GGUF file is served by engine llamaCpp",
        ),
        (
            {"quantization": "bitsandbytes", **CPU},
            "serving.quantization: vllm 0.32 (CPU) has no bitsandbytes: quantise the base beforehand "
            "(AWQ, GPTQ or INT8)",
        ),
        (
            {"kvCacheDtype": "int8_per_token_head", **CPU},
            "serving.kvCacheDtype: vllm 0.32 (CPU) has no int8_per_token_head: it has auto, fp8, fp8_e4m3, fp8_e5m2",
        ),
        (
            {"structuredOutputs": {"backend": "grammar"}},
            "serving.structuredOutputs.backend: vllm 0.32 (CUDA) has no grammar: it has auto, guidance, "
            "lm-format-enforcer, outlines, xgrammar",
        ),
        (
            {"reasoningParser": "nobody"},
            "serving.reasoningParser: vllm 0.32 (CUDA) has no nobody: it has cohere_command3, cohere_command4, "
            "deepseek_r1, deepseek_v3, deepseek_v4, deepseek_v41, ernie45, gemma4, glm45, glm47, granite, "
            "granite_thinking_parser and 26 more",
        ),
        ({"toolCalls": {"parser": "hermes"}, "reasoningParser": "qwen3"}, None),
        (
            {"lora": {"dtype": "float32"}},
            "serving.lora.dtype: vllm 0.32 (CUDA) has no float32: it has auto, bfloat16, float16",
        ),
        # nothing is known of it
        ({"quantization": "gguf", "image": "vllm/vllm-openai:v0.99.0"}, None),
        ({"quantization": "gguf", "resources": {"limits": {"amd.com/gpu": 1}}}, None),
        # whatever the version
        (
            {"maxNumBatchedTokens": 16, "maxNumSeqs": 32, "image": "vllm/vllm-openai:v0.99.0"},
            "serving.maxNumBatchedTokens 16 is below maxNumSeqs 32, and each of these needs a token in a step: raise "
            "it, or lower maxNumSeqs",
        ),
        ({"maxNumBatchedTokens": 512, "maxModelLen": 1024}, None),
        (
            {"maxNumBatchedTokens": 512, "maxModelLen": 1024, "chunkedPrefill": False},
            "serving.maxNumBatchedTokens 512 is below maxModelLen 1024, and without chunkedPrefill a prompt is worked "
            "on in one step: raise it, or leave chunkedPrefill on",
        ),
        ({"lora": {"maxRank": 16, "fullySharded": True}, "tensorParallelSize": 4}, None),
        (
            {"lora": {"maxRank": 16, "fullySharded": True}, "tensorParallelSize": 3},
            "serving.lora.fullySharded divides maxRank 16 by tensorParallelSize 3, which leaves a rest: choose another "
            "of them",
        ),
        ({"lora": {"maxRank": 16, "fullySharded": True, "enabled": False}, "tensorParallelSize": 3}, None),
        (
            {"expertParallel": True, "lora": {"fullySharded": True}},
            "serving.lora.fullySharded does not go with expertParallel, since both divide by the same GPUs: remove one "
            "of them",
        ),
        ({"expertParallel": True, "tensorParallelSize": 2}, None),
        ({"expertParallel": True, "tensorParallelSize": 2, "dataParallelSize": 2, "lora": {"enabled": False}}, None),
        (
            {"expertParallel": True, "tensorParallelSize": 2, "dataParallelSize": 2},
            "serving.expertParallel with tensorParallelSize and dataParallelSize takes no adapters: leave one of the "
            "three out, or set lora.enabled to false",
        ),
        ({"speculative": {"method": "NGram", "tokens": 15}}, None),
        ({"speculative": {"method": "NGram", "tokens": 16}, "lora": {"enabled": False}}, None),
        ({"speculative": {"method": "NGram", "tokens": 16}}, needs_tokens(16)),
        ({"speculative": {"method": "NGram", "tokens": 7}, "maxNumSeqs": 256, "maxNumBatchedTokens": 2048}, None),
        (
            {"speculative": {"method": "NGram", "tokens": 8}, "maxNumSeqs": 256, "maxNumBatchedTokens": 2048},
            needs_tokens(8),
        ),
        ({"speculative": {"method": "NGram", "tokens": 3}, "maxNumSeqs": 8192}, None),
        ({"speculative": {"method": "NGram", "tokens": 16}, "chunkedPrefill": False}, None),
        (drafted("DraftModel"), None),
        (drafted("DraftModel", **CPU), None),
        (drafted("Eagle3"), None),
        (drafted("Eagle3", lora={"enabled": False}, **CPU), None),
        (drafted("Eagle", **CPU), meets_adapters("Eagle")),
        (drafted("Eagle3", **CPU), meets_adapters("Eagle3")),
        ({"dataParallelSize": 2, **CPU}, None),
        ({"pipelineParallelSize": 2}, None),
        (
            {"pipelineParallelSize": 2, **CPU},
            "serving.pipelineParallelSize: vllm 0.32 (CPU) ends with its first request then: use tensorParallelSize",
        ),
        (
            {"pipelineParallelSize": 2, **NO_GPUS},
            "serving.pipelineParallelSize: vllm 0.32 (CPU) ends with its first request then: use tensorParallelSize. "
            f"It is taken for that build: {no_gpu(2)}",
        ),
        (
            {"sleepMode": True, **NO_GPUS},
            f"serving.sleepMode: vllm 0.32 (CPU) has no sleep mode: remove it. It is taken for that build: {no_gpu(1)}",
        ),
    ],
)
def test_what_the_engine_lacks_is_refused_by_name(fields, words):
    found = unsupported_setting(serving(**fields), UPSTREAM)
    assert (found and found.message) == words
    assert found is None or found.reason is Reason.UNSUPPORTED_SETTING


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, None),
        ({"gpuMemory": "80Gi", "engineVersion": "0.5", "extraArgs": ["--dtype=half"]}, None),
        ({"maxNumSeqs": 4}, "maxNumSeqs"),
        ({"prefixCaching": False}, "prefixCaching"),
        ({"lora": {"fullySharded": False}}, "lora.fullySharded"),
        # a base's, under a block that names another engine and cannot take it away
        ({"compileCache": {"hostPath": {"path": "/cache"}}}, None),
    ],
)
def test_another_engine_leaves_no_setting_out_without_a_word(fields, field):
    found = unsupported_setting(replace(serving(**fields), engine="sglang"), UPSTREAM)
    words = f"serving.{field} is a setting of vllm, and the pool's engine is sglang: say it in extraArgs"
    assert (found and found.message) == (field and words)
    assert unknown_engine_version(replace(serving(dtype="half"), engine="sglang"), UPSTREAM) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, None),
        ({"image": "acme/served:1.4.0"}, None),  # nothing is asked that could be checked
        ({"dtype": "bfloat16"}, None),
        (
            {"dtype": "bfloat16", "lora": {"dtype": "float16"}, "image": "vllm/vllm-openai:v0.99.0"},
            "nothing is known of vllm 0.99 (CUDA), so it gets serving.dtype, lora.dtype unchecked",
        ),
        (
            {"dtype": "bfloat16", "image": "acme/served:1.4.0"},
            "nothing is known of vllm of unknown version (CUDA), so it gets serving.dtype unchecked; the image's tag "
            "does not tell the version, serving.engineVersion can",
        ),
    ],
)
def test_an_unknown_version_is_a_warning(fields, words):
    found = unknown_engine_version(serving(**fields), UPSTREAM)
    assert (found and found.message) == words
    assert found is None or found.reason is Reason.UNKNOWN_ENGINE_VERSION


@pytest.mark.parametrize(
    ("speculative", "reason"),
    [
        ({"method": "NGram", "tokens": 4}, None),
        ({"method": "DraftModel", "tokens": 4, "draft": {"volume": "models", "path": "drafts/small"}}, None),
        (
            {"method": "DraftModel", "tokens": 4, "draft": {"volume": "others", "path": "drafts/small"}},
            Reason.VOLUME_NOT_DECLARED,
        ),
        (
            {"method": "DraftModel", "tokens": 4, "draft": {"volume": "models", "path": "drafts/../../small"}},
            Reason.UNSAFE_PATH,
        ),
        ({"method": "DraftModel", "tokens": 4, "draft": {"volume": "models", "path": "/etc"}}, Reason.UNSAFE_PATH),
    ],
)
def test_a_draft_stays_on_a_declared_volume(speculative, reason):
    block = ServingSpec(artifact_volumes=[VOLUME]).over(ServingSpec.from_dict({"speculative": speculative}))
    found = violation(base_model(), resolved_serving(block), Settings(allowed_host_path_prefixes=["/var/lib/models"]))
    assert (found and found.reason) == reason


@pytest.mark.parametrize(
    ("demand", "experts", "words"),
    [
        ({}, 0, None),
        ({"expert_parallel": True}, 8, None),
        (
            {"expert_parallel": True},
            0,
            "serving.expertParallel divides experts, and the base's config.json has none: remove it",
        ),
        ({"pipeline_parallel_size": 4}, 0, None),
        (
            {"pipeline_parallel_size": 5},
            0,
            "serving.pipelineParallelSize 5 is more than the base's 4 layers: lower it",
        ),
    ],
)
def test_how_a_base_cannot_be_divided(demand, experts, words):
    found = unfit_for_base(ModelSize(dtype="bfloat16", layers=4, experts=experts), MemoryDemand(**demand))
    assert (found and found.message) == words


@pytest.mark.parametrize(
    ("engine", "targets", "words"),
    [
        ("vllm", {"waitingRequests": 2}, None),
        ("llamaCpp", {"inFlightRequests": 8}, None),
        ("llamaCpp", {"inFlightRequests": 8, "kvCacheUtilization": 70}, "targets.kvCacheUtilization goes by"),
        ("sglang", {"waitingRequests": 2}, "use inFlightRequests or ttft"),
    ],
)
def test_a_pool_is_not_scaled_by_what_its_engine_does_not_tell(engine, targets, words):
    told = targets_not_measured(serving(engine=engine, autoscaling={"maxReplicas": 4, "targets": targets}))
    assert (told is None) == (words is None)
    assert told is None or (told.reason is Reason.ENGINE_UNSUITABLE and words in told.message)
