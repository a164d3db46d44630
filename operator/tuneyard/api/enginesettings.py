"""Settings of an engine that have fields of their own, in the `serving` block.

Rules:
- a field that is unset adds no argument: the engine's own default holds, and pods do not change with a new operator;
- names of number formats, quantization methods, backends and parsers are the engine's own, because each version and
  build has others: which ones, say the presets (planning/enginepresets.py), not this schema.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import Name, Quantity, cel

Word = Annotated[str, Field(max_length=40, pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
"""A value that the engine names, such as fp8 or compressed-tensors."""


class DraftModel(ApiModel):
    """A draft model's files: a folder on one of serving.artifactVolumes. They are not pinned by a digest."""

    volume: Name
    path: Annotated[str, Field(max_length=1024, min_length=1, description="The folder, from the volume's top.")]


class Speculative(ApiModel):
    """Speculative decoding: tokens are proposed cheaply, and checked several at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(self.method == 'NGram') != has(self.draft)",
                    "speculative.draft is for methods DraftModel, Eagle and Eagle3, which need it: NGram looks the tokens "
                    "up in the prompt",
                ),
                cel(
                    "self.method == 'NGram' || (!has(self.promptLookupMin) && !has(self.promptLookupMax))",
                    "speculative.promptLookupMin and promptLookupMax are of method NGram alone: remove them",
                ),
                cel(
                    "!has(self.promptLookupMin) || !has(self.promptLookupMax) || "
                    "self.promptLookupMin <= self.promptLookupMax",
                    "speculative.promptLookupMin may not be above promptLookupMax",
                ),
            ]
        }
    )

    method: Annotated[
        Literal["NGram", "DraftModel", "Eagle", "Eagle3"],
        Field(description="NGram looks in the prompt; the others ask a draft model."),
    ]
    tokens: Annotated[int, Field(ge=1, le=64, description="Tokens that are proposed at a time.")]
    prompt_lookup_min: Annotated[int | None, Field(ge=1, le=64, description="The shortest n-gram that counts.")] = None
    prompt_lookup_max: Annotated[int | None, Field(ge=1, le=64, description="The longest n-gram that counts.")] = None
    draft: DraftModel | None = None


class StructuredOutputs(ApiModel):
    """What holds answers to a schema or a grammar."""

    backend: Annotated[Word, Field(description="For example xgrammar, guidance or outlines.")]


class ToolCalls(ApiModel):
    """Tool calls that the model makes itself are read out of its text."""

    parser: Annotated[Word, Field(description="For example hermes, llama3_json or mistral.")]


class EngineSettings(ApiModel):
    """The part of a `serving` block that becomes the engine's flags."""

    engine_version: Annotated[
        str | None,
        Field(
            max_length=16,
            pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$",
            description="The engine's version, where the image's tag does not tell: what it has is checked by it.",
        ),
    ] = None
    engine_build: Annotated[
        Literal["CUDA", "ROCm", "CPU"] | None,
        Field(
            description="What the image was built for. Default: CPU if the image's name says cpu or resources.limits names "
            "no GPU, ROCm if it names amd.com/gpu, else CUDA."
        ),
    ] = None
    pipeline_parallel_size: Annotated[
        int | None,
        Field(ge=1, le=64, description="Stages that the layers are divided into, of tensorParallelSize GPUs each."),
    ] = None
    data_parallel_size: Annotated[
        int | None,
        Field(ge=1, le=64, description="Whole copies of the model behind one engine's address in a pod."),
    ] = None
    expert_parallel: Annotated[
        bool | None,
        Field(description="Divide whole experts over the GPUs, not each of them; for mixtures of experts."),
    ] = None
    dtype: Annotated[
        Word | None, Field(description="Number format of weights and activations, for example bfloat16.")
    ] = None
    quantization: Annotated[
        Word | None,
        Field(description="Quantization method, for example fp8; default: what the model's config.json says."),
    ] = None
    kv_cache_dtype: Annotated[Word | None, Field(description="Number format of the KV cache, for example fp8.")] = None
    gpu_memory_utilization: Annotated[
        float | None,
        Field(
            ge=0.05, le=1, description="Share of a GPU's memory that the engine takes. The engine's default is 0.92."
        ),
    ] = None
    gpu_memory: Annotated[
        Quantity | None,
        Field(
            description="Memory of one GPU, for example 80Gi; what the pool needs is compared with it before the engine "
            "starts. Default: what nodeSelector says of nvidia.com/gpu.memory, else the chart's gpuMemory."
        ),
    ] = None
    block_size: Annotated[
        Literal[16, 32, 64, 128, 256] | None, Field(description="Tokens in a block of the KV cache.")
    ] = None
    max_num_seqs: Annotated[
        int | None, Field(ge=1, le=65536, description="Requests that may generate at the same moment.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, Field(ge=1, le=16777216, description="Tokens that one step of the engine may work on.")
    ] = None
    max_queued_requests: Annotated[
        int | None,
        Field(ge=1, le=1000000, description="Requests that one engine holds, running or waiting; more get 503."),
    ] = None
    prefix_caching: Annotated[
        bool | None, Field(description="Keep the KV cache of prompts for those that begin alike.")
    ] = None
    chunked_prefill: Annotated[
        bool | None, Field(description="Cut long prompts into parts, between which others generate.")
    ] = None
    scheduling_policy: Annotated[
        Literal["FCFS", "Priority"] | None,
        Field(description="Who is next: the first that came, or the lowest `priority` in the request's body."),
    ] = None
    speculative: Speculative | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning_parser: Annotated[
        Word | None, Field(description="Puts the model's reasoning into a field of its own, for example deepseek_r1.")
    ] = None
    tool_calls: ToolCalls | None = None
    sleep_mode: Annotated[
        bool | None,
        Field(description="Start the engine with an allocator that can give its GPU memory back (vLLM's sleep mode)."),
    ] = None
