"""The `serving` block: how one pool of engines runs. A ModelDeployment's block overrides its base model's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.autoscaling import Autoscaling
from tuneyard.api.base import ApiModel
from tuneyard.api.enginesettings import EngineSettings, Word
from tuneyard.api.schema import Duration, Name, ObjectName, Quantity, Text, cel, exactly_one

RESERVED_ARGUMENTS = (
    *("--model", "--port", "--host", "--uds", "--api-key", "--served-model-name"),
    *("--enable-lora", "--max-loras", "--max-lora-rank", "--max-cpu-loras"),
    *("--tensor-parallel-size", "-tp", "--shutdown-timeout"),
)
"""Arguments that Tuneyard sets itself, whatever the engine."""
RESERVED_OF_VLLM = (
    *("--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp"),
    *("--api-server-count", "--config"),
)
"""Arguments that it sets of vLLM alone: of other engines they can be said in no other way."""
FIELD_ARGUMENTS = (
    *("--enable-expert-parallel", "-ep", "--dtype", "--quantization", "-q", "--kv-cache-dtype", "--block-size"),
    *("--gpu-memory-utilization", "--device-memory-utilization", "--max-model-len", "--max-num-seqs"),
    "--max-num-batched-tokens",
    *("--max-num-queued-reqs", "--enable-prefix-caching", "--no-enable-prefix-caching", "--scheduling-policy"),
    *("--enable-chunked-prefill", "--no-enable-chunked-prefill", "--structured-outputs-config", "--reasoning-parser"),
    *("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens", "--enable-auto-tool-choice"),
    *("--tool-call-parser", "--lora-dtype", "--fully-sharded-loras", "--enable-sleep-mode"),
    *("--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--master-port", "--headless"),
)
"""Arguments with a field of their own. The API server refuses them in what is new; what was stored when they had none
goes on.
"""


EngineName = Literal["vllm", "llamaCpp", "ollama", "sglang", "tgi", "custom"]


class CustomEngine(ApiModel):
    """Any OpenAI-compatible server as an engine: it listens on 127.0.0.1, port $(TUNEYARD_ENGINE_PORT), without a key.

    The pod's front demands the key and lets nobody else in. The base's files are in $(TUNEYARD_BASE_PATH).
    """

    command: Annotated[
        list[Text] | None, Field(max_length=64, description="The container's command; default: the image's.")
    ] = None
    args: Annotated[list[Text] | None, Field(max_length=128, description="The container's arguments.")] = None
    health_path: Annotated[
        str,
        Field(max_length=256, pattern="^/[A-Za-z0-9/_.~-]*$", description="Answers 200 once the engine can be asked."),
    ] = "/health"
    model_name: Annotated[
        str | None,
        Field(
            max_length=253,
            description="What the engine wants to read as `model` for the base; default: the BaseModel's name.",
        ),
    ] = None
    adapters: Annotated[
        Literal["None", "AtRunTime"],
        Field(
            description="AtRunTime: it has vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter, reads adapters from "
            "/adapters and answers 404 for a model that it does not know. None: it serves the base alone."
        ),
    ] = "None"


class LoRASettings(ApiModel):
    """Limits for adapters in one engine."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.copies) || !has(self.maxCopies) || self.maxCopies >= self.copies",
                    "lora.maxCopies may not be below lora.copies: raise it, or leave it out",
                )
            ]
        }
    )

    enabled: Annotated[
        bool | None,
        Field(
            description="Whether engines are started for adapters. false: the base alone is served, which takes less "
            "memory and is faster, as a merged model should be; some architectures can be served in no other way. "
            "Default: true."
        ),
    ] = None
    max_loras: Annotated[int, Field(ge=1, le=512, description="Adapters that may generate at the same moment.")] = 8
    max_rank: Annotated[
        Literal[1, 8, 16, 32, 64, 128, 256, 320, 512],
        Field(description="The highest rank an adapter may have."),
    ] = 16
    max_cpu_loras: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Adapters that one engine holds in memory; more are never planned for a pod. What a pod can "
            "report to the API server bounds it.",
        ),
    ] = 64
    copies: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Pods of the pool that hold each adapter. Default: all of them while every pod has room for "
            "every adapter, else as many as fit with one pod away, at least 1.",
        ),
    ] = None
    idle_timeout: Annotated[
        Duration | None,
        Field(
            description="How long nobody has to ask for a ModelDeployment until its adapters are unloaded, 10s at "
            "least; the next request is held while they are loaded again. Of a deployment over several pools the longest "
            "counts. Default: never."
        ),
    ] = None
    max_copies: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Pods that hold an adapter at most while many requests to it are under way and there is free "
            "room. Default: all of them; equal to copies, no adapter gets more than the others.",
        ),
    ] = None
    dtype: Annotated[
        Word | None, Field(description="Number format of adapters in the engine; default: the base's.")
    ] = None
    fully_sharded: Annotated[
        bool | None,
        Field(
            description="Divide both halves of each adapter over the GPUs: less memory for high ranks and many GPUs."
        ),
    ] = None

    @property
    def on(self) -> bool:
        """Whether engines take adapters at all."""
        return self.enabled is not False


