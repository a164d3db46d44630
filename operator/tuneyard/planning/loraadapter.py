"""The plan for a LoRAAdapter: no actions, only what the pods have found out about it.

Rules:
- pods load what the pools' plans say (basemodel.py); this plan pins the digest and reports;
- the digest is the spec's; else the one that the status has; else the first that a pod reports while loading it or
  with it loaded. It never changes afterwards: pods that read other bytes say DigestMismatch;
- a pod's report is input: reasons that are not known are passed on in words;
- promotion is recorded once (promotion.py); a parent that is an adapter is warned of and hinders nothing;
- an adapter that is not referred to is Ready with the reason NotUsed, one that only idle ModelDeployments name with the
  reason Idle: nothing was asked for that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneyard.api import names
from tuneyard.api.conditions import Condition, Finding, find, is_true, merged
from tuneyard.api.digests import is_digest
from tuneyard.api.documents import AdapterReport
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.reasons import Reason, reason_of
from tuneyard.planning.basestatus import listed
from tuneyard.planning.observations import LoRAAdapterObservation, PodObservation, PoolPlaces, Problem, problem_of
from tuneyard.planning.plan import Event, ObjectReference, Plan
from tuneyard.planning.podreport import source_mark
from tuneyard.planning.promotion import Promotion, promotion
from tuneyard.planning.readiness import readiness, stalled_event
from tuneyard.planning.remedies import clipped, with_remedy
from tuneyard.planning.sizes import size_for_people, slowest, transfer_for_people
from tuneyard.planning.timestamps import rfc3339
from tuneyard.planning.turns import asks, offers

TRAINED_FROM_BASE = "TrainedFromBase"
"""A condition that is there only as a warning."""

_UNRESOLVED = frozenset(
    {
        Reason.ARTIFACT_NOT_FOUND,
        Reason.FILES_MISSING,
        Reason.ARTIFACT_UNREADABLE,
        Reason.UNSAFE_PATH,
        Reason.ACCESS_DENIED,
        Reason.CREDENTIALS_MISSING,
        Reason.SOURCE_UNREACHABLE,
        Reason.DISK_FULL,
        Reason.CACHE_UNUSABLE,
    }
)
INCOMPATIBLE = frozenset(
    {
        Reason.INVALID_CONFIG,
        Reason.UNSUPPORTED_ADAPTER,
        Reason.RANK_TOO_HIGH,
        Reason.ALPHA_ZERO,
        Reason.NOT_SAFETENSORS,
        Reason.CORRUPT_WEIGHTS,
        Reason.UNEXPECTED_TENSOR,
        Reason.SHAPE_MISMATCH,
        Reason.UNSUPPORTED_DTYPE,
        Reason.NON_FINITE_VALUES,
    }
)
"""What a pod says after it has looked into the files."""


@dataclass(frozen=True)
class Said:
    """What one pod says of the adapter."""

    pod: str
    report: AdapterReport

    @property
    def problem(self) -> Problem | None:
        """Why this pod does not have it."""
        if self.report.state != "Failed":
            return None
        reason, text = reason_of(self.report.reason or ""), self.report.message or ""
        words = text if reason or not self.report.reason else f"{self.report.reason}: {text}"
        return Problem(reason or Reason.LOAD_REFUSED, f"pod {self.pod}: {words}" if words else f"pod {self.pod}")


@dataclass(frozen=True)
class Spread:
    """The adapter over its pools."""

    adapter: LoRAAdapterResource
    base_exists: bool
    users: tuple[str, ...]
    """ModelDeployments with a revision that names it, sorted."""
    pools: tuple[PoolPlaces, ...]
    """Pools of its base that these revisions use."""
    refusals: tuple[Problem, ...]
    """Why pools have no place for it."""
    pods: tuple[PodObservation, ...]
    """Those of its pools that are not leaving, the oldest first."""
    said: tuple[Said, ...]
    """What they report of it."""
    idle: bool = False
    """Only idle ModelDeployments name it, or revisions that need not be loaded."""
    cold: bool = False
    """Such revisions, of a ModelDeployment that is not idle."""

    @property
    def wanted(self) -> int:
        """How many pods should have it in any case: what it has beyond that, because it is hot, may come and go."""
        return sum(p.copies for p in self.pools)

    @property
    def digest(self) -> str | None:
        """The adapter's digest, for ever the same as soon as there is one."""
        # a pod that has not heard of it yet may speak of one that had its name before, with other files
        mine = (None, source_mark(self.adapter.spec.source))
        reported = (s.report.digest for s in self.said if s.report.state != "Failed" and s.report.source in mine)
        first = next((d for d in reported if d is not None and is_digest(d)), None)
        return self.adapter.pinned_digest or first

    @property
    def loaded(self) -> int:
        """How many of the wanted pods have it, with the pinned bytes; while pods are replaced, more may have it."""
        return self._loaded({})

    @property
    def counted(self) -> tuple[int, int]:
        """For people: how many pods have it, of how many that should, also because it is hot."""
        more = {
            p.name: p.grown[self.adapter.metadata.name] for p in self.pools if self.adapter.metadata.name in p.grown
        }
        return self._loaded(more), sum(more.get(p.name, p.copies) for p in self.pools)

    def _loaded(self, more: Mapping[str, int]) -> int:
        """How many pods have it, of each pool at most its copies, or as many as `more` says."""
        if self.digest is None:
            return 0
        engine_name = names.engine_adapter_name(self.adapter.metadata.name, self.digest)
        having = {s.pod for s in self.said if s.report.state == "Loaded" and s.report.engine_name == engine_name}
        return sum(
            min(more.get(pool.name, pool.copies), sum(1 for p in self.pods if p.pool == pool.name and p.name in having))
            for pool in self.pools
        )

    @property
    def progress(self) -> str | None:
        """How far the slowest pod is with fetching it, None while nobody fetches."""
        transfer = slowest(s.report.transfer for s in self.said)
        return transfer_for_people(transfer) if transfer else None


