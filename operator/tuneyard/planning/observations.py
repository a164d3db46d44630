"""What plans are made from: values, read by the runtime in one go, and pure readers of pods and children as JSON.

Rules:
- an observation may be stale or incomplete; a plan only ever asks for what its observation justifies, and the next
  one corrects it;
- an observation may hold more objects than the plan needs (the whole namespace, all deployments): plans select;
- a pod's report and its containers' messages are input from tenants' pods: what cannot be read counts as not said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import AppliedReport, BaseReport, KeepReport, PodReport, plan_text
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.reasons import Reason, reason_of
from tuneyard.planning.answers import AnswersView
from tuneyard.planning.buildobservations import BuildObservation
from tuneyard.planning.demand import DemandView
from tuneyard.planning.gateobservations import GateObservation
from tuneyard.planning.ownership import owned_fields
from tuneyard.planning.plan import Redacted
from tuneyard.planning.promqueries import Evaluations
from tuneyard.planning.settings import Settings

if TYPE_CHECKING:
    from tuneyard.planning.podcertificates import PoolCertificate

VERIFY, FRONT, AGENT, ENGINE = "verify", "front", "agent", "engine"
"""The containers of a model pod."""
HOLD = "hold"
"""In a pod without an agent: what keeps its base in the cache."""
KEEP = "keep"
"""The container, after `verify`, of a pod that keeps a node's cache."""
RECORD_KEY = "record.json"
"""In the ConfigMap that outlives a ModelDeployment."""
WORKER = "worker"
"""Value of the label app.kubernetes.io/component of pods with ranks of a replica, and no front."""
PREWARM = "prewarm"
"""Value of the label app.kubernetes.io/component of these pods."""

_TEMPLATE_LABELS = (
    "pod-template-hash",
    "leaderworkerset.sigs.k8s.io/template-revision-hash",
    "controller-revision-hash",
)
"""Of Deployments, LeaderWorkerSets and DaemonSets; a StatefulSet that makes leaders has a hash of its own, which comes
last."""
_PULL_FAILURES = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
_CREATE_FAILURES = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_MESSAGE_LIMIT = 600
_CRASHES_THAT_COUNT = 2


@dataclass(frozen=True)
class Problem:
    """Why something does not come up: a reason and words for people."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class PodObservation:
    """One model pod, or one that keeps a node's cache: that is in no pool."""

    name: str
    uid: str
    namespace: str
    pool: str
    base_model: str = ""
    created: str = ""
    template: str = ""
    """Which template of its Deployment or DaemonSet it was made from."""
    wanted_as: str = ""
    """Annotation tuneyard.dev/template-hash: which template the operator wanted when it was made."""
    worker_of: str = ""
    """Label tuneyard.dev/worker-of: the pool of whose replicas it has ranks, and no front."""
    deleted: bool = False
    """It is leaving, or has ended for good (evicted, failed)."""
    misses: bool = False
    """A container cannot be made because something that it names (a Secret, a ConfigMap) is not there."""
    ready: bool = False
    node: str | None = None
    prewarms: bool = False
    """It keeps a node's cache and serves nothing."""
    report: PodReport | None = None
    kept: KeepReport | None = None
    base_report: BaseReport | None = None
    problem: Problem | None = None

    @property
    def hands_over(self) -> bool:
        """Whether it leaves and still serves (handover.py). A report outlives its pod's node: Kubernetes must agree."""
        return self.deleted and self.ready and self.report is not None and self.report.engine == "Ready"


@dataclass(frozen=True)
class ChildObservation:
    """One object that the operator made. Counts are those of a Deployment, or (nodes that should have a pod, and that
    have a ready one) of a DaemonSet; `plan` is that of a ConfigMap.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    pool: str = ""
    """Label tuneyard.dev/pool; empty for what a namespace's pools share."""
    base_model: str = ""
    """Label tuneyard.dev/base-model (see children.label_value)."""
    deployment: str = ""
    """Label tuneyard.dev/model-deployment, on what belongs to an own pool."""
    component: str = ""
    """Label app.kubernetes.io/component."""
    resource_version: str = ""
    content_hash: str | None = None
    owned: str | None = None
    """The fields that the operator owns; None: not known. See planning.ownership."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    plan: str | None = None
    """The JSON of a pool's plan, unpacked."""
    record: str | None = None
    """The JSON of a rollout's record."""
    deleted: bool = False
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    old_replicas: int = 0
    """Pods of an earlier template that are not leaving yet."""
    observed: bool = True
    """Its controller has seen the newest spec (status.observedGeneration); a LeaderWorkerSet's does not say."""
    problem: Problem | None = None


