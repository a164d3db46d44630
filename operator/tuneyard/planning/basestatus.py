"""The status of a BaseModel: what its pods found out about the base, and how many of them serve.

Rules:
- a pod serves when its own report says so (engine Ready); Kubernetes' readiness alone tells nothing about routing;
- a pool is complete when as many pods serve as are wanted and all of them run what is wanted now. One that its load
  gives more pods stays complete while these start and nothing is wrong with them: it is no work of somebody's;
- what was once read from the base (digest, size, architecture) stays, also while no pod runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus, PoolStatus
from tuneyard.api.conditions import Finding, merged
from tuneyard.api.digests import is_digest
from tuneyard.api.documents import BaseReport
from tuneyard.api.reasons import Reason
from tuneyard.planning.autoscaling import least_replicas
from tuneyard.planning.builds import Building
from tuneyard.planning.children import DEPLOYMENT, as_applied, is_workload, template_mark
from tuneyard.planning.observations import (
    BaseModelObservation,
    ChildObservation,
    PodObservation,
    Problem,
    problem_of,
    serves,
)
from tuneyard.planning.pools import POOL_GRACE, Pool, referring
from tuneyard.planning.poolscaling import PoolScale
from tuneyard.planning.poolsleep import PoolSleep
from tuneyard.planning.prewarm import PrewarmState
from tuneyard.planning.promotion import promotion
from tuneyard.planning.readiness import readiness
from tuneyard.planning.remedies import clipped, named, with_remedy
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.settingchecks import unknown_engine_version
from tuneyard.planning.sizes import slowest, transfer_for_people
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

SETTINGS_KNOWN = "SettingsKnown"
"""A condition that is there only as a warning."""
LOOK_FOR_KIND = 15.0
"""Seconds between two looks whether LeaderWorkerSets are there now."""
_USERS_LISTED = 50
_AWAKE = PoolSleep()
_PROGRESS_LIMIT = 200


@dataclass(frozen=True)
class PoolState:
    """A pool that is referred to, as it should be and as it is."""

    pool: Pool
    violation: Problem | None
    """Why its workload is not applied."""
    wanted: dict[str, Any] | None
    """Its workload, a Deployment or a LeaderWorkerSet; None with a violation."""
    workload: ChildObservation | None
    """What is there of the wanted kind; with a violation, what there is."""
    pods: tuple[PodObservation, ...]
    """Those that are not leaving; where replicas span nodes, their leaders."""
    scale: PoolScale
    former: ChildObservation | None = None
    """Its workload of the other kind, while it changes from that to the wanted one."""
    workers: tuple[PodObservation, ...] = ()
    """Pods with further ranks of its replicas."""
    makes_room: tuple[str, ...] = ()
    """ModelDeployments that go idle early."""
    sleep: PoolSleep = _AWAKE
    was_asleep: bool = False

    @property
    def waits(self) -> tuple[float, ...]:
        """After how many seconds it may have to sleep, to have another number of pods, or may find what its pods need:
        nobody tells of a new kind.
        """
        missing = self.violation is not None and self.violation.reason is Reason.LEADER_WORKER_SET_MISSING
        waits = (self.sleep.wait, self.scale.wait, LOOK_FOR_KIND if missing else None)
        return tuple(wait for wait in waits if wait is not None)

    @property
    def serving(self) -> int:
        """Pods that serve, at most as many as are wanted: in a surge there are more."""
        return min(self.pool.pods, sum(1 for p in self.pods if serves(p)))

    @property
    def rolled_out(self) -> bool:
        """Whether all pods run what is wanted now."""
        child, wanted = self.workload, self.wanted
        if child is None or wanted is None or child.deleted or self.former is not None:
            return False
        if self.pool.asleep_since:
            return as_applied(child, wanted)
        if not child.observed:
            return False
        return as_applied(child, wanted) and self._is_whole(child, wanted)

    def _is_whole(self, child: ChildObservation, wanted: dict[str, Any]) -> bool:
        """A LeaderWorkerSet does not say which spec its counts are of: its pods do."""
        if child.kind == DEPLOYMENT[1]:
            return child.updated_replicas >= self.pool.pods and not child.old_replicas
        return len(self.pods) >= self.pool.pods and all(p.wanted_as == template_mark(wanted) for p in self.pods)

    @property
    def replaces_former(self) -> bool:
        """Whether the workload of the other kind may go: its successor serves, or needs its GPUs to start."""
        child, wanted = self.workload, self.wanted
        if wanted is None:
            return False
        if self.frees_first:
            return True
        if child is None or not as_applied(child, wanted):
            return False
        mark = template_mark(wanted)
        return sum(p.wanted_as == mark and serves(p) for p in self.pods) >= self.pool.pods

    @property
    def frees_first(self) -> bool:
        """Whether old pods go before new ones come."""
        return self.pool.serving.update == "Replace"

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return self.rolled_out and (self.serving >= self.pool.pods or self.grows)

    @property
    def grows(self) -> bool:
        """Whether its load has given it more pods, which start."""
        settings = self.pool.serving.scaled
        enough = settings is not None and least_replicas(settings) <= self.serving < self.pool.pods
        return enough and problem_of(self.pods) is None and not (self.workload and self.workload.problem)

    @property
    def problem(self) -> Problem | None:
        """Why the pool does not become complete, taken from what is known to be wrong, or from its pods."""
        if self.violation or self.complete:
            return self.violation
        found = problem_of(self.pods) or problem_of(self.workers)
        return found or (self.workload.problem if self.workload else None)

    @property
    def progress(self) -> str:
        """For people, in a few words."""
        if self.problem:
            kept = "; the pods go on as they were" if self.violation and (self.workload or self.former) else ""
            return clipped(named(self.problem), _PROGRESS_LIMIT) + kept
        replicas = self.pool.pods
        if self.pool.asleep_since:
            return "asleep; the next request starts its pods"
        if self.complete and not self.grows:
            return "serving" if replicas else "scaled to 0"
        if self.pods and not self.serving and not any(p.base_report for p in self.pods):
            transfer = slowest(p.report.base_transfer for p in self.pods if p.report)
            return transfer_for_people(transfer) if transfer else "reading the base"
        counted = f"{self.serving} of {replicas} pods serve"
        return counted if self.rolled_out or self.workload is None else f"{counted}, rolling out"


@dataclass(frozen=True)
class UnusedPool:
    """What is left of a pool that nothing refers to."""

    name: str
    children: tuple[ChildObservation, ...]
    has_pods: bool

    @property
    def workloads(self) -> tuple[ChildObservation, ...]:
        """What makes its pods, while there is something: two in a pool that was changing from one kind to the other."""
        return tuple(c for c in self.children if is_workload(c.kind))


def unused_since(workload: ChildObservation) -> datetime | None:
    """Since when its pool was seen without references."""
    return parsed_time(workload.annotations.get(names.ANNOTATION_UNUSED_SINCE))


def listed(users: Sequence[str]) -> list[str] | None:
    """Names for status.usedBy, bounded; None for none."""
    more = len(users) - _USERS_LISTED
    return [*users[:_USERS_LISTED], f"and {more} more"] if more > 0 else list(users) or None


def basemodel_status(
    obs: BaseModelObservation,
    base: BaseModelResource,
    pools: Sequence[PoolState],
    unused: Sequence[UnusedPool],
    prewarming: PrewarmState,
    *,
    building: Building,
) -> tuple[BaseModelStatus, Problem | None]:
    """The whole status, and the problem that stalls the base."""
    reports = _reports(obs.pods)
    made = building.result
    digest = base.pinned_digest or (made.digest if made else _first_read(building, reports))
    facts = next((r for r in reports if r.ok and r.digest == digest), None)
    mismatch = _digest_mismatch(obs.pods, digest)
    # until a base is built, that it is not is what keeps its pools: not theirs to say
    unbuilt = building.problem or building.work
    problem = building.problem if unbuilt else next((s.problem for s in pools if s.problem), None) or mismatch
    work = building.work if unbuilt else _work(pools, digest)
    findings = [
        *readiness(problem, work, _done(pools)),
        *_built(base, building),
        _resolved(pools, reports, digest, mismatch),
        _available(pools, unbuilt or problem),
        *_settings_unknown(obs, pools),
    ]
    shared, promoted = resolved_serving(base.spec.serving), promotion(base, obs.deployments)
    status = BaseModelStatus(
        observed_generation=base.metadata.generation,
        digest=digest,
        size_bytes=(facts.size_bytes if facts else None)
        or (made.size_bytes if made else None)
        or base.status.size_bytes,
        architecture=(facts.architecture if facts else None) or base.status.architecture,
        engine=shared.engine,
        tensor_parallel_size=shared.tensor_parallel_size,
        replicas=f"{sum(s.serving for s in pools)}/{sum(s.pool.pods for s in pools)}",
        progress=_building_progress(building) or _progress(pools),
        build=building.status,
        prewarmed=prewarming.prewarmed,
        prewarm_progress=prewarming.progress,
        promoted_at=promoted.at if promoted else None,
        promoted_by=promoted.by if promoted else None,
        used_by=listed([d.metadata.name for d in referring(base, obs.deployments)]),
        pools=[*(_used_status(s) for s in pools), *(_unused_status(u, obs.now) for u in unused)] or None,
        conditions=list(
            merged(base.status.conditions, findings, rfc3339(obs.now), base.metadata.generation or None),
        ),
    )
    return status, problem


def _first_read(building: Building, reports: Iterable[BaseReport]) -> str | None:
    """What pods have read is what is pinned; of a build its own word, whatever lies at its output meanwhile."""
    return next((r.digest for r in reports if r.ok and r.digest), None) if building.status is None else None


def _building_progress(building: Building) -> str | None:
    if building.done or building.status is None:
        return None
    status = building.status
    words = {"Waiting": "build waits", "Failed": "build failed"}.get(status.state, f"building {status.step}")
    return clipped(f"{words}: {status.progress}" if status.progress else words, _PROGRESS_LIMIT)


def _built(base: BaseModelResource, building: Building) -> list[Finding]:
    """A condition of bases that are built, for who waits for one."""
    status = building.status
    if status is None:
        return []
    if status.succeeded:
        return [Finding(type="Built", status="True", reason=Reason.BUILT, message=status.output or "")]
    why = building.problem or building.work or Problem(Reason.BUILD_PENDING, f"{base.metadata.name} is not built yet")
    return [Finding(type="Built", status="False", reason=why.reason, message=clipped(why.message))]


def _reports(pods: Iterable[PodObservation]) -> list[BaseReport]:
    """What pods say of the base, the oldest pod first, so that the first digest seen is the one that is pinned."""
    ordered = sorted(pods, key=lambda p: (p.created, p.name))
    reports = [p.base_report for p in ordered if p.base_report is not None]
    return [r for r in reports if r.digest is None or is_digest(r.digest)]


def _digest_mismatch(pods: Iterable[PodObservation], digest: str | None) -> Problem | None:
    """Two pods that started at once, before anything was pinned, may have read different bytes.

    One that keeps a cache serves nothing: it fetches the pinned bytes as soon as it hears of them.
    """
    for pod in pods:
        serving = not pod.deleted and not pod.prewarms
        found = pod.base_report.digest if pod.base_report and pod.base_report.ok and serving else None
        if digest and found and found != digest:
            words = f"pod {pod.name} serves {found}, pinned is {digest}: delete the pod once the bytes are right"
            return Problem(Reason.DIGEST_MISMATCH, words)
    return None


def _work(pools: Sequence[PoolState], digest: str | None) -> Problem | None:
    waiting = [s for s in pools if not s.complete]
    if not waiting:
        return None
    reason = Reason.RESOLVING if digest is None else Reason.STARTING
    return Problem(reason, "; ".join(f"pool {s.pool.name}: {s.progress}" for s in waiting))


def _done(pools: Sequence[PoolState]) -> Problem:
    if not pools:
        return Problem(Reason.NOT_USED, Reason.NOT_USED.doc)
    serving, total = sum(s.serving for s in pools), sum(s.pool.pods for s in pools)
    if all(s.pool.asleep_since for s in pools):
        return Problem(Reason.ASLEEP, Reason.ASLEEP.doc)
    return Problem(Reason.READY, f"{serving} of {total} pods serve")


def _resolved(
    pools: Sequence[PoolState], reports: Sequence[BaseReport], digest: str | None, mismatch: Problem | None
) -> Finding:
    if mismatch:
        return Finding(type="Resolved", status="False", reason=mismatch.reason, message=mismatch.message)
    if digest:
        return Finding(type="Resolved", status="True", reason=Reason.RESOLVED, message=digest)
    failed = next((s.problem for s in pools if s.problem and any(r and not r.ok for r in reports)), None)
    if failed:
        return Finding(type="Resolved", status="False", reason=failed.reason, message=failed.message)
    reason = Reason.RESOLVING if pools else Reason.NOT_USED
    return Finding(type="Resolved", status="Unknown", reason=reason, message=reason.doc)


def _available(pools: Sequence[PoolState], problem: Problem | None) -> Finding:
    serving, total = sum(s.serving for s in pools), sum(s.pool.pods for s in pools)
    counted = f"{serving} of {total} pods serve"
    if serving:
        return Finding(type="Available", status="True", reason=Reason.AVAILABLE, message=counted)
    if not pools:
        return Finding(type="Available", status="False", reason=Reason.NOT_USED, message=Reason.NOT_USED.doc)
    if problem:
        return Finding(type="Available", status="False", reason=problem.reason, message=problem.message)
    if all(s.pool.asleep_since for s in pools):
        return Finding(type="Available", status="True", reason=Reason.ASLEEP, message=Reason.ASLEEP.doc)
    reason = Reason.STARTING if total else Reason.NO_READY_ENDPOINT
    return Finding(type="Available", status="False", reason=reason, message=counted)


def _settings_unknown(obs: BaseModelObservation, pools: Sequence[PoolState]) -> tuple[Finding, ...]:
    """A warning about the first pool whose engine is not known."""
    for state in pools:
        warning = unknown_engine_version(state.pool.serving, obs.settings.images.vllm)
        if warning:
            words = f"pool {state.pool.name}: {with_remedy(warning)}"
            return (Finding(type=SETTINGS_KNOWN, status="False", reason=warning.reason, message=words),)
    return ()


def _progress(pools: Sequence[PoolState]) -> str:
    if not pools:
        return "not used"
    telling = next((s for s in pools if s.problem), None) or next((s for s in pools if not s.complete), pools[0])
    return telling.progress


def _used_status(state: PoolState) -> PoolStatus:
    return PoolStatus(
        name=state.pool.name,
        deployment=state.pool.deployment,
        replicas=state.pool.pods,
        ready_replicas=state.serving,
        progress=state.progress,
        asleep_since=state.sleep.asleep_since,
        makes_room=list(state.makes_room) or None,
        wanted_replicas=state.scale.wanted,
        reason=state.scale.reason,
        scaling=state.scale.state,
    )


def _unused_status(pool: UnusedPool, now: datetime) -> PoolStatus:
    child = next((w for w in pool.workloads if not w.deleted), None)
    going = child is None or remaining(unused_since(child) or now, POOL_GRACE, now) <= 0
    return PoolStatus(
        name=pool.name,
        deployment=next((c.deployment for c in pool.children if c.deployment), None),
        replicas=child.replicas if child else 0,
        ready_replicas=child.ready_replicas if child else 0,
        progress="not used; being removed" if going else f"not used; kept for {POOL_GRACE:.0f} s",
    )