class Resources(ApiModel):
    """Resources of the engine container, as in a pod."""

    limits: Annotated[dict[str, Quantity] | None, Field(max_length=32)] = None
    requests: Annotated[dict[str, Quantity] | None, Field(max_length=32)] = None


class HostPath(ApiModel):
    """A folder of the node; only under a prefix that the chart allows."""

    path: Annotated[str, Field(max_length=1024, pattern="^/")]


class VolumeClaim(ApiModel):
    """A PersistentVolumeClaim of the same namespace, mounted read-only."""

    claim_name: ObjectName


class CacheClaim(ApiModel):
    """A PersistentVolumeClaim of the same namespace, mounted to be written to."""

    claim_name: ObjectName


class ArtifactVolume(ApiModel):
    """A volume that the pool's pods have from the start, so that artifacts on it can be loaded while they run."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [exactly_one("an artifact volume", "hostPath", "persistentVolumeClaim")]
        }
    )

    name: Name
    host_path: HostPath | None = None
    persistent_volume_claim: VolumeClaim | None = None


class Prewarm(ApiModel):
    """Nodes that fetch into their cache what the shared pool needs, before its pods start there: the base, also while
    no ModelDeployment refers to it, and the remote adapters of the pool's plan.
    """

    node_selector: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]] | None,
        Field(max_length=32, description="Labels of the nodes; default: serving.nodeSelector, without one all nodes."),
    ] = None


class ArtifactCache(ApiModel):
    """Where the pool's pods keep what they fetch over the network. Without it each pod keeps its own, while it lives.

    On a hostPath (only under a prefix that the chart allows) the pods of a node share it, on a claim those that mount
    it; each namespace has a folder of its own.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!(has(self.hostPath) && has(self.persistentVolumeClaim))",
                    "a cache is on a hostPath or on a persistentVolumeClaim: remove one of them",
                ),
                cel(
                    "!has(self.prewarm) || has(self.hostPath)",
                    "cache.prewarm fills the nodes' own folders, so it needs cache.hostPath: a persistentVolumeClaim "
                    "keeps what its first pod has fetched",
                ),
            ]
        }
    )

    host_path: HostPath | None = None
    persistent_volume_claim: CacheClaim | None = None
    size_limit: Annotated[
        Quantity | None,
        Field(description="Bytes, for example 200Gi; what was used least recently goes. Default: what the disk holds."),
    ] = None
    prewarm: Annotated[
        Prewarm | None,
        Field(
            description="Fill the cache of these nodes beforehand; of a BaseModel's own block only, for sources "
            "huggingFace and s3. Default: pods fetch when they start."
        ),
    ] = None