def plan_loraadapter(obs: LoRAAdapterObservation) -> Plan:
    """What is known of a LoRAAdapter now."""
    adapter = obs.adapter
    if adapter is None or adapter.metadata.deletion_timestamp:
        return Plan()
    spread = _spread(obs, adapter)
    problem = _problem(spread)
    work = None if problem else _work(spread)
    findings = [
        *readiness(problem, work, _done(spread)),
        _resolved(spread),
        _compatible(spread),
        _loaded(spread, problem or work),
        *_trained_from_another(obs, adapter),
    ]
    conditions = merged(adapter.status.conditions, findings, rfc3339(obs.now), adapter.metadata.generation or None)
    status = _status(spread, conditions, promotion(adapter, obs.deployments))
    return Plan(status=status, events=_events(spread, status, problem))


def _users(obs: LoRAAdapterObservation, adapter: LoRAAdapterResource) -> tuple[str, ...]:
    found = (
        d.metadata.name
        for d in obs.deployments
        if d.metadata.namespace == adapter.metadata.namespace
        and not d.metadata.deletion_timestamp
        and any(r.adapter == adapter.metadata.name for r in d.spec.revisions)
    )
    return tuple(sorted(found))


def _spread(obs: LoRAAdapterObservation, adapter: LoRAAdapterResource) -> Spread:
    name, users = adapter.metadata.name, _users(obs, adapter)
    if obs.base is None or not users:
        return Spread(adapter, obs.base is not None, users, (), (), (), ())
    pools = tuple(p for p in obs.pools if name in p.wanted)
    if not pools and any(name in p.idle for p in obs.pools):
        awake = any(d.metadata.name in users and not d.status.idle_since for d in obs.deployments)
        return Spread(adapter, True, users, (), (), (), (), idle=True, cold=awake)
    refusals = [p.refused.get(name) for p in pools]
    mine = {(p.namespace, p.name) for p in pools}
    pods = [p for p in obs.pods if (p.namespace, p.pool) in mine and not p.deleted]
    pods.sort(key=lambda p: (p.created, p.name))
    said = tuple(Said(p.name, p.report.adapters[name]) for p in pods if p.report and name in p.report.adapters)
    return Spread(adapter, True, users, pools, tuple(r for r in refusals if r), tuple(pods), said)


