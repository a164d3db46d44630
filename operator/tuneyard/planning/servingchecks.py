"""What keeps a pool from being made or changed: every check is named after the violated fact.

Rules:
- the API server checks what one object can say (CEL in the CRD); here stands what needs the base, the chart's
  settings, or more than a schema can say;
- while a check finds something, the pool's Deployment is not applied: what serves keeps serving as it was;
- a hostPath is compared as the node would resolve it, part by part: `..` is refused, `/models-secret` is not under
  `/models`. A link on the node can still lead elsewhere; who may write on the node is out of our hands.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.buildoutput import BUILT_VOLUME
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import RESERVED_ARGUMENTS, RESERVED_OF_VLLM
from tuneyard.planning import engines
from tuneyard.planning.autoscaling import Metric, targets_of
from tuneyard.planning.observations import Problem
from tuneyard.planning.quantities import is_quantity, whole
from tuneyard.planning.ranks import EXECUTOR
from tuneyard.planning.resolvedserving import GPU, Serving
from tuneyard.planning.settingchecks import unsupported_setting
from tuneyard.planning.settings import Settings

_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

_RESERVED: Mapping[str, tuple[str, ...]] = {
    "vllm": RESERVED_OF_VLLM,
    "llamaCpp": ("-m", "-a", "--alias", "--api-key-file", "--lora", "--lora-scaled", "--lora-init-without-apply"),
    "sglang": ("--model-path", "--tp-size", "--tp", "--config"),
    "tgi": ("--model-id", "--hostname", "--num-shard"),
}
"""What each engine's container is given by Tuneyard, beside the arguments that no engine's extraArgs may set."""
_INHERITED = "or use another BaseModel where this one's block has it"
"""A block can set a field that it inherits to something else, and never take it away."""


def violation(base: BaseModelResource, serving: Serving, settings: Settings) -> Problem | None:
    """The first thing that keeps a pool of the base from serving like this, or None.

    A build that is not done comes last: what else is wrong is told before it has taken its hours.
    """
    return (
        base_volume_not_declared(base, serving)
        or built_volume_name_taken(serving)
        or built_for_another_engine(base, serving)
        or unsafe_source_path(base)
        or host_path_not_allowed(serving, settings)
        or malformed_quantities(serving)
        or malformed_node_selector(serving)
        or reserved_argument(serving)
        or engine_not_described(serving)
        or engine_cannot(serving)
        or nodes_do_not_fit(serving)
        or more_ranks_than_gpus(serving)
        or draft_not_on_a_volume(serving)
        or targets_not_measured(serving)
        or unsupported_setting(serving, settings.images.vllm)
        or not_built(base)
    )


def not_built(base: BaseModelResource) -> Problem | None:
    """A base that Jobs make is served when it is made, and not before."""
    build, name = base.status.build, base.metadata.name
    if base.spec.source.build is None or (build is not None and build.succeeded):
        return None
    if build is None or build.state == "Waiting":
        more = f": {build.progress}" if build and build.progress else ""
        return Problem(Reason.BUILD_PENDING, f"the build of BaseModel {name} waits{more}")
    if build.state == "Failed":
        return Problem(Reason.BUILD_FAILED, f"the build of BaseModel {name} has failed: {build.progress or ''}")
    return Problem(Reason.BUILD_RUNNING, f"BaseModel {name} is being built: step {build.step}")


def built_volume_name_taken(serving: Serving) -> Problem | None:
    """Pools of what is built onto a claim have a volume of this name."""
    taken = [v for v in serving.artifact_volumes if v.name == BUILT_VOLUME]
    if len(taken) > 1:
        words = f"serving.artifactVolumes may not have the name {BUILT_VOLUME}: it is that of what was built"
        return Problem(Reason.INVALID_SPEC, words)
    return None


def built_for_another_engine(base: BaseModelResource, serving: Serving) -> Problem | None:
    """What the last step makes decides which engines can serve it."""
    build, engine = base.spec.source.build, serving.engine
    if build is None:
        return None
    made: engines.Weights = "gguf" if build.steps[-1].gguf is not None else "safetensors"
    name = base.metadata.name
    if made in engines.ENGINES[engine].weights:
        return None
    if made == "gguf":
        words = f"BaseModel {name} is built as GGUF, which {engine} does not read: set serving.engine to one that does"
        return Problem(Reason.INVALID_SPEC, f"{words}, or create one without the gguf step")
    words = f"BaseModel {name} is built as safetensors, which {engine} does not read: create one with a gguf step"
    return Problem(Reason.INVALID_SPEC, words)


def base_volume_not_declared(base: BaseModelResource, serving: Serving) -> Problem | None:
    """The base's files must be on a volume that the pods have, and some source must be given at all."""
    source = base.spec.source
    volume = source.volume
    if not source.is_known:
        return Problem(Reason.INVALID_SPEC, "spec.source names no source that this version knows")
    if volume is None or serving.declares(volume.name):
        return None
    declared = ", ".join(v.name for v in serving.artifact_volumes) or "none"
    return Problem(
        Reason.VOLUME_NOT_DECLARED,
        f"source.volume {volume.name} is not in serving.artifactVolumes of the pool (declared: {declared})",
    )