class CompileCache(ApiModel):
    """Where what the engine compiled outlives its pod: on a hostPath (only one that the chart allows for caches), or on
    a claim. Each namespace has a folder of its own.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [exactly_one("a compile cache", "hostPath", "persistentVolumeClaim")]
        }
    )

    host_path: HostPath | None = None
    persistent_volume_claim: CacheClaim | None = None


def _sets_none_of(arguments: tuple[str, ...]) -> str:
    """CEL: no item of extraArgs is one of these arguments, with a value or without."""
    listed = ", ".join(f"'{argument}'" for argument in arguments)
    return f"self.extraArgs.all(a, ![{listed}].exists(f, a == f || a.startsWith(f + '=')))"


class EnvVar(ApiModel):
    """One environment variable of the engine container; secrets do not belong here."""

    name: Annotated[str, Field(max_length=128, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Text = ""


class Toleration(ApiModel):
    """A toleration of the pods, as in a pod."""

    key: Annotated[str | None, Field(max_length=317)] = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str | None, Field(max_length=63)] = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class ServingSpec(EngineSettings):
    """How a pool serves. What is unset is taken from the base model's block, then from the defaults named here."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    f"!has(self.extraArgs) || {_sets_none_of(RESERVED_ARGUMENTS)}",
                    "extraArgs may not set what Tuneyard sets: model, address, api-key, names, LoRA and parallelism have "
                    "fields of their own",
                ),
                cel(
                    "!has(self.extraArgs) || (has(self.engine) && self.engine != 'vllm') || "
                    f"{_sets_none_of(RESERVED_OF_VLLM)}",
                    "extraArgs may not set what Tuneyard tells vLLM: parallelism has fields of its own; for an engine other "
                    "than vllm, name it in this block: engine",
                ),
                cel(
                    "!has(self.extraArgs) || (has(self.engine) && self.engine != 'vllm') || "
                    f"{_sets_none_of(FIELD_ARGUMENTS)}",
                    "extraArgs may not set what has a field of its own (docs/howto/engine-settings.md); for an engine other than "
                    "vllm, name it in this block: engine",
                ),
                cel(
                    "!has(self.nodesPerReplica) || !has(self.tensorParallelSize) || !has(self.pipelineParallelSize) || "
                    "self.tensorParallelSize * self.pipelineParallelSize % self.nodesPerReplica == 0",
                    "nodesPerReplica must divide tensorParallelSize x pipelineParallelSize: every node of a replica has as "
                    "many GPUs of it",
                ),
                cel(
                    "!has(self.compileCache) || !has(self.engine) || self.engine == 'vllm'",
                    "compileCache keeps what vllm compiles, another engine leaves it empty: remove it",
                ),
                cel(
                    "!has(self.custom) || !has(self.engine) || self.engine == 'custom'",
                    "custom describes the engine custom: remove it, or set engine: custom",
                ),
                cel(
                    "!has(self.replicas) || !has(self.autoscaling)",
                    "serving has replicas or autoscaling, not both: remove replicas, or set autoscaling.minReplicas",
                ),
                cel(
                    "!has(self.autoscaling) || has(self.scaleToZeroAfter) == "
                    "(has(self.autoscaling.minReplicas) && self.autoscaling.minReplicas == 0)",
                    "autoscaling.minReplicas: 0 and scaleToZeroAfter belong together: set both, or neither",
                ),
            ]
        }
    )

    engine: Annotated[
        EngineName | None,
        Field(description="The engine; default vllm. What each can do: docs/howto/choose-an-engine.md."),
    ] = None
    custom: Annotated[CustomEngine | None, Field(description="How engine custom is run; of no other engine.")] = None
    image: Annotated[
        str | None,
        Field(
            max_length=512,
            description="The engine's image; default: the chart's images.vllm or images.llamaCpp. Other engines have no "
            "default.",
        ),
    ] = None
    tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1, le=64, description="GPUs one replica spans; must divide the attention heads. Default 1."),
    ] = None
    nodes_per_replica: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="Nodes one replica spans, each with an equal part of its GPUs: 2 and more need LeaderWorkerSets in "
            "the cluster and leaderWorkerSets.enabled in the chart. Default 1.",
        ),
    ] = None
    exclusive_topology_key: Annotated[
        str | None,
        Field(
            max_length=317,
            description="Label of nodes, for example of a rack: each replica that spans nodes has all its pods in one "
            "domain of it, which no other replica shares. Default: pods go where there is room.",
        ),
    ] = None
    replicas: Annotated[
        int | None,
        Field(ge=0, le=1000, description="Pods of the pool; groups of pods where a replica spans nodes. Default 1."),
    ] = None
    autoscaling: Annotated[
        Autoscaling | None,
        Field(description="Pods of the pool by what is asked of it, in place of replicas. Default: never."),
    ] = None
    scale_to_zero_after: Annotated[
        Duration | None,
        Field(
            description="How long nobody has to ask for any ModelDeployment of the pool, 10s at least, until its pods go; "
            "the next request is held while they start again. It is lora.idleTimeout, too, where that is not set. "
            "Default: never."
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        Field(ge=16, description="Context length in tokens; default: the model's own, with ollama Ollama's."),
    ] = None
    lora: LoRASettings | None = None
    resources: Annotated[
        Resources | None,
        Field(
            description="Engine container resources, in place of the whole default. Default limits: tensorParallelSize x "
            "pipelineParallelSize x dataParallelSize nvidia.com/gpu, divided by nodesPerReplica."
        ),
    ] = None
    artifact_volumes: Annotated[
        list[ArtifactVolume] | None,
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            description="Volumes that sources of kind volume may name.",
        ),
    ] = None
    cache: Annotated[
        ArtifactCache | None, Field(description="Where fetched artifacts are kept; default: in each pod.")
    ] = None
    compile_cache: Annotated[
        CompileCache | None, Field(description="Where what the engine compiles is kept; default: in each pod.")
    ] = None
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]] | None, Field(max_length=32)] = None
    tolerations: Annotated[list[Toleration] | None, Field(max_length=32)] = None
    env: Annotated[
        list[EnvVar] | None,
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = None
    extra_args: Annotated[
        list[Text] | None,
        Field(max_length=64, description="Further arguments of the engine, as its last resort."),
    ] = None
    update: Annotated[
        Literal["Surge", "Replace"] | None,
        Field(description="Surge starts the new pod first; Replace frees the GPUs first. Default Surge."),
    ] = None
    drain_timeout: Annotated[
        Duration | None, Field(description="How long a leaving pod may finish its streams. Default 10m.")
    ] = None
    startup_timeout: Annotated[
        Duration | None, Field(description="How long an engine may take to become healthy. Default 30m.")
    ] = None

    def over(self, other: ServingSpec | None) -> ServingSpec:
        """This block on top of `other`: every field that is set here wins as a whole.

        How many pods there are is one thing, said in two ways: replicas here take the place of autoscaling below, and
        autoscaling that of replicas and of scaleToZeroAfter, which says what its minReplicas means.
        """
        below: dict[str, Any] = other.model_dump(exclude_none=True) if other else {}
        if self.replicas is not None:
            below.pop("autoscaling", None)
        if self.autoscaling is not None:
            below.pop("replicas", None)
            below.pop("scale_to_zero_after", None)
        return ServingSpec.model_validate({**below, **self.model_dump(exclude_none=True)})