@dataclass(frozen=True)
class EngineKeys:
    """Derives the engine keys of pools from the master, which it never shows."""

    master: bytes = field(repr=False)

    def of(self, namespace: str, pool: str) -> Redacted:
        """The key of a pool's engines."""
        return Redacted(names.engine_key(self.master, namespace, pool))

    def certificate(self, namespace: str, pool: str, now: datetime) -> PoolCertificate:
        """What the pool's pods show to gateways."""
        # imported here: the command line reads observations, and issues nothing
        from tuneyard.planning.podcertificates import pool_certificate  # noqa: PLC0415

        return pool_certificate(self.master, namespace, pool, now)


@dataclass(frozen=True)
class BaseModelObservation:
    """A BaseModel and its namespace. `base` None: it does not exist (any more)."""

    base: BaseModelResource | None
    deployments: tuple[ModelDeploymentResource, ...]
    """Those of the namespace with a revision of the base, at least."""
    adapters: tuple[LoRAAdapterResource, ...]
    """Those of the namespace that are for the base, at least."""
    pods: tuple[PodObservation, ...]
    """Pods with the label tuneyard.dev/base-model = the base's name, of the namespace: also those that keep caches."""
    children: tuple[ChildObservation, ...]
    """The operator's own objects for the base, and those that all pools of the namespace share, at least."""
    siblings: tuple[BaseModelResource, ...]
    """All BaseModels of the namespace, this one included or not: they share what agents and gateways need there."""
    keys: EngineKeys
    settings: Settings
    now: datetime
    """UTC, aware."""
    credentials: frozenset[str] = frozenset()
    """Names of the Secrets that sources of the namespace's bases and their adapters name."""
    unreadable: tuple[str, ...] = ()
    """Names of the namespace's ModelDeployments that cannot be read, and so are missing above: while there are any,
    nothing is taken away for want of a reference."""
    demand: DemandView = field(default_factory=DemandView)
    has_leader_worker_sets: bool = False
    """Whether the API server knows them, and the operator may make them."""
    build: BuildObservation | None = None
    """None: nobody has looked, for there is nothing to build."""


@dataclass(frozen=True)
class PoolPlaces:
    """A pool that is referred to, and who of those that want a place in it has none; see pools.places."""

    name: str
    namespace: str
    copies: int
    """Pods that should have each adapter."""
    wanted: frozenset[str]
    """Adapters of the revisions that use it, whether they exist or not, without the idle ones."""
    refused: Mapping[str, Problem]
    """By adapter name."""
    grown: Mapping[str, int] = field(default_factory=dict)
    """Pods that should have an adapter, where that are more."""
    idle: frozenset[str] = frozenset()
    """Those that only idle ModelDeployments name, or revisions that need not be loaded."""


@dataclass(frozen=True)
class LoRAAdapterObservation:
    """A LoRAAdapter, its base and the pods that may have it."""

    adapter: LoRAAdapterResource | None
    base: BaseModelResource | None
    """The one that spec.baseModel names."""
    pools: tuple[PoolPlaces, ...]
    """All of the base that are referred to."""
    deployments: tuple[ModelDeploymentResource, ...]
    """Those with a revision that names it, of whatever base, at least."""
    pods: tuple[PodObservation, ...]
    """Model pods of the namespace, at least those of the base."""
    settings: Settings
    now: datetime
    parent: LoRAAdapterResource | None = None
    """The one that its lineage names as its parent, where there is one of that name."""


