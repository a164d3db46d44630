"""Every reason that a condition, an event or a pod report may carry, each with the line the reference prints.

A reason is the name of the violated (or established) fact. docs/reference/reasons.md is generated from this file.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """A machine-readable reason; `doc` is its line of documentation."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Reason:
        """Give the member its text value and its line of documentation."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    # established facts
    READY = ("Ready", "Everything that was asked for is there.")
    RECONCILING = ("Reconciling", "Work is under way; no action is needed.")
    RESOLVED = ("Resolved", "The artifact's digest is known and pinned.")
    AVAILABLE = ("Available", "At least one pod serves.")
    ACCEPTED = ("Accepted", "The object is valid and its references exist.")
    COMPATIBLE = ("Compatible", "The adapter's files fit its base model and the pool's limits.")
    LOADED = ("Loaded", "Every pod that should have the adapter has proven that it answers.")
    APPLIED = ("Applied", "Every gateway serves these weights.")
    NOT_USED = ("NotUsed", "No ModelDeployment refers to the object, so nothing runs for it.")
    IDLE = (
        "Idle",
        "Nobody has asked for it for serving.lora.idleTimeout or scaleToZeroAfter, or its pool is full: the next request "
        "loads it.",
    )
    ASLEEP = (
        "Asleep",
        "Nobody has asked for the pool for serving.scaleToZeroAfter, so it has no pods: the next request starts them.",
    )

    # still going on
    RESOLVING = ("Resolving", "The first pod is reading the artifact and computing its digest.")
    FETCHING = ("Fetching", "Files are coming over the network.")
    LOADING = ("Loading", "Pods are fetching, checking or loading the adapter.")
    STARTING = ("Starting", "Pods are starting; large models take minutes.")
    APPLYING = ("Applying", "Not every gateway serves these weights yet.")
    DRAINING = ("Draining", "The pod is leaving and takes no new requests.")

    # references and names
    BASE_MODEL_NOT_FOUND = (
        "BaseModelNotFound",
        "The BaseModel that is named does not exist in this namespace.",
    )
    ADAPTER_NOT_FOUND = ("AdapterNotFound", "The LoRAAdapter that is named does not exist in this namespace.")
    BASE_MODEL_MISMATCH = (
        "BaseModelMismatch",
        "The adapter belongs to another base model than the revision.",
    )
    PARENT_IS_ADAPTER = (
        "ParentIsAdapter",
        "A warning: lineage.parent is a LoRAAdapter, so it was not trained from the base model.",
    )
    MODEL_NAME_TAKEN = ("ModelNameTaken", "An older ModelDeployment already serves this model name.")
    VOLUME_NOT_DECLARED = (
        "VolumeNotDeclared",
        "The source names a volume that serving.artifactVolumes of the pool does not declare.",
    )
    ADAPTERS_NOT_SHARED = (
        "AdaptersNotShared",
        "The pool's replicas span nodes, and no claim that all of these mount holds their adapters.",
    )
    LEADER_WORKER_SET_MISSING = (
        "LeaderWorkerSetMissing",
        "The pool's replicas span nodes, and LeaderWorkerSets, which make groups of pods, are not installed or not "
        "enabled in the chart.",
    )
    HOST_PATH_NOT_ALLOWED = (
        "HostPathNotAllowed",
        "The host path is not under a prefix that the chart allows.",
    )
    INVALID_SPEC = ("InvalidSpec", "The object cannot be read; the message names the field.")

    # builds
    BUILT = ("Built", "The base is built; its result is pinned.")
    BUILD_PENDING = (
        "BuildPending",
        "The build waits: for the build of an input, for its pod to start, or to be tried again.",
    )
    BUILD_RUNNING = ("BuildRunning", "A Job makes the base; no pool starts before it is done.")
    BUILD_FAILED = ("BuildFailed", "The build's attempts have failed; the message is the last one's.")
    BUILD_INPUT_MISSING = (
        "BuildInputMissing",
        "A base, an adapter or calibration data that a step names is not there, or nobody knows its digest.",
    )
    BUILD_STARTED = ("BuildStarted", "An attempt of a build has started.")
    BUILD_SUCCEEDED = ("BuildSucceeded", "A build is done: its output and its digest are named.")

    # pods
    UNSCHEDULABLE = ("Unschedulable", "No node can take the pod, for example too few GPUs on any node.")
    IMAGE_PULL_FAILED = ("ImagePullFailed", "The engine's image cannot be pulled.")
    ENGINE_CRASHED = ("EngineCrashed", "The engine's container keeps ending.")
    NO_READY_ENDPOINT = ("NoReadyEndpoint", "No pod serves this revision.")
    TENSOR_PARALLEL_MISMATCH = (
        "TensorParallelMismatch",
        "tensorParallelSize does not divide the model's attention heads.",
    )
    GPU_MEMORY_TOO_SMALL = (
        "GPUMemoryTooSmall",
        "The base, its adapters and the KV cache of one request do not fit into a GPU's memory; the numbers are named.",
    )
    UNSUPPORTED_SETTING = (
        "UnsupportedSetting",
        "The engine's version or build does not have a value of `serving`, or not together with another one.",
    )
    UNKNOWN_ENGINE_VERSION = (
        "UnknownEngineVersion",
        "A warning: nothing is known of the engine's version or build, so its settings go to it unchecked.",
    )

    # artifacts
    ARTIFACT_NOT_FOUND = ("ArtifactNotFound", "The path does not exist or holds no files.")
    FILES_MISSING = ("FilesMissing", "A file that every artifact of this kind has is missing.")
    ARTIFACT_UNREADABLE = (
        "ArtifactUnreadable",
        "The agent is not allowed to read the files, or reading failed.",
    )
    DIGEST_MISMATCH = (
        "DigestMismatch",
        "The bytes are not the ones that were pinned; both digests are named.",
    )
    ACCESS_DENIED = (
        "AccessDenied",
        "The source refused the identity that is named; the Secret or its rights are wrong.",
    )
    CREDENTIALS_MISSING = (
        "CredentialsMissing",
        "The Secret that the source, or an external revision, names does not exist, lacks a key, or may not be read.",
    )
    SOURCE_UNREACHABLE = (
        "SourceUnreachable",
        "The source does not answer, broke off, or delivers too slowly; it is tried again.",
    )
    DISK_FULL = (
        "DiskFull",
        "The cache, or the pod's disk, has no room for the artifact; needed and free bytes are named.",
    )
    CACHE_UNUSABLE = (
        "CacheUnusable",
        "The cache's volume cannot be written, has no file locks, or holds files of a newer version.",
    )
    UNSAFE_PATH = ("UnsafePath", "A file is a link out of the artifact, or not a regular file.")

    # the checks of an adapter's files (engines.md): each keeps it away from every engine
    INVALID_CONFIG = ("InvalidConfig", "adapter_config.json is not JSON or lacks a field that LoRA needs.")
    UNSUPPORTED_ADAPTER = (
        "UnsupportedAdapter",
        "The adapter is not plain LoRA (DoRA, bias, IA3, saved modules).",
    )
    RANK_TOO_HIGH = ("RankTooHigh", "The adapter's rank is over serving.lora.maxRank of the pool.")
    ALPHA_ZERO = ("AlphaZero", "lora_alpha is 0, which would silently answer like the base model.")
    NOT_SAFETENSORS = ("NotSafetensors", "Weights must be one safetensors file; pickles are never read.")
    CORRUPT_WEIGHTS = (
        "CorruptWeights",
        "The safetensors file is truncated or its header does not fit its bytes.",
    )
    UNEXPECTED_TENSOR = (
        "UnexpectedTensor",
        "A tensor is not a LoRA pair of a layer that the base model has.",
    )
    SHAPE_MISMATCH = ("ShapeMismatch", "A tensor's shape fits neither the rank nor the base model.")
    UNSUPPORTED_DTYPE = ("UnsupportedDtype", "Weights must be float32, float16 or bfloat16.")
    NON_FINITE_VALUES = (
        "NonFiniteValues",
        "A weight is NaN or infinite, which would silence its neighbours.",
    )

    # the engine
    ENGINE_NOT_READY = ("EngineNotReady", "The engine is not healthy yet or again.")
    LOAD_REFUSED = ("LoadRefused", "The engine refused to load the adapter; the message is the engine's.")
    CANNOT_GENERATE = (
        "CannotGenerate",
        "The adapter loaded but the engine could not produce a token with it.",
    )
    ANSWERS_LIKE_BASE = ("AnswersLikeBase", "A warning: the adapter's probe answer equals the base model's.")
    NAMES_ANOTHER_BASE = (
        "NamesAnotherBase",
        "A warning: base_model_name_or_path in adapter_config.json is another repository than the base model's.",
    )
    ADAPTERS_NOT_SERVED = (
        "AdaptersNotServed",
        "The pool's engine serves its base alone: another engine, another pool or a merged base serves the adapter.",
    )
    ENGINE_UNSUITABLE = (
        "EngineUnsuitable",
        "The engine cannot do what the serving block or the base's format asks of it; the message says which can.",
    )
    POOL_FULL = ("PoolFull", "More adapters are wanted than serving.lora.maxCpuLoras allows.")

    # traffic and its events
    WEIGHT_CHANGED = ("WeightChanged", "The weight that a revision really gets has changed.")
    PROGRESSING = ("Progressing", "The rollout has not allowed the whole spec weight yet.")
    CANDIDATE_REJECTED = (
        "CandidateRejected",
        "The revision has a verdict and gets no traffic until its contents change or it is retried.",
    )
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded",
        "The candidate had no ready pod for longer than spec.rollout.progressDeadline.",
    )
    ANALYSIS_FAILED = (
        "AnalysisFailed",
        "The candidate's answers are bad more often than stable's, and more often than is tolerated; or it refuses what "
        "stable answers, or clients leave it more often; or a check of Prometheus was out of bounds too often in a row.",
    )
    REHEARSAL_OVER = (
        "RehearsalOver",
        "A rehearsal of `tuneyard drill` was left behind: its candidate gets no traffic any more, and the object is to be "
        "deleted.",
    )
    INCONCLUSIVE = (
        "Inconclusive",
        "The step's hold is over, and too little is known of the candidate's answers to take the next one, or no "
        "objective can judge them.",
    )
    NO_TRAFFIC = (
        "NoTraffic",
        "The step's hold is over, and no answer of the candidate has ended for two minutes: silence proves nothing.",
    )
    METRICS_UNAVAILABLE = (
        "MetricsUnavailable",
        "Not every gateway tells what it has seen of answers, or a check of Prometheus has no number, so no step is taken "
        "and nothing is rejected for it.",
    )
    STABLE_BROKEN = (
        "StableBroken",
        "Stable itself breaks an objective while a candidate has traffic: it may be the candidate's doing.",
    )
    GATING = ("Gating", "The candidate gets no traffic before it has passed its gates.")
    GATE_FAILED = ("GateFailed", "The candidate did not keep a limit of a gate; the numbers are named.")
    GATE_CANNOT_RUN = (
        "GateCannotRun",
        "A gate could not measure: it holds the candidate, says nothing of it, and is tried again.",
    )
    ABORTED = ("Aborted", "Somebody ended the candidate's rollout by a command.")
    PAUSED = ("Paused", "No step is taken until the rollout is resumed.")
    BAKING = ("Baking", "The candidate has all traffic; stable stays the way back until bakeTime is over.")
    SPEC_WEIGHT_ZERO = ("SpecWeightZero", "The spec gives this revision no traffic.")
    AWAITING_REPLICAS = (
        "AwaitingReplicas",
        "The next step waits for pods: those of the candidate could not take its share (serving.autoscaling).",
    )
    STABLE_NOT_READY = (
        "StableNotReady",
        "The stable revision has no ready endpoint, so its share is not served.",
    )
    DRIFTING = (
        "Drifting",
        "Stable answers worse than in its first days; the numbers are named. No traffic is changed.",
    )
    STEADY = ("Steady", "Nothing that is watched of stable over days has become worse than is allowed.")
    DRIFT_UNMEASURED = (
        "DriftUnmeasured",
        "The evaluation of stable could not run: that says nothing of stable, and it is tried again.",
    )
    GATEWAY_UNREACHABLE = ("GatewayUnreachable", "A gateway did not say what it has applied.")

    # events
    ADAPTER_LOADED = ("AdapterLoaded", "A pod has loaded an adapter and proven that it answers.")
    ADAPTER_LOAD_FAILED = ("AdapterLoadFailed", "A pod could not load an adapter; it is tried again.")
    ADAPTER_SPREAD = ("AdapterSpread", "More pods get an adapter, because many requests to it are under way.")
    WOKEN = ("Woken", "Somebody asks for a pool that has slept: its pods start.")
    SCALED_UP = (
        "ScaledUp",
        "What is asked of a pool needs more replicas (serving.autoscaling); the numbers are named.",
    )
    SCALED_DOWN = ("ScaledDown", "Fewer replicas of a pool would have done for long enough (serving.autoscaling).")
    POOL_CREATED = ("PoolCreated", "The pods of a base model were asked for.")
    POOL_DELETED = ("PoolDeleted", "A pool that nothing refers to any more was removed.")
    DIGEST_PINNED = ("DigestPinned", "The first digest seen of an artifact was pinned.")
    STEP_COMPLETED = ("StepCompleted", "The candidate has held a step's weight for as long as the step says.")
    ROLLED_BACK = ("RolledBack", "A candidate was rejected; stable has its traffic.")
    DRIFT_ENDED = ("DriftEnded", "Stable answers as in its first days again, or another revision is stable.")
    COMMAND_ACCEPTED = ("CommandAccepted", "A command for the rollout was carried out.")
    COMMAND_REFUSED = ("CommandRefused", "A command for the rollout does not fit; nothing was done.")
    PROMOTED = ("Promoted", "A revision serves all traffic and is the stable one now.")


def reason_of(text: str) -> Reason | None:
    """The reason with that value, or None for a text that is none (a pod's report is input)."""
    try:
        return Reason(text)  # type: ignore[call-arg]
    except ValueError:
        return None