def unsafe_source_path(base: BaseModelResource) -> Problem | None:
    """A source stays on its volume."""
    volume = base.spec.source.volume
    if volume and (volume.path.startswith("/") or ".." in volume.path.split("/")):
        return Problem(Reason.UNSAFE_PATH, f"source.volume.path {volume.path} leaves the volume")
    return None


def is_under(path: str, prefix: str) -> bool:
    """Whether an absolute path is the prefix or lies below it; with `..` in either, nothing is under anything."""
    if any(not p.startswith("/") or ".." in p.split("/") for p in (path, prefix)):
        return False
    inner, outer = (posixpath.normpath("/" + p.lstrip("/")) for p in (path, prefix))
    return outer in ("/", inner) or inner.startswith(outer + "/")


def host_path_not_allowed(serving: Serving, settings: Settings) -> Problem | None:
    """Without an allowed prefix, who may create a BaseModel could read any file of the node.

    A cache's folder holds one of each namespace's, so nobody may look into it from above or from the side.
    """
    prefixes, caches = settings.allowed_host_path_prefixes, settings.allowed_cache_host_paths
    for volume in serving.artifact_volumes:
        path = volume.host_path.path if volume.host_path else None
        if path is None:
            continue
        what = f"artifact volume {volume.name}: host path {path}"
        if not any(is_under(path, prefix) for prefix in prefixes):
            return _not_allowed(f"{what} is not under an allowed prefix", prefixes)
        shared = next((c for c in caches if is_under(path, c) or is_under(c, path)), None)
        if shared is not None:
            return _not_allowed(f"{what} would show {shared}, where every namespace has its cache", prefixes)
    compiled = serving.compile_cache.host_path if serving.compile_cache else None
    for field, folder in (("cache", serving.cache.host_path), ("compileCache", compiled)):
        if folder is not None and not any(is_under(folder.path, c) and is_under(c, folder.path) for c in caches):
            words = f"serving.{field}: host path {folder.path} is not one of the allowed folders"
            return _not_allowed(words, caches)
    return None


def _not_allowed(words: str, allowed: Sequence[str]) -> Problem:
    return Problem(Reason.HOST_PATH_NOT_ALLOWED, f"{words} (allowed: {', '.join(allowed) or 'none'})")


def is_label_value(text: str) -> bool:
    """Whether the API server takes it as the value of a label."""
    return _LABEL_VALUE.fullmatch(text) is not None


def malformed_quantities(serving: Serving) -> Problem | None:
    """The API server would refuse the whole Deployment for one bad quantity."""
    given: dict[str, str | int] = {
        f"resources.{kind}.{resource}": quantity
        for kind in ("limits", "requests")
        for resource, quantity in (getattr(serving.resources, kind) or {}).items()
    }
    if serving.cache.size_limit is not None:
        given["cache.sizeLimit"] = serving.cache.size_limit
    if serving.settings.gpu_memory is not None:
        given["gpuMemory"] = serving.settings.gpu_memory
    for field, quantity in given.items():
        if not is_quantity(str(quantity)):
            words = f"serving.{field}: {quantity!r} is not a quantity such as 2, 500m or 16Gi"
            return Problem(Reason.INVALID_SPEC, words)
    return None


