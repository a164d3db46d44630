"""What is known of the gates of one ModelDeployment: its Jobs, what their pods left behind, and the kept results.

Rules:
- it is looked at only while gates are under way, or stable is evaluated (driftruns.py); None of it means that nobody
  has looked, not that there is nothing;
- what pods say is input from a tenant's namespace: what cannot be read counts as not said;
- a pod is a Job's by the uid of its owner. After a retry there may be another Job of the same name, and the pod of the
  first one, with its report, may still be there: what it says is not of this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneyard.api import names
from tuneyard.api.base import ApiModel, parsed
from tuneyard.api.gatereports import GateReport, GateReports
from tuneyard.planning.plan import Redacted

REPORTS_KEY = "reports.json"


class JobMark(ApiModel):
    """Whose a Job is: its annotation tuneyard.dev/gate."""

    gate: str
    key: str
    revision: str
    stable: str
    attempt: int
    drift: str | None = None
    """Of an evaluation of stable: what it is kept under (driftruns.py); None: the Job is of a candidate's gate."""
    began: str | None = None
    """Of such a one: when it was asked for, by the operator's clock."""


@dataclass(frozen=True)
class GateJob:
    """One Job and what its pod says."""

    name: str
    uid: str
    resource_version: str
    mark: JobMark | None
    created: str
    deleted: bool = False
    started: str | None = None
    ended: str | None = None
    """Why it ended without a report, in words; None: it goes on, or has one."""
    report: GateReport | None = None
    waits_for: str | None = None
    """Why its pod does not start, in words."""
    told: bool = False
    """Its pod has what it needs: the ConfigMap of its name is there, and was made for this Job."""


@dataclass(frozen=True)
class GateObservation:
    """All of one ModelDeployment."""

    jobs: tuple[GateJob, ...] = ()
    """Those of candidates."""
    drift: tuple[GateJob, ...] = ()
    """Those that evaluate stable."""
    reports: GateReports | None = None
    foreign: bool = False
    """The ConfigMap that should keep the reports is somebody else's: neither believed nor written."""
    token: Redacted = field(default=Redacted(""))


def looked_at(
    jobs: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    config_maps: Iterable[Mapping[str, Any]],
    *,
    reports: Mapping[str, Any] | None,
    token: Redacted,
) -> GateObservation:
    """Read the objects as the API server returns them. `config_maps`: those that tell Jobs what to do."""
    by_job: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        for uid in _owners(pod):
            by_job.setdefault(uid, []).append(pod)
    told = {uid for config_map in config_maps for uid in _owners(config_map)}
    labels = (reports["metadata"].get("labels") or {}) if reports is not None else {}
    foreign = reports is not None and labels.get(names.LABEL_COMPONENT) != names.GATE_REPORTS
    text = (reports.get("data") or {}).get(REPORTS_KEY) if reports is not None and not foreign else None
    found = [_job(j, by_job.get(j["metadata"].get("uid", ""), []), told) for j in jobs]
    of_stable = tuple(j for j in found if j.mark is not None and j.mark.drift is not None)
    return GateObservation(
        jobs=tuple(j for j in found if j not in of_stable),
        drift=of_stable,
        reports=parsed(GateReports, text),
        foreign=foreign,
        token=token,
    )


def _owners(item: Mapping[str, Any]) -> set[str]:
    references = (item.get("metadata") or {}).get("ownerReferences") or ()
    return {uid for reference in references if (uid := reference.get("uid"))}


def _job(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], told: set[str]) -> GateJob:
    metadata, status = job["metadata"], job.get("status") or {}
    found = [c for pod in pods for c in _container(pod)]
    reports = (parsed(GateReport, _terminated(c).get("message")) for c in found)
    report = next((r for r in reports if r is not None), None)
    return GateJob(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion") or "",
        mark=parsed(JobMark, (metadata.get("annotations") or {}).get(names.ANNOTATION_GATE)),
        created=metadata.get("creationTimestamp") or "",
        deleted=bool(metadata.get("deletionTimestamp")),
        started=next((s for c in found if (s := (_state(c, "running") or _terminated(c)).get("startedAt"))), None),
        ended=None if report is not None else _ended(status, found),
        report=report,
        waits_for=_waits_for(pods, found),
        told=metadata.get("uid") in told,
    )


def _container(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((pod.get("status") or {}).get("containerStatuses") or [])


def _state(container: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    return (container.get("state") or {}).get(which) or {}


def _terminated(container: Mapping[str, Any]) -> Mapping[str, Any]:
    return _state(container, "terminated")


def _ended(status: Mapping[str, Any], containers: Iterable[Mapping[str, Any]]) -> str | None:
    """Why a Job that is over left no report."""
    over: Mapping[str, Any] = next(
        (
            c
            for c in status.get("conditions") or ()
            if c.get("type") in ("Complete", "Failed") and c.get("status") == "True"
        ),
        {},
    )
    for container in containers:
        end = _terminated(container)
        if end:
            why = end.get("reason") or "Error"
            words = f"its pod ended without a report ({why}, exit code {end.get('exitCode', '?')})"
            message = str(end.get("message") or "").strip()[-300:]
            return f"{words}: {message}" if message else words
    if not over:
        return None
    return f"its Job ended without a report: {over.get('message') or over.get('reason') or 'no pod of it is left'}"


def _waits_for(pods: Iterable[Mapping[str, Any]], containers: Iterable[Mapping[str, Any]]) -> str | None:
    for container in containers:
        waiting = _state(container, "waiting")
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message') or ''}".rstrip(": ")[:300]
    for pod in pods:
        for condition in (pod.get("status") or {}).get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f"{condition.get('reason')}: {condition.get('message') or ''}".rstrip(": ")[:300]
    return None
