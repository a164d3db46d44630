"""What `tuneyard status` shows, as values: Kubernetes objects in, views out. Pure; `now` is an argument.

Rules:
- it says what the API server says and computes no weight of its own: status and pods' own reports are the truth, also
  when they are old (`stale` tells when status is of an older spec);
- what a pod reports is input from a tenant's pod: what cannot be read counts as not said;
- ready means that Ready is True for the generation that is there; everything else is not ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.conditions import Condition, find
from tuneyard.api.documents import AdapterReport
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.cli.mirrorview import mirror_summary
from tuneyard.cli.rolloutview import rollout_view, summary
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.pools import pool_of
from tuneyard.planning.sizes import transfer_for_people
from tuneyard.planning.timestamps import parsed_time

EVENTS_SHOWN = 8


class EventView(ApiModel):
    """One event; `seconds_ago` None: it carries no time. `count`: how often it was told."""

    seconds_ago: int | None
    type: str
    reason: str
    about: str
    message: str
    count: int = 1


class RevisionView(ApiModel):
    """One revision and what it gets. Weights are percentages."""

    name: str
    base_model: str
    """Empty for an external one."""
    adapter: str | None = None
    external: str | None = None
    """The host that serves it, if no pods do."""
    external_model: str | None = None
    role: str = ""
    """stable, candidate or nothing."""
    spec_weight: int
    weight: int | None = None
    """None: status says nothing of it yet."""
    verified: bool = False
    ready_endpoints: int = 0
    withheld: str | None = None


class AdapterOnPodView(ApiModel):
    """What one pod says of one adapter."""

    adapter: str
    state: str
    """Loading, Loaded, Failed; where the pod has said nothing of it Waiting, or Idle while it is not wanted."""
    reason: str | None = None
    message: str | None = None
    progress: str | None = None
    """How far its files are, while they come over the network."""


class PodView(ApiModel):
    """One model pod. `problem` is why it does not come up."""

    name: str
    pool: str
    node: str | None = None
    state: str
    """Ready, Starting, Draining, Leaving, or the reason of its problem."""
    seconds_old: int | None = None
    problem: str | None = None
    adapters: list[AdapterOnPodView] = []


class DeploymentView(ApiModel):
    """One ModelDeployment."""

    namespace: str
    name: str
    model_name: str
    url: str | None = None
    ready: bool
    stale: bool = False
    """Status is of an older spec than the one that is there."""
    phase: str | None = None
    rollout: str | None = None
    """Where a candidate stands on its steps, in a line."""
    mirror: str | None = None
    """What is copied to whom, in a line."""
    reason: str | None = None
    seconds_old: int | None = None
    revisions: list[RevisionView]
    unserved: int = 0
    """Percent of requests that no revision takes."""
    pods: list[PodView] = []
    conditions: list[Condition] = []
    events: list[EventView] = []


class BaseModelView(ApiModel):
    """One BaseModel and its pools."""

    namespace: str
    name: str
    ready: bool
    reason: str | None = None
    engine: str | None = None
    tensor_parallel_size: int | None = None
    replicas: str | None = None
    progress: str | None = None
    prewarmed: str | None = None
    """Nodes whose cache holds what it should, of those chosen; none without serving.cache.prewarm."""
    prewarm_progress: str | None = None
    """How far the other nodes are, or what keeps them from it."""
    used_by: list[str] = []
    seconds_old: int | None = None
    pools: list[PoolView] = []


class PoolView(ApiModel):
    """One pool; `deployment` is the ModelDeployment whose own one it is, none for the shared one."""

    name: str
    deployment: str | None = None
    replicas: int
    ready_replicas: int
    progress: str | None = None


class AdapterView(ApiModel):
    """One LoRAAdapter."""

    namespace: str
    name: str
    ready: bool
    reason: str | None = None
    base_model: str
    loaded: str | None = None
    progress: str | None = None
    """How far pods are with fetching it, while they are."""
    rank: int | None = None
    size: str | None = None
    seconds_old: int | None = None


class Overview(ApiModel):
    """Everything in the namespaces that were asked for."""

    deployments: list[DeploymentView]
    base_models: list[BaseModelView]
    adapters: list[AdapterView]


@dataclass(frozen=True)
class Read:
    """What was read from the API server; events as raw objects."""

    deployments: Sequence[ModelDeploymentResource]
    base_models: Sequence[BaseModelResource] = ()
    adapters: Sequence[LoRAAdapterResource] = ()
    pods: Sequence[PodObservation] = ()
    events: Sequence[Mapping[str, Any]] = ()


def age(since: str | None, now: datetime) -> int | None:
    """Whole seconds since an RFC 3339 time, not below 0; None where there is none."""
    moment = parsed_time(since)
    return None if moment is None else max(0, int((now - moment).total_seconds()))


def _is_ready(conditions: Sequence[Condition], observed: int | None, generation: int) -> bool:
    ready = find(conditions, "Ready")
    return ready is not None and ready.status == "True" and observed == generation


def _reason(conditions: Sequence[Condition]) -> str | None:
    ready = find(conditions, "Ready")
    return None if ready is None or ready.status == "True" else ready.reason


def event_views(events: Iterable[Mapping[str, Any]], now: datetime) -> list[EventView]:
    """The last events, newest last. Core and events.k8s.io events arrive in the same form, with different times."""
    timed = []
    for event in events:
        series = event.get("series") or {}
        told = (
            series.get("lastObservedTime")
            or event.get("lastTimestamp")
            or event.get("eventTime")
            or event.get("firstTimestamp")
            or (event.get("metadata") or {}).get("creationTimestamp")
        )
        about = event.get("involvedObject") or {}
        view = EventView(
            seconds_ago=age(told, now),
            type=str(event.get("type") or ""),
            reason=str(event.get("reason") or ""),
            about=f"{about.get('kind', '?')}/{about.get('name', '?')}",
            message=str(event.get("message") or "").strip(),
            count=int(series.get("count") or event.get("count") or 1),
        )
        timed.append((str(told or ""), view))
    return [view for _, view in sorted(timed, key=lambda pair: pair[0])][-EVENTS_SHOWN:]


def _revision_view(deployment: ModelDeploymentResource, revision: Revision) -> RevisionView:
    status, rollout = deployment.status, deployment.status.rollout
    told = next((t for t in status.traffic if t.revision == revision.name), None)
    role = ""
    if rollout is not None and revision.name in (rollout.stable, rollout.candidate):
        role = "stable" if revision.name == rollout.stable else "candidate"
    return RevisionView(
        name=revision.name,
        base_model=revision.base_model,
        adapter=revision.adapter,
        external=revision.external.authority if revision.external else None,
        external_model=revision.external.model if revision.external else None,
        role=role,
        spec_weight=deployment.spec.weight_of(revision.name),
        weight=told.weight if told else None,
        verified=told.verified if told else False,
        ready_endpoints=told.ready_endpoints if told else 0,
        withheld=told.withheld if told else None,
    )


def _on_pod(adapter: str, report: AdapterReport | None, *, idle: bool) -> AdapterOnPodView:
    if report is None:
        return AdapterOnPodView(adapter=adapter, state="Idle" if idle else "Waiting")
    reason = report.reason or report.warning
    progress = transfer_for_people(report.transfer) if report.transfer else None
    return AdapterOnPodView(
        adapter=adapter, state=report.state, reason=reason, message=report.message, progress=progress
    )


def _pod_state(pod: PodObservation) -> str:
    if pod.deleted:
        return "Leaving"
    if pod.problem is not None:
        return pod.problem.reason.value
    return pod.report.engine if pod.report else "Starting"


def pod_view(pod: PodObservation, adapters: Sequence[str], now: datetime, *, idle: bool = False) -> PodView:
    """A pod and what it says of these adapters; where adapters are spread over pods, of those that it should have.

    `idle`: whose adapters they are is idle.
    """
    reports = pod.report.adapters if pod.report else {}
    shown = [name for name in adapters if name in reports] if _has_a_share(pod) else adapters
    return PodView(
        name=pod.name,
        pool=pod.pool,
        node=pod.node,
        state=_pod_state(pod),
        seconds_old=age(pod.created, now),
        problem=pod.problem.message if pod.problem else None,
        adapters=[_on_pod(name, reports.get(name), idle=idle) for name in shown],
    )


def _has_a_share(pod: PodObservation) -> bool:
    return pod.report is not None and pod.report.awaits_share is not None


def _pods_of(deployment: ModelDeploymentResource, pods: Iterable[PodObservation], now: datetime) -> list[PodView]:
    """Pods of the deployment's pools, each with the adapters that its revisions there name.

    A pod that has its share of the pool's adapters, and none of these, is left out, unless it serves the base itself.
    """
    wanted: dict[str, dict[str | None, None]] = {}
    for revision in (r for r in deployment.spec.revisions if r.external is None):
        wanted.setdefault(pool_of(deployment, revision), {})[revision.adapter] = None
    mine = [p for p in pods if p.namespace == deployment.metadata.namespace and p.pool in wanted]
    views = []
    for pod in sorted(mine, key=lambda p: (p.pool, p.created, p.name)):
        named = [name for name in wanted[pod.pool] if name]
        view = pod_view(pod, named, now, idle=bool(deployment.status.idle_since))
        if view.adapters or view.problem or None in wanted[pod.pool] or not _has_a_share(pod):
            views.append(view)
    return views


def deployment_view(deployment: ModelDeploymentResource, read: Read, now: datetime) -> DeploymentView:
    """Everything about one ModelDeployment."""
    metadata, status = deployment.metadata, deployment.status
    revisions = [_revision_view(deployment, r) for r in deployment.spec.revisions]
    told = [r.weight for r in revisions if r.weight is not None]
    return DeploymentView(
        namespace=metadata.namespace,
        name=metadata.name,
        model_name=deployment.model_name,
        url=status.url,
        ready=_is_ready(status.conditions, status.observed_generation, metadata.generation),
        stale=status.observed_generation is not None and status.observed_generation != metadata.generation,
        phase=status.rollout.phase if status.rollout else None,
        rollout=summary(rollout_view(deployment, now)),
        mirror=mirror_summary(deployment),
        reason=status.reason or _reason(status.conditions),
        seconds_old=age(metadata.creation_timestamp, now),
        revisions=revisions,
        unserved=100 - sum(told) if told else 0,
        pods=_pods_of(deployment, read.pods, now),
        conditions=list(status.conditions),
        events=event_views(read.events, now),
    )


def base_model_view(base: BaseModelResource, now: datetime) -> BaseModelView:
    """One BaseModel with its pools, as its status tells."""
    status = base.status
    return BaseModelView(
        namespace=base.metadata.namespace,
        name=base.metadata.name,
        ready=_is_ready(status.conditions, status.observed_generation, base.metadata.generation),
        reason=_reason(status.conditions),
        engine=status.engine,
        tensor_parallel_size=status.tensor_parallel_size,
        replicas=status.replicas,
        progress=status.progress,
        prewarmed=status.prewarmed,
        prewarm_progress=status.prewarm_progress,
        used_by=list(status.used_by or ()),
        seconds_old=age(base.metadata.creation_timestamp, now),
        pools=[PoolView.model_validate(p.model_dump()) for p in status.pools or ()],
    )


def adapter_view(adapter: LoRAAdapterResource, now: datetime) -> AdapterView:
    """One LoRAAdapter, as its status tells."""
    status = adapter.status
    return AdapterView(
        namespace=adapter.metadata.namespace,
        name=adapter.metadata.name,
        ready=_is_ready(status.conditions, status.observed_generation, adapter.metadata.generation),
        reason=_reason(status.conditions),
        base_model=adapter.spec.base_model,
        loaded=status.loaded,
        progress=status.progress,
        rank=status.rank,
        size=status.size,
        seconds_old=age(adapter.metadata.creation_timestamp, now),
    )


def overview(read: Read, now: datetime) -> Overview:
    """All objects that were read, sorted by namespace and name."""
    without_events = Read(read.deployments, read.base_models, read.adapters, read.pods)
    return Overview(
        deployments=[
            deployment_view(d, without_events, now) for d in sorted(read.deployments, key=lambda d: d.metadata.key)
        ],
        base_models=[base_model_view(b, now) for b in sorted(read.base_models, key=lambda b: b.metadata.key)],
        adapters=[adapter_view(a, now) for a in sorted(read.adapters, key=lambda a: a.metadata.key)],
    )