def malformed_node_selector(serving: Serving) -> Problem | None:
    """Node selectors are labels."""
    for key, value in serving.node_selector.items():
        if not is_label_value(value):
            return Problem(Reason.INVALID_SPEC, f"serving.nodeSelector.{key}: {value!r} is not a label value")
    return None


def malformed_prewarm_selector(serving: Serving) -> Problem | None:
    """Keys too: for one bad label, the API server would refuse the whole DaemonSet in every pass."""
    prewarm = serving.cache.prewarm
    for key, value in ((prewarm.node_selector if prewarm else None) or serving.node_selector).items():
        if not _LABEL_KEY.fullmatch(key) or not is_label_value(value):
            words = f"serving.cache.prewarm.nodeSelector: {key}={value} is not a label"
            return Problem(Reason.INVALID_SPEC, words)
    return None


def reserved_argument(serving: Serving) -> Problem | None:
    """Engines read --api_key like --api-key, which the rule in the CRD does not see."""
    reserved = (*RESERVED_ARGUMENTS, *_RESERVED.get(serving.engine, ()))
    for argument in serving.extra_args:
        # also --speculative-config.method, as vLLM reads a part of an argument that is JSON
        flag = re.split(r"[=.]", argument, maxsplit=1)[0].replace("_", "-")
        flag = f"--{flag[5:]}" if flag.startswith("--no-") else flag
        # and engines take the begin of a name for the whole
        short = flag.startswith("--") and any(known.startswith(flag) for known in reserved)
        if short or flag in reserved:
            return Problem(Reason.INVALID_SPEC, f"serving.extraArgs may not set {flag}: Tuneyard sets that itself")
    return None


def nodes_do_not_fit(serving: Serving) -> Problem | None:
    """What the engine would end with on every pod of a replica that spans nodes."""
    nodes, ranks = serving.nodes_per_replica, serving.tensor_parallel_size * serving.pipeline_parallel_size
    if nodes == 1:
        return None
    if serving.data_parallel_size > 1:
        words = "serving.dataParallelSize does not go with nodesPerReplica: raise serving.replicas in its place"
        return Problem(Reason.INVALID_SPEC, words)
    if ranks % nodes:
        words = f"serving.nodesPerReplica {nodes} does not divide tensorParallelSize x pipelineParallelSize, {ranks}"
        return Problem(Reason.INVALID_SPEC, words)
    if serving.scales_outside:
        words = "serving.autoscaling.external does not go with nodesPerReplica: leave external out"
        return Problem(Reason.INVALID_SPEC, words)
    if any(a.split("=", 1)[0].replace("_", "-") == EXECUTOR for a in serving.extra_args):
        words = f"serving.extraArgs may not set {EXECUTOR} where a replica spans nodes: Tuneyard sets that itself"
        return Problem(Reason.INVALID_SPEC, words)
    return None


def more_ranks_than_gpus(serving: Serving) -> Problem | None:
    """Each rank takes a GPU of its own: the engine would end, after the pod has read the whole base.

    Limits without these GPUs are not judged: a CPU build has none, other devices are counted by their own rules.
    """
    gpus = whole((serving.resources.limits or {}).get(GPU, 0)) or 0
    needed = serving.ranks_per_pod
    if not engines.ENGINES[serving.engine].parallel or not 0 < gpus < needed:
        return None
    each = " on each node" if serving.nodes_per_replica > 1 else ""
    words = (
        f"serving.resources.limits has {GPU}: {gpus}, and tensorParallelSize x pipelineParallelSize x dataParallelSize "
        f"needs {needed}{each}: set it to {needed}, or lower these"
    )
    return Problem(Reason.INVALID_SPEC, words)


