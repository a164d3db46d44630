"""Building a base: `BaseModel.spec.source.build`. What its Job is told, and what it answers, is in buildtask.py.

What a build makes, and where, is immutable as all of a source is: other steps are another BaseModel, and what both have
in common is made once. How its Jobs run (MAY_CHANGE) changes nothing of the result, and may be put right after a failure.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.buildoutput import BuildOutput
from tuneyard.api.schema import Digest, Duration, Name, ObjectName, Quantity, cel, exactly_one
from tuneyard.api.serving import Resources, Toleration
from tuneyard.api.sources import S3Source, Source

DEFAULT_PROMPTS = "prompts.jsonl"
DEFAULT_TIMEOUT = "24h"
DEFAULT_SAMPLES = 512
DEFAULT_MAX_LENGTH = 2048
DEFAULT_GGUF = "Q4_K_M"
MAX_MODELS = 16
MAY_CHANGE = frozenset({"resources", "node_selector", "tolerations", "timeout", "retries", "scratch"})
"""Fields of a build that may change: those that decide only how its Jobs run, and count in no key and no contents."""

StepKind = Literal["merge", "mergekit", "quantize", "gguf"]
STEP_KINDS: tuple[StepKind, ...] = ("merge", "mergekit", "quantize", "gguf")
GgufType = Literal[
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_1",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_0",
    "Q5_1",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "F16",
    "BF16",
    "F32",
]
DType = Literal["float32", "bfloat16", "float16"]


class Merge(ApiModel):
    """An adapter added to its base's weights, in float32."""

    base_model: Annotated[ObjectName, Field(description="The BaseModel that the adapter was trained on.")]
    adapter: Annotated[ObjectName, Field(description="The LoRAAdapter.")]
    dtype: Annotated[
        DType | None,
        Field(description="In which the sum is written; default: that of the base. float32 keeps it exactly."),
    ] = None


class MergekitModel(ApiModel):
    """A model of a mergekit configuration."""

    name: Annotated[Name, Field(description="The configuration's word for it.")]
    base_model: ObjectName
    adapter: Annotated[
        ObjectName | None, Field(description="A LoRAAdapter of that base, which is merged into it first.")
    ] = None


class Mergekit(ApiModel):
    """Several models made one, by mergekit."""

    config: Annotated[
        str,
        Field(
            min_length=1,
            max_length=16384,
            description="A mergekit configuration as YAML, with the names of `models` in place of paths.",
        ),
    ]
    models: Annotated[
        list[MergekitModel],
        Field(
            min_length=1,
            max_length=MAX_MODELS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    seed: Annotated[int | None, Field(ge=0, le=2**31 - 1, description="Of methods that draw, as DARE. Default 0.")] = (
        None
    )


class CalibrationData(ApiModel):
    """Texts that a quantisation measures the model on: JSON lines, each with `text`, `prompt` or `messages`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                exactly_one("calibration", "configMap", "s3"),
                cel(
                    "!has(self.s3) || has(self.digest)",
                    "calibration.s3 takes calibration.digest, because objects change: `tuneyard digest URI` prints it",
                ),
            ]
        }
    )

    config_map: Annotated[ObjectName | None, Field(description="A ConfigMap of the namespace.")] = None
    s3: Annotated[S3Source | None, Field(description="Objects under a prefix: every .jsonl file of it.")] = None
    key: Annotated[str | None, Field(max_length=253, description=f"Of the ConfigMap; default {DEFAULT_PROMPTS}.")] = (
        None
    )
    digest: Annotated[
        Digest | None,
        Field(
            description="Of the objects, as `tuneyard digest` prints it; of a ConfigMap `sha256:` and the text's SHA-256."
        ),
    ] = None
    samples: Annotated[
        int | None, Field(ge=1, le=8192, description=f"Lines that are used at most. Default {DEFAULT_SAMPLES}.")
    ] = None
    max_length: Annotated[int | None, Field(ge=16, le=32768, description="Tokens of each. Default 2048.")] = None


class Quantize(ApiModel):
    """Weights in fewer bits, by llmcompressor, in the format compressed-tensors."""

    base_model: Annotated[ObjectName | None, Field(description="The BaseModel; only of the first step.")] = None
    scheme: Annotated[
        Literal["AWQ", "GPTQ", "INT8", "FP8"],
        Field(
            description="AWQ and GPTQ: weights of 4 bits in groups; INT8: weights and activations of 8 bits; FP8: the "
            "same in floating point, activations scaled as they come."
        ),
    ]
    group_size: Annotated[
        int | None,
        Field(ge=16, le=1024, description="Of AWQ and GPTQ; default: the largest up to 128 that fits the model."),
    ] = None
    tensor_parallel_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=1024,
            description="Of AWQ and GPTQ: groups fit each GPU's part of the weights when so many share them. Default: "
            "serving.tensorParallelSize of this BaseModel.",
        ),
    ] = None
    calibration: Annotated[CalibrationData | None, Field(description="Of AWQ and GPTQ, which require it.")] = None


class Gguf(ApiModel):
    """One GGUF file for llama.cpp."""

    base_model: Annotated[ObjectName | None, Field(description="The BaseModel; only of the first step.")] = None
    type: Annotated[GgufType | None, Field(description=f"Default {DEFAULT_GGUF}.")] = None


class BuildStep(ApiModel):
    """One step: exactly one kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                exactly_one("a build step", *STEP_KINDS),
                cel(
                    "!has(self.quantize) || !(self.quantize.scheme in ['AWQ', 'GPTQ']) || has(self.quantize.calibration)",
                    "quantize by AWQ or GPTQ needs calibration: name texts like those that the model is asked",
                ),
                cel(
                    "!has(self.quantize) || !has(self.quantize.groupSize) || self.quantize.scheme in ['AWQ', 'GPTQ']",
                    "quantize.groupSize is of AWQ and GPTQ: remove it",
                ),
                cel(
                    "!has(self.quantize) || !has(self.quantize.calibration) || self.quantize.scheme in ['AWQ', 'GPTQ']",
                    "quantize.calibration is of AWQ and GPTQ: remove it",
                ),
                cel(
                    "!has(self.quantize) || !has(self.quantize.tensorParallelSize) || "
                    "self.quantize.scheme in ['AWQ', 'GPTQ']",
                    "quantize.tensorParallelSize is of AWQ and GPTQ, which have groups: remove it",
                ),
            ]
        }
    )

    merge: Merge | None = None
    mergekit: Mergekit | None = None
    quantize: Quantize | None = None
    gguf: Gguf | None = None

    @property
    def kind(self) -> StepKind | None:
        """Which one it is; None: one that this version does not know."""
        return next((kind for kind in STEP_KINDS if getattr(self, kind) is not None), None)