def _problem(spread: Spread) -> Problem | None:
    """What keeps the adapter from being loaded everywhere it should be, the nearest cause first."""
    base = spread.adapter.spec.base_model
    if not spread.base_exists:
        return Problem(Reason.BASE_MODEL_NOT_FOUND, f"BaseModel {base} does not exist")
    if spread.users and not spread.pools and not spread.idle:
        words = f"its base model is {base}; the revisions of {', '.join(spread.users)} use it with another"
        return Problem(Reason.BASE_MODEL_MISMATCH, clipped(words))
    failed = next((s.problem for s in spread.said if s.problem), None) or next(iter(spread.refusals), None)
    if failed or spread.loaded >= spread.wanted:
        return failed
    return problem_of(spread.pods)


def _work(spread: Spread) -> Problem | None:
    if spread.loaded >= spread.wanted:
        return None
    counted = _counted(spread)
    if not spread.said:
        return Problem(Reason.STARTING, f"{counted}; no pod is ready to load adapters yet")
    if spread.progress:
        return Problem(Reason.FETCHING, f"{counted}; {spread.progress}")
    return Problem(Reason.LOADING, clipped(f"{counted}{_in_turn(spread)}"))


def _in_turn(spread: Spread) -> str:
    """What pods wait for whose engines have to begin anew for it (turns.py)."""
    pools = {p.pool for p in spread.pods if asks(p)}
    if not pools:
        return ""
    away = listed([p.name for p in spread.pods if p.pool in pools and not (p.ready and offers(p))])
    waits = f", while others serve; not serving: {', '.join(away)}" if away else ""
    return f"; engines begin anew for it one after the other{waits}"


def _done(spread: Spread) -> Problem:
    if spread.idle:
        if spread.cold:
            words = (
                f"not loaded: beyond rollout.keepWarm of {', '.join(spread.users)}; a weight for its revision loads it"
            )
            return Problem(Reason.IDLE, clipped(words))
        return Problem(Reason.IDLE, f"not loaded, nobody asks for {', '.join(spread.users)}; the next request loads it")
    if not spread.users:
        return Problem(Reason.NOT_USED, Reason.NOT_USED.doc)
    return Problem(Reason.READY, _counted(spread))


def _counted(spread: Spread) -> str:
    loaded, wanted = spread.counted
    return f"{loaded} of {wanted} pods have loaded it"


def _resolved(spread: Spread) -> Finding:
    problems = [s.problem for s in spread.said if s.problem]
    mismatch = next((p for p in problems if p.reason is Reason.DIGEST_MISMATCH), None)
    if mismatch:
        return Finding(type="Resolved", status="False", reason=mismatch.reason, message=mismatch.message)
    if spread.digest:
        return Finding(type="Resolved", status="True", reason=Reason.RESOLVED, message=spread.digest)
    failed = next((p for p in problems if p.reason in _UNRESOLVED), None)
    if failed:
        return Finding(type="Resolved", status="False", reason=failed.reason, message=failed.message)
    return _unknown("Resolved", spread)


def _compatible(spread: Spread) -> Finding:
    for problem in (s.problem for s in spread.said):
        if problem and problem.reason in INCOMPATIBLE:
            return Finding(type="Compatible", status="False", reason=problem.reason, message=problem.message)
    # Pods give an engine name only after they have checked the files. Without pods the last verdict stands.
    checked = any(s.report.engine_name for s in spread.said)
    if checked or ((spread.pools or spread.idle) and is_true(spread.adapter.status.conditions, "Compatible")):
        return Finding(type="Compatible", status="True", reason=Reason.COMPATIBLE, message=Reason.COMPATIBLE.doc)
    return _unknown("Compatible", spread)