def leader_worker_set_missing(serving: Serving, settings: Settings, *, served: bool) -> Problem | None:
    """Nobody would make the pods of a replica that spans nodes. `served`: whether the API server knows the kind."""
    if serving.nodes_per_replica == 1 or served:
        return None
    how = (
        "install the LeaderWorkerSet controller in the cluster"
        if settings.leader_worker_sets
        else "install the LeaderWorkerSet controller and set leaderWorkerSets.enabled in the chart"
    )
    words = f"serving.nodesPerReplica {serving.nodes_per_replica}: {how} (docs/howto/multi-node.md)"
    return Problem(Reason.LEADER_WORKER_SET_MISSING, words)


def targets_not_measured(serving: Serving) -> Problem | None:
    """Targets about numbers that the engine does not tell as vLLM does: the pool would not grow by them, nor shrink."""
    if serving.autoscaling is None or serving.engine in ("vllm", "custom"):
        return None
    given = targets_of(serving.autoscaling.targets)
    for metric in (Metric.WAITING, Metric.KV_CACHE, Metric.TOKENS):
        if metric in given:
            words = f"engine {serving.engine} does not tell what serving.autoscaling.targets.{metric.value} goes by"
            return Problem(Reason.ENGINE_UNSUITABLE, f"{words}: use inFlightRequests or ttft")
    return None


def draft_not_on_a_volume(serving: Serving) -> Problem | None:
    """The files of a draft model must be on a volume that the pods have, and stay on it."""
    draft = serving.settings.speculative.draft if serving.settings.speculative else None
    if draft is None:
        return None
    if not serving.declares(draft.volume):
        declared = ", ".join(v.name for v in serving.artifact_volumes) or "none"
        words = (
            f"serving.speculative.draft names volume {draft.volume}, which is not in serving.artifactVolumes of the "
        )
        return Problem(Reason.VOLUME_NOT_DECLARED, f"{words}pool (declared: {declared})")
    if draft.path.startswith("/") or ".." in draft.path.split("/"):
        return Problem(Reason.UNSAFE_PATH, f"serving.speculative.draft.path {draft.path} leaves the volume")
    return None


def engine_not_described(serving: Serving) -> Problem | None:
    """A custom engine is what the block says; other engines without an image of Tuneyard's need one named."""
    if serving.engine == "custom" and serving.custom is None:
        return Problem(Reason.INVALID_SPEC, "serving.engine custom needs serving.custom, which says how it is run")
    if serving.engine != "custom" and serving.custom is not None:
        words = f"serving.custom describes the engine custom, this pool's is {serving.engine}: remove it"
        return Problem(Reason.INVALID_SPEC, f"{words}, {_INHERITED}")
    if engines.ENGINES[serving.engine].own_image and not serving.image:
        return Problem(Reason.INVALID_SPEC, f"serving.image must name the image of engine {serving.engine}")
    return None


def engine_cannot(serving: Serving) -> Problem | None:
    """A field that the engine would leave out without a word."""
    row = engines.capabilities(serving.engine, serving.custom)
    if serving.tensor_parallel_size > 1 and not row.parallel:
        instead = engines.listed(engines.having("parallel"))
        return _unsuitable(serving, f"does not take tensorParallelSize {serving.tensor_parallel_size}", instead)
    if serving.nodes_per_replica > 1 and serving.engine != "vllm":
        return _unsuitable(serving, f"does not take nodesPerReplica {serving.nodes_per_replica}", "vllm")
    if serving.max_model_len is not None and not row.context:
        return Problem(
            Reason.ENGINE_UNSUITABLE,
            f"how engine {serving.engine} is told maxModelLen is not known: write it into serving.custom.args",
        )
    if serving.extra_args and serving.engine == "ollama":
        words = "engine ollama takes no arguments: write its OLLAMA_... variables into serving.env, not extraArgs"
        return Problem(Reason.ENGINE_UNSUITABLE, words)
    return None


def _unsuitable(serving: Serving, what: str, instead: str) -> Problem:
    return Problem(Reason.ENGINE_UNSUITABLE, f"engine {serving.engine} {what}: use {instead}")