@dataclass(frozen=True)
class ModelDeploymentObservation:
    """A ModelDeployment, what its revisions refer to, and what gateways say they serve."""

    deployment: ModelDeploymentResource | None
    claims: tuple[ModelDeploymentResource, ...]
    """Deployments in the gateways' scope that claim the same model name, at least; this one included or not."""
    adapters: tuple[LoRAAdapterResource, ...]
    """Those that its revisions name, at least."""
    base_models: tuple[BaseModelResource, ...]
    """Those that its revisions name, at least."""
    pods: tuple[PodObservation, ...]
    """Model pods of these bases, at least."""
    applied: tuple[AppliedReport, ...]
    """The newest report of each gateway that answers."""
    gateways_expected: int
    """How many gateway pods there are that take traffic."""
    unreachable: tuple[str, ...]
    """Names of gateways that did not answer."""
    settings: Settings
    now: datetime
    record: ChildObservation | None = None
    """The ConfigMap that outlives it."""
    gates: GateObservation | None = None
    """None: nobody has looked."""
    demand: DemandView = field(default_factory=DemandView)
    answers: AnswersView = field(default_factory=AnswersView)
    evidence: ChildObservation | None = None
    """The ConfigMap with the evidence on its candidate."""
    checks: Evaluations = field(default_factory=dict)


def _condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or [] if c.get("type") == type_), {})


def _kept_problem(kept: KeepReport | None) -> Problem | None:
    if kept is None or kept.reason is None:
        return None
    reason = reason_of(kept.reason) or Reason.ARTIFACT_UNREADABLE
    return Problem(reason, (kept.message or reason.doc)[:_MESSAGE_LIMIT])


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """States of all containers, in the order in which they start."""
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _base_report(status: Mapping[str, Any]) -> BaseReport | None:
    """The newest termination message of `verify`; while it runs again, that of the run before."""
    verify: Mapping[str, Any] = next(
        (c for c in status.get("initContainerStatuses") or [] if c.get("name") == VERIFY), {}
    )
    for state in (verify.get("state") or {}, verify.get("lastState") or {}):
        ended = state.get("terminated") or {}
        report = parsed(BaseReport, ended.get("message"))
        if report is not None:
            return report
    return None


def _waiting(container: Mapping[str, Any]) -> Mapping[str, Any]:
    return (container.get("state") or {}).get("waiting") or {}


def _waiting_problem(container: Mapping[str, Any]) -> Problem | None:
    """Image that cannot be pulled, or container that cannot be created."""
    waiting = _waiting(container)
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")[:_MESSAGE_LIMIT]
    if reason in _PULL_FAILURES:
        image = container.get("image") or "?"
        return Problem(Reason.IMAGE_PULL_FAILED, f"image {image} of {container.get('name')}: {message or reason}")
    if reason in _CREATE_FAILURES:
        return Problem(Reason.ENGINE_CRASHED, f"{container.get('name')} cannot start: {reason}: {message}")
    return None


def _crash_problem(container: Mapping[str, Any]) -> Problem | None:
    """A container that keeps ending; one restart alone is not a problem worth a condition."""
    if container.get("ready"):
        return None
    state, last = container.get("state") or {}, container.get("lastState") or {}
    looping = _waiting(container).get("reason") == "CrashLoopBackOff"
    restarts = int(container.get("restartCount") or 0)
    if not looping and restarts < _CRASHES_THAT_COUNT:
        return None
    ended = state.get("terminated") or last.get("terminated") or {}
    words = [f"{container.get('name')} ended with exit code {ended.get('exitCode', '?')}"]
    words += [f"({ended['reason']})"] if ended.get("reason") not in (None, "Error", "Completed") else []
    words += [f"after {restarts} restarts"]
    message = str(ended.get("message") or "").strip()[-_MESSAGE_LIMIT:]
    return Problem(Reason.ENGINE_CRASHED, " ".join(words) + (f": {message}" if message else ""))


def _pod_problem(status: Mapping[str, Any], base_report: BaseReport | None) -> Problem | None:
    if base_report is not None and not base_report.ok:
        reason = reason_of(base_report.reason or "") or Reason.ARTIFACT_UNREADABLE
        return Problem(reason, base_report.message or reason.doc)
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") in ("Unschedulable", "SchedulerError"):
        return Problem(Reason.UNSCHEDULABLE, str(scheduled.get("message") or "")[:_MESSAGE_LIMIT])
    for look in (_waiting_problem, _crash_problem):
        for container in _containers(status):
            problem = look(container)
            if problem is not None:
                return problem
    return None


