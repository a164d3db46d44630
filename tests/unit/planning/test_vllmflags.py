"""Settings become flags of vLLM; what is unset becomes none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.builders import SETTINGS, base_model, deployment, revision
from tuneyard.api.enginesettings import (
    DraftModel,
    EngineSettings,
    Speculative,
    StructuredOutputs,
    ToolCalls,
)
from tuneyard.api.serving import CacheClaim, CompileCache, HostPath, LoRASettings, ServingSpec
from tuneyard.planning.podspec import pod_template
from tuneyard.planning.pools import pools_of
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.vllmflags import setting_flags


def flags(spec: ServingSpec) -> list[str]:
    return setting_flags(resolved_serving(spec), "/artifacts")


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, []),
        ({"pipelineParallelSize": 2}, ["--pipeline-parallel-size", "2"]),
        ({"dataParallelSize": 4}, ["--data-parallel-size", "4"]),
        ({"expertParallel": True}, ["--enable-expert-parallel"]),
        ({"expertParallel": False}, ["--no-enable-expert-parallel"]),
        ({"dtype": "float16"}, ["--dtype", "float16"]),
        ({"quantization": "compressed-tensors"}, ["--quantization", "compressed-tensors"]),
        ({"kvCacheDtype": "fp8"}, ["--kv-cache-dtype", "fp8"]),
        ({"gpuMemoryUtilization": 0.85}, ["--gpu-memory-utilization", "0.85"]),
        ({"blockSize": 32}, ["--block-size", "32"]),
        ({"maxNumSeqs": 64}, ["--max-num-seqs", "64"]),
        ({"maxNumBatchedTokens": 4096}, ["--max-num-batched-tokens", "4096"]),
        ({"maxQueuedRequests": 100}, ["--max-num-queued-reqs", "100"]),
        ({"prefixCaching": False}, ["--no-enable-prefix-caching"]),
        ({"chunkedPrefill": True}, ["--enable-chunked-prefill"]),
        ({"schedulingPolicy": "Priority"}, ["--scheduling-policy", "priority"]),
        ({"schedulingPolicy": "FCFS"}, ["--scheduling-policy", "fcfs"]),
        ({"reasoningParser": "qwen3"}, ["--reasoning-parser", "qwen3"]),
        ({"toolCalls": {"parser": "hermes"}}, ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]),
        ({"structuredOutputs": {"backend": "xgrammar"}}, ["--structured-outputs-config", '{"backend":"xgrammar"}']),
        ({"sleepMode": True}, ["--enable-sleep-mode"]),
        ({"lora": {"dtype": "float16", "fullySharded": True}}, ["--lora-dtype", "float16", "--fully-sharded-loras"]),
        # only told to the operator
        ({"gpuMemory": "80Gi", "engineVersion": "0.32", "engineBuild": "CUDA"}, []),
    ],
)
def test_each_setting_is_one_flag(spec, wanted):
    assert flags(ServingSpec.from_dict(spec)) == wanted


@pytest.mark.parametrize(
    ("speculative", "wanted"),
    [
        (
            Speculative(method="NGram", tokens=4, prompt_lookup_max=5),
            {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 5},
        ),
        (
            Speculative(method="DraftModel", tokens=3, draft=DraftModel(volume="models", path="drafts/../small/")),
            {"method": "draft_model", "num_speculative_tokens": 3, "model": "/artifacts/models/small"},
        ),
        (
            Speculative(method="Eagle3", tokens=2, draft=DraftModel(volume="models", path="eagle$(HOME)")),
            {"method": "eagle3", "num_speculative_tokens": 2, "model": "/artifacts/models/eagle$$(HOME)"},
        ),
    ],
)
def test_speculation_is_one_argument_of_json(speculative, wanted):
    flag, value = flags(ServingSpec(speculative=speculative))
    assert (flag, json.loads(value)) == ("--speculative-config", wanted)


def test_every_setting_has_a_flag_or_is_known_to_have_none():
    everything = ServingSpec(
        engine_version="0.32",
        engine_build="CUDA",
        gpu_memory="80Gi",
        gpu_memory_utilization=0.5,
        pipeline_parallel_size=2,
        data_parallel_size=2,
        expert_parallel=True,
        dtype="float16",
        quantization="fp8",
        kv_cache_dtype="fp8",
        block_size=16,
        max_num_seqs=1,
        max_num_batched_tokens=1,
        max_queued_requests=1,
        prefix_caching=True,
        chunked_prefill=True,
        scheduling_policy="FCFS",
        speculative=Speculative(method="NGram", tokens=1),
        structured_outputs=StructuredOutputs(backend="auto"),
        reasoning_parser="qwen3",
        tool_calls=ToolCalls(parser="hermes"),
        sleep_mode=True,
    )
    told_to_the_operator = {"engine_version", "engine_build", "gpu_memory"}
    assert {f for f in EngineSettings.model_fields if getattr(everything, f) is None} == set()
    alone = {f: flags(ServingSpec(**{f: getattr(everything, f)})) for f in EngineSettings.model_fields}
    assert {f for f, found in alone.items() if not found} == told_to_the_operator


def engine_of(serving: ServingSpec) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    base = base_model(serving=serving)
    pool = pools_of(base, [deployment("a", revisions=[revision("v1")])])[0]
    spec = pod_template(pool, base, SETTINGS)["spec"]
    return spec["containers"][0], spec["volumes"]


def test_what_was_compiled_outlives_the_pod_on_a_claim():
    cache = CompileCache(persistent_volume_claim=CacheClaim(claim_name="compiled"))
    engine, volumes = engine_of(ServingSpec(compile_cache=cache))
    env = {e["name"]: e.get("value") for e in engine["env"]}
    assert {"name": "compiled", "persistentVolumeClaim": {"claimName": "compiled"}} in volumes
    assert engine["volumeMounts"][-1] == {"name": "compiled", "mountPath": "/compile-cache"}
    assert [env[n] for n in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")] == [
        "/compile-cache/vllm",
        "/compile-cache/torchinductor",
        "/compile-cache/triton",
    ]


def test_on_a_node_each_namespace_has_a_folder_of_its_own_beside_the_artifacts():
    cache = CompileCache(host_path=HostPath(path="/var/cache/tuneyard"))
    engine, volumes = engine_of(ServingSpec(compile_cache=cache))
    assert {"name": "compiled", "hostPath": {"path": "/var/cache/tuneyard", "type": "Directory"}} in volumes
    assert engine["volumeMounts"][-1] == {
        "name": "compiled",
        "mountPath": "/compile-cache",
        "subPath": "team.compiled",
    }


def test_the_lora_block_without_the_new_fields_is_as_it_was():
    assert flags(ServingSpec(lora=LoRASettings())) == []