def _unknown(type_: str, spread: Spread) -> Finding:
    reason = Reason.IDLE if spread.idle else Reason.RESOLVING if spread.users else Reason.NOT_USED
    return Finding(type=type_, status="Unknown", reason=reason, message=reason.doc)


def _loaded(spread: Spread, wrong: Problem | None) -> Finding:
    if wrong:
        return Finding(type="Loaded", status="False", reason=wrong.reason, message=with_remedy(wrong))
    if not spread.users or spread.idle:
        done = _done(spread)
        return Finding(type="Loaded", status="False", reason=done.reason, message=clipped(done.message))
    if not spread.wanted:
        words = "its pools have 0 replicas"
        return Finding(type="Loaded", status="False", reason=Reason.NO_READY_ENDPOINT, message=words)
    warnings = {s.report.warning for s in spread.said if s.report.warning}
    warned = "".join(f"; {w}: {(reason_of(w) or Reason.LOADED).doc}" for w in sorted(warnings))
    words = f"{_counted(spread)}{warned}"
    return Finding(type="Loaded", status="True", reason=Reason.LOADED, message=words)


def _trained_from_another(obs: LoRAAdapterObservation, adapter: LoRAAdapterResource) -> tuple[Finding, ...]:
    """The warning, which stays when the parent is deleted: what it was trained from does not change by that."""
    known = find(adapter.status.conditions, TRAINED_FROM_BASE)
    if obs.parent is None and known is None:
        return ()
    problem = Problem(Reason.PARENT_IS_ADAPTER, f"it was trained from LoRAAdapter {adapter.parent_name}")
    return (Finding(type=TRAINED_FROM_BASE, status="False", reason=problem.reason, message=with_remedy(problem)),)


def _status(spread: Spread, conditions: Sequence[Condition], promoted: Promotion | None) -> LoRAAdapterStatus:
    before, digest = spread.adapter.status, spread.digest
    found = next((s.report for s in spread.said if s.report.digest == digest and s.report.rank is not None), None)
    facts = found or AdapterReport(state="Loading")
    size = before.size_bytes if facts.size_bytes is None else facts.size_bytes
    return LoRAAdapterStatus(
        observed_generation=spread.adapter.metadata.generation,
        digest=digest,
        engine_name=names.engine_adapter_name(spread.adapter.metadata.name, digest) if digest else None,
        rank=before.rank if facts.rank is None else facts.rank,
        target_modules=facts.target_modules or before.target_modules,
        size_bytes=size,
        size=None if size is None else size_for_people(size),
        loaded="{}/{}".format(*spread.counted),
        progress=spread.progress,
        used_by=listed(spread.users),
        promoted_at=promoted.at if promoted else None,
        promoted_by=promoted.by if promoted else None,
        conditions=list(conditions),
    )


def _events(spread: Spread, status: LoRAAdapterStatus, problem: Problem | None) -> tuple[Event, ...]:
    """Told on a change of state only."""
    before, meta = spread.adapter.status, spread.adapter.metadata
    about = ObjectReference(names.API_VERSION, "LoRAAdapter", meta.namespace, meta.name, meta.uid)
    events: list[Event] = []
    if before.digest is None and status.digest is not None and spread.adapter.spec.digest is None:
        events.append(Event("Normal", Reason.DIGEST_PINNED, f"pinned {status.digest}", about))
    if is_true(status.conditions, "Loaded") and not is_true(before.conditions, "Loaded"):
        words = f"{status.loaded} pods have loaded {status.engine_name}"
        events.append(Event("Normal", Reason.ADAPTER_LOADED, words, about))
    reported = any(s.problem == problem for s in spread.said)
    events += [_load_failed(e) if reported else e for e in stalled_event(before.conditions, problem, about)]
    return tuple(events)


def _load_failed(event: Event) -> Event:
    """The same event under the reason that stands for all that pods report."""
    return Event("Warning", Reason.ADAPTER_LOAD_FAILED, f"{event.reason.value}: {event.message}", event.about)
