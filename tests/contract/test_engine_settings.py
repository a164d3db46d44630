"""The real vLLM takes the flags that settings become, and does what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.engines import BASE, KEY, EngineProcess, adapters, own_engine
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.settingchecks import unknown_engine_version, unsupported_setting
from tuneyard.planning.vllmflags import setting_flags
from tuneyard.systems.engines.vllm import Vllm

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK = {
    "engineVersion": "0.32",
    "engineBuild": "CPU",
    "prefixCaching": False,
    "chunkedPrefill": True,
    "kvCacheDtype": "auto",  # fp8 needs AVX-512 on a CPU
    "blockSize": 64,
    "dtype": "bfloat16",
    "maxNumSeqs": 8,
    "maxNumBatchedTokens": 512,
    "maxQueuedRequests": 16,
    "schedulingPolicy": "Priority",
    "speculative": {"method": "NGram", "tokens": 3, "promptLookupMin": 1, "promptLookupMax": 4},
    "structuredOutputs": {"backend": "xgrammar"},
    "toolCalls": {"parser": "hermes"},
    "lora": {"dtype": "bfloat16", "fullySharded": False},
    "pipelineParallelSize": 1,
    "dataParallelSize": 1,
    "expertParallel": False,
    "gpuMemoryUtilization": 0.5,
    "sleepMode": False,
}
"""All at once: an engine takes most of a minute to start."""


def serving() -> Serving:
    return resolved_serving(ServingSpec.from_dict(BLOCK))


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    engine = own_engine("vllm", *setting_flags(serving(), "/artifacts"))
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


def said(engine: EngineProcess, **body: Any) -> str:
    question = {"messages": [{"role": "user", "content": "aaaa aaaa aaaa"}], "temperature": 0, "max_tokens": 24}
    answer = json.loads(engine.asked("/v1/chat/completions", {"model": BASE, **question, **body}))
    return str(answer["choices"][0]["message"]["content"])


def test_the_table_of_this_version_has_them_all() -> None:
    assert unsupported_setting(serving(), "") is None
    assert unknown_engine_version(serving(), "") is None


def test_the_engine_says_that_it_runs_so(engine: EngineProcess) -> None:
    told = next(line for line in engine.asked("/metrics").splitlines() if line.startswith("vllm:cache_config_info{"))
    found = dict(re.findall(r'(\w+)="([^"]*)"', told))
    assert {key: found[key] for key in ("enable_prefix_caching", "cache_dtype", "block_size")} == {
        "enable_prefix_caching": "False",
        "cache_dtype": "auto",
        "block_size": "64",
    }


async def test_an_adapter_is_loaded_and_answers_while_tokens_are_proposed(engine: EngineProcess) -> None:
    async with Vllm(engine.url, KEY) as client:
        await client.load("adapter-a", str(adapters() / "adapter-a"))
        assert said(engine, model="adapter-a") == "a" * 24
    counted = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\S* ([0-9.e+]+)$", engine.asked("/metrics"), re.M)
    assert counted is not None
    assert float(counted[1]) > 0


def test_a_schema_is_held(engine: EngineProcess) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert json.loads(said(engine, response_format=wanted))["a"] in ("yes", "no")


def test_a_request_with_a_priority_is_taken(engine: EngineProcess) -> None:
    assert len(said(engine, priority=5)) == 24