def pod_observation(pod: Mapping[str, Any]) -> PodObservation:
    """Read a pod as the API server returns it (JSON, camelCase)."""
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    base_report = _base_report(status)
    prewarms = labels.get(names.LABEL_COMPONENT) == PREWARM
    kept = parsed(KeepReport, annotations.get(names.ANNOTATION_ADAPTERS)) if prewarms else None
    return PodObservation(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        namespace=metadata.get("namespace", "default"),
        pool=labels.get(names.LABEL_POOL, ""),
        base_model=labels.get(names.LABEL_BASE_MODEL, ""),
        created=metadata.get("creationTimestamp") or "",
        template=next((found for label in _TEMPLATE_LABELS if (found := labels.get(label))), ""),
        worker_of=labels.get(names.LABEL_WORKER_OF, ""),
        wanted_as=annotations.get(names.ANNOTATION_TEMPLATE, ""),
        deleted=bool(metadata.get("deletionTimestamp")) or status.get("phase") in ("Failed", "Succeeded"),
        misses=any(_waiting(c).get("reason") == "CreateContainerConfigError" for c in _containers(status)),
        ready=_condition(status, "Ready").get("status") == "True",
        node=(pod.get("spec") or {}).get("nodeName"),
        prewarms=prewarms,
        report=parsed(PodReport, annotations.get(names.ANNOTATION_ADAPTERS)),
        kept=kept,
        base_report=base_report,
        problem=_pod_problem(status, base_report) or _kept_problem(kept),
    )


def serves(pod: PodObservation) -> bool:
    """Whether the pod can answer with the base."""
    return not pod.deleted and pod.report is not None and pod.report.engine == "Ready"


def problem_of(pods: Iterable[PodObservation]) -> Problem | None:
    """The problem of a pod of the newest template of its pool, which it names; others are being replaced anyway."""
    ordered = sorted(pods, key=lambda p: (p.created, p.name))
    newest = {p.pool: p.template for p in ordered}
    sick = ((p.name, p.problem) for p in ordered if p.problem and p.template == newest[p.pool])
    return next((Problem(problem.reason, f"pod {name}: {problem.message}") for name, problem in sick), None)


def _replica_failure(status: Mapping[str, Any]) -> Problem | None:
    """Pods that the API server refuses to create: a quota, or the namespace's pod security level."""
    failure = _condition(status, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    return Problem(Reason.UNSCHEDULABLE, f"pods cannot be created: {str(failure.get('message'))[:_MESSAGE_LIMIT]}")


def _plan_text(config_map: Mapping[str, Any]) -> str | None:
    """A plan that somebody has spoilt counts as none: then it is made anew."""
    try:
        return plan_text(config_map)
    except ValueError:
        return None


def child_observation(obj: Mapping[str, Any]) -> ChildObservation:
    """Read an object of the operator's own as the API server returns it (JSON, camelCase, with apiVersion and kind)."""
    metadata, status, spec = obj.get("metadata") or {}, obj.get("status") or {}, obj.get("spec") or {}
    annotations = dict(metadata.get("annotations") or {})
    labels = metadata.get("labels") or {}
    kind = str(obj["kind"])
    return ChildObservation(
        api_version=str(obj["apiVersion"]),
        kind=kind,
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        pool=labels.get(names.LABEL_POOL, ""),
        base_model=labels.get(names.LABEL_BASE_MODEL, ""),
        deployment=labels.get(names.LABEL_DEPLOYMENT, ""),
        component=labels.get(names.LABEL_COMPONENT, ""),
        resource_version=metadata.get("resourceVersion") or "",
        content_hash=annotations.get(names.ANNOTATION_CONTENT),
        owned=owned_fields(metadata),
        annotations=annotations,
        plan=_plan_text(obj) if kind == "ConfigMap" else None,
        record=(obj.get("data") or {}).get(RECORD_KEY) if kind == "ConfigMap" else None,
        deleted=bool(metadata.get("deletionTimestamp")),
        replicas=int((status.get("desiredNumberScheduled") if kind == "DaemonSet" else spec.get("replicas")) or 0),
        ready_replicas=int(status.get("readyReplicas") or status.get("numberReady") or 0),
        updated_replicas=int(status.get("updatedReplicas") or 0),
        old_replicas=max(0, int(status.get("replicas") or 0) - int(status.get("updatedReplicas") or 0)),
        observed=kind == "LeaderWorkerSet"
        or int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 0),
        problem=_replica_failure(status) if kind == "Deployment" else None,
    )
