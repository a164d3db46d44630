"""What is known of the build of one BaseModel: its Jobs, what their pods say, and what its steps name.

Rules:
- it is looked at only until the build has succeeded; None of it means that nobody has looked;
- what pods say is input from a tenant's namespace: what cannot be read counts as not said, and a result counts only
  under the key that its Job is for;
- a pod is a Job's by the uid of its owner. Of several (one was evicted, the Job has made another) the newest counts;
  why Kubernetes ended those before it is told as long as they are there;
- why a pod could not be made stands in events of the Job only, which are not read: that there is none has to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneyard.api import names
from tuneyard.api.base import ApiModel, parsed
from tuneyard.api.buildtask import BuildReport, BuildResult
from tuneyard.api.loraadapter import LoRAAdapterResource

CONTAINER = "build"
_FINAL = 2
"""Exit code of a run whose task fails again whenever it is run."""
_WORDS = 600


class BuildMark(ApiModel):
    """Which attempt of which build a Job is: its annotation tuneyard.dev/build."""

    key: str
    attempt: int


@dataclass(frozen=True)
class BuildJob:
    """One Job and what its pod says."""

    name: str
    uid: str
    resource_version: str
    mark: BuildMark | None
    created: str = ""
    deleted: bool = False
    has_pod: bool = True
    """Whether there is a pod of it, in whatever state."""
    report: BuildReport | None = None
    result: BuildResult | None = None
    """What it came to, where its pod could say so."""
    ended: str | None = None
    """Why it is over without a result, in words; None: it goes on, or has one."""
    final: bool = False
    """Its task fails again whenever it is run."""
    waits_for: str | None = None
    """Why its pod does not start, in words."""
    runs: bool = False
    """Its container has started."""
    disrupted: str | None = None
    """That Kubernetes itself ended pods of it, and what it said of the last one."""


@dataclass(frozen=True)
class BuildObservation:
    """All of one BaseModel's build."""

    jobs: tuple[BuildJob, ...] = ()
    adapters: tuple[LoRAAdapterResource, ...] = ()
    """Those that its steps name."""
    calibrations: Mapping[tuple[str, str], str | None] = field(default_factory=dict)
    """Digest of the calibration data, by ConfigMap and key; None: it is not there."""


def looked_at(jobs: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> tuple[BuildJob, ...]:
    """Read Jobs and their pods as the API server returns them."""
    by_job: dict[str, list[Mapping[str, Any]]] = {}
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp") or "")):
        for owner in pod["metadata"].get("ownerReferences") or ():
            by_job.setdefault(str(owner.get("uid")), []).append(pod)
    return tuple(_job(j, by_job.get(j["metadata"].get("uid", ""), [])) for j in jobs)


def text_digest(text: str) -> str:
    """The digest of calibration data in a ConfigMap."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _job(job: Mapping[str, Any], pods: list[Mapping[str, Any]]) -> BuildJob:
    metadata = job["metadata"]
    mark = parsed(BuildMark, (metadata.get("annotations") or {}).get(names.ANNOTATION_BUILD))
    pod: Mapping[str, Any] = pods[-1] if pods else {}
    container: Mapping[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
    end = _state(container, "terminated")
    report = parsed(BuildReport, ((pod.get("metadata") or {}).get("annotations") or {}).get(names.ANNOTATION_ADAPTERS))
    result = _result(mark, parsed(BuildResult, end.get("message")), report)
    if _disruption(pod) and (result is None or result.error is not None):
        # its Job makes another pod, or none any more: what an evicted one says of itself is not why
        result, end = None, {}
    overdue = _overdue(job)
    over = _condition(job, "Complete", "Failed") or (overdue if end else {})
    if overdue and result is not None and result.error is not None:
        result = None  # it was told to end, and says no more than that
    disrupted = _disrupted(job, pods)
    ended = None if result is not None or not (over or end) else _ended(over, end, pod, disrupted)
    return BuildJob(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion") or "",
        mark=mark,
        created=metadata.get("creationTimestamp") or "",
        deleted=bool(metadata.get("deletionTimestamp")),
        has_pod=bool(pods),
        report=report,
        result=result if end or over else None,
        ended=ended,
        final=end.get("exitCode") == _FINAL,
        waits_for=_waits_for(pod, container),
        runs=bool(_state(container, "running")),
        disrupted=disrupted,
    )


def _result(mark: BuildMark | None, said: BuildResult | None, report: BuildReport | None) -> BuildResult | None:
    """The termination message's word counts; the annotation may have more to say of the same result."""
    if said is None or mark is None or said.key != mark.key:
        return None
    whole = report.result if report else None
    same = whole is not None and (whole.key, whole.digest, whole.error) == (said.key, said.digest, said.error)
    return whole if same and whole is not None else said


def _condition(item: Mapping[str, Any], *types: str) -> Mapping[str, Any]:
    found = ((item.get("status") or {}).get("conditions")) or ()
    return next((c for c in found if c.get("type") in types and c.get("status") == "True"), {})


def _overdue(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """The condition of a Job that took too long; its pod may still be ending."""
    found = _condition(job, "Failed", "FailureTarget")
    return found if found.get("reason") == "DeadlineExceeded" else {}


def _disruption(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The condition of a pod that Kubernetes itself ended (a drain, a node under pressure): its Job makes another."""
    return _condition(pod, "DisruptionTarget")


def _disrupted(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> str | None:
    """What is told of such pods: an evicted one stays and says why, a drained one is soon gone."""
    ended = [p for p in pods if _disruption(p)]
    if not ended:
        return None
    why = _disruption(ended[-1])
    words = (
        (ended[-1].get("status") or {}).get("message") or why.get("message") or why.get("reason") or "no reason given"
    )
    count = max(len(ended), int((job.get("status") or {}).get("failed") or 0))
    return f"Kubernetes ended {count} of its pods: {words}"[:_WORDS]


def _state(container: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    return (container.get("state") or {}).get(which) or {}


def _ended(over: Mapping[str, Any], end: Mapping[str, Any], pod: Mapping[str, Any], disrupted: str | None) -> str:
    """Why a run is over that left no result: the last line of its log, or what Kubernetes says."""
    if over.get("reason") == "DeadlineExceeded":
        return f"it took longer than build.timeout{f'; {disrupted}' if disrupted else ''}"
    if disrupted and not end and _disruption(pod):
        return disrupted
    if not pod and over.get("reason") == "BackoffLimitExceeded":
        return "Kubernetes ended its pods too often (a drain, an eviction), and none is left to say why"
    if end.get("reason") == "OOMKilled":
        return "it took more memory than build.resources allows (OOMKilled)"
    status = pod.get("status") or {}
    if status.get("reason") == "Evicted" and status.get("message"):
        # past a limit of its own (scratch.size): that is no disruption, and happens again
        return f"its pod was evicted: {status['message']}"[:_WORDS]
    lines = [line.strip() for line in str(end.get("message") or "").splitlines() if line.strip()]
    if end:
        code = end.get("exitCode", "?")
        return f"{lines[-1][-_WORDS:]} (exit code {code})" if lines else f"its pod ended with exit code {code}"
    words = over.get("message") or status.get("message") or over.get("reason") or "no pod of it is left"
    return f"its Job ended: {words}"[:_WORDS]


def _waits_for(pod: Mapping[str, Any], container: Mapping[str, Any]) -> str | None:
    waiting = _state(container, "waiting")
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return f"{waiting['reason']}: {waiting.get('message') or ''}".rstrip(": ")[:_WORDS]
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason')}: {condition.get('message') or ''}".rstrip(": ")[:_WORDS]
    return None