class Scratch(ApiModel):
    """Where a Job keeps what it works on, while it runs."""

    size: Annotated[
        Quantity | None,
        Field(
            description="For example 200Gi, for which a node with that much ephemeral storage is chosen; default: what the "
            "node's disk has."
        ),
    ] = None
    storage_class: Annotated[
        ObjectName | None,
        Field(description="A volume of this class for each run, of `size`; default: the node's own disk (emptyDir)."),
    ] = None


_CHANGES = "May change: for the next attempt, not for the Job that runs."
_FIRST = "self.steps[0]"
_SUMS = "self.steps.filter(s, has(s.merge) || has(s.mergekit)).size()"
_LEANS = "self.steps.filter(s, has(s.quantize) || has(s.gguf)).size()"
_NAMED = "self.steps.filter(s, (has(s.quantize) && has(s.quantize.baseModel)) || (has(s.gguf) && has(s.gguf.baseModel))).size()"
_STARTS_WITH_SUM = f"(has({_FIRST}.merge) || has({_FIRST}.mergekit))"


class Build(ApiModel):
    """A base that Jobs of the namespace make of others, once; then it is served like any other."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    f"{_SUMS} == ({_STARTS_WITH_SUM} ? 1 : 0)",
                    "merge and mergekit can only be the first of build.steps: give what they make a BaseModel of its own, "
                    "and merge that",
                ),
                cel(
                    f"{_LEANS} <= 1",
                    "build.steps may hold one of quantize and gguf, because neither can work on what the other made: "
                    "build two BaseModels",
                ),
                cel(
                    f"{_NAMED} == ({_STARTS_WITH_SUM} ? 0 : 1)",
                    "quantize and gguf take baseModel as the first step, and only there: later ones work on the result of "
                    "the step before",
                ),
                cel(
                    "!has(self.scratch) || !has(self.scratch.storageClass) || has(self.scratch.size)",
                    "build.scratch.storageClass takes build.scratch.size: say how large the volume is to be",
                ),
            ]
        }
    )

    output: BuildOutput
    steps: Annotated[list[BuildStep], Field(min_length=1, max_length=4)]
    resources: Annotated[
        Resources | None,
        Field(description=f"Of the build's container. Default: 1 CPU and 4Gi asked for, no limit. {_CHANGES}"),
    ] = None
    node_selector: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]] | None,
        Field(max_length=32, description=f"Labels of the nodes that Jobs may run on. {_CHANGES}"),
    ] = None
    tolerations: Annotated[
        list[Toleration] | None, Field(max_length=32, description=f"Of the Jobs' pods. {_CHANGES}")
    ] = None
    timeout: Annotated[
        Duration | None, Field(description=f"How long one attempt may take. Default {DEFAULT_TIMEOUT}. {_CHANGES}")
    ] = None
    retries: Annotated[
        int | None,
        Field(
            ge=0,
            le=20,
            description="How often it is tried again after a failure. Default 3. May change; a delay that has begun stays.",
        ),
    ] = None
    scratch: Annotated[
        Scratch | None, Field(description=f"Where a Job keeps what it works on, while it runs. {_CHANGES}")
    ] = None


class BaseSource(Source):
    """Where a base's files are: exactly one kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                exactly_one("source", "volume", "huggingFace", "s3", "image", "build"),
                cel(
                    "!has(self.volume) || !self.volume.path.split('/').exists(p, p == '..')",
                    "source.volume.path may not leave the volume: remove '..'",
                ),
                cel(
                    "!has(self.image) || !has(self.image.path) || !self.image.path.split('/').exists(p, p == '..')",
                    "source.image.path may not leave the image: remove '..'",
                ),
            ]
        }
    )

    build: Annotated[Build | None, Field(description="Made of other bases and adapters by Jobs.")] = None

    @property
    def is_known(self) -> bool:
        """Whether this version knows its kind; newer ones may have more."""
        return self.build is not None or super().is_known
