"""Gates before traffic: what a candidate has to pass before its first step, which Job should exist, what came of it.

Rules:
- until all gates are passed the rollout allows the candidate nothing. One that has been allowed something has them
  behind it: another gate or another limit then asks nothing of it before it begins anew;
- a gate that fails is a verdict with its numbers. One that cannot run (its Job cannot be made, is lost, ends without
  numbers or takes too long) neither passes nor rejects: it holds, and is tried again with growing delays;
- results are keyed by the contents of revision and gate, and kept in a ConfigMap that outlives the deployment. Where
  the status knows of a passed gate, that counts too: nobody looks at Jobs and reports while nothing is under way;
- that a gate has failed is kept for people to read. It counts in the pass that finds it, which gives the verdict; whose
  verdict is gone (the revision was listed anew, or is tried once more) is measured again;
- the verdict is written before what was found is kept. Until that is kept too the gate is not over in the status, so
  that somebody looks;
- `retry` lets what was found until then count no more; `promote` skips what is not passed, and says so in the reports;
- a Job that is not the one of the current gate goes, after what it found is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from tuneyard.api.gatereports import GateResult
from tuneyard.api.gates import Gate, GateStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.gatejobs import companions, gate_key, job_object, kept_reports, reports_object, timeout
from tuneyard.planning.gatejudging import UnmeasuredError, checks_of, sentence
from tuneyard.planning.gateobservations import GateJob, GateObservation, JobMark
from tuneyard.planning.gateprogress import next_progress
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Action, Apply, Delete
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

FIRST_DELAY, LONGEST_DELAY = 30.0, 1800.0
"""Seconds until a gate that could not run is tried again; each time twice as long."""
_GRACE = 120.0
"""Seconds after its timeout in which Kubernetes should have ended a Job."""
_AT_ONCE, _SOON, _LOOK = 0.1, 1.0, 2.0
"""Seconds to the next look at a Job that is being made, and at one that runs: nothing tells of its end."""

PASSING = ("Passed", "Skipped")


@dataclass(frozen=True)
class Gating:
    """Where the gates of one candidate stand."""

    passed: bool
    states: tuple[GateStatus, ...] = ()
    failure: Problem | None = None
    """What a gate found against the candidate."""
    held: Problem | None = None
    """What is waited for."""
    job: str | None = None
    """The Job that should stay."""
    actions: tuple[Action, ...] = ()
    look_again: float | None = None


@dataclass(frozen=True)
class _Found:
    """What Jobs have brought."""

    results: Mapping[str, GateResult] = field(default_factory=dict)
    """By key, the kept ones and the new ones."""
    new: tuple[GateResult, ...] = ()
    ended: Mapping[str, str] = field(default_factory=dict)
    """By Job: why it brought nothing, in words."""


@dataclass(frozen=True)
class _Case:
    """The candidate that the gates are about."""

    seen: Seen
    status: RolloutStatus
    candidate: str
    found: _Found


def under_way(status: RolloutStatus | None) -> bool:
    """Whether Jobs and reports have to be looked at, as far as the stored status says."""
    if status is None:
        return False
    return status.phase == "Gating" or len(over(status.gates or ())) < len(status.gates or ())


def gating(seen: Seen, status: RolloutStatus, candidate: str) -> Gating:
    """Where the candidate's gates stand, and what should be done for them."""
    gates = seen.rollout.gates or []
    if not gates:
        return Gating(passed=True)
    prior, content = _prior(seen), seen.hashes[candidate]
    if seen.allowed_before(candidate):
        return Gating(passed=True, states=settled_states(seen, candidate))
    case = _Case(seen, status, candidate, _found(seen))
    states: list[GateStatus] = []
    current: Gating | None = None
    for gate in gates:
        # of contents that are not known there is no key that anything could be found by
        key = gate_key(content, gate) if content else ""
        state = _settled(case, key)
        if state is None and current is None:
            current = _current(case, gate, key)
            state = current.states[0]
        elif state is None:
            before = prior.get(key)
            state = GateStatus(name=gate.name, key=key, state="Waiting", attempt=before.attempt if before else None)
        states.append(state)
        if state.state == "Failed":
            return Gating(False, tuple(states), failure=Problem(Reason.GATE_FAILED, state.message))
    if current is None:
        return Gating(passed=True, states=tuple(states))
    return replace(current, states=tuple(states))


def settled_states(seen: Seen, candidate: str) -> tuple[GateStatus, ...]:
    """What is known of gates of these contents that are over, and of those whose results are still to be kept."""
    content, found = seen.hashes[candidate], _found(seen)
    keys = {gate_key(content, gate) for gate in seen.rollout.gates or ()} if content else set()
    states = [s for s in _prior(seen).values() if s.key in keys]
    verdict = seen.before.rejects(content) if seen.before and content else None
    unkept = {r.key for r in found.new}
    kept = {key: r for key, r in found.results.items() if key not in unkept and verdict and r.at >= verdict.at}
    known = (s if s.key in unkept or over([s]) else _state_of(kept.get(s.key)) for s in states)
    return tuple(s for s in known if s is not None)


def judged_states(seen: Seen, gates: Gating) -> tuple[GateStatus, ...]:
    """The states to be stored with a verdict on the candidate: a failure is over only when it is kept, if it can be."""
    kept = seen.gates is not None and seen.gates.foreign
    return tuple(
        s if kept or s.state != "Failed" else s.model_copy(update={"state": "Running"}) for s in over(gates.states)
    )


def _state_of(result: GateResult | None) -> GateStatus | None:
    if result is None:
        return None
    return GateStatus(
        name=result.gate, key=result.key, state=result.outcome, message=result.message, ended_at=result.at
    )


def over(states: Iterable[GateStatus]) -> tuple[GateStatus, ...]:
    """Those of the states that will not change by themselves."""
    return tuple(s for s in states if s.state in (*PASSING, "Failed"))


def skipped(seen: Seen, states: tuple[GateStatus, ...]) -> tuple[GateStatus, ...]:
    """The states of gates that somebody has promoted the candidate past."""
    words = f"skipped by the command promote at {seen.stamp}"
    return tuple(
        s
        if s.state in PASSING
        else GateStatus(name=s.name, key=s.key, state="Skipped", message=words, ended_at=seen.stamp)
        for s in states
    )


def skipped_words(seen: Seen, candidate: str) -> str:
    """What is said of the gates that a promotion of the candidate skips, as far as the stored status knows them."""
    stored = (seen.before.gates if seen.before else None) or ()
    open_ = [s.name for s in stored if s.state not in PASSING]
    return f"; gates that are skipped: {', '.join(open_)}" if open_ and not seen.allowed_before(candidate) else ""


def gate_actions(seen: Seen, status: RolloutStatus, stays: Gating | None) -> tuple[Action, ...]:
    """Keep what was found, remove the Jobs that are not wanted any more, and do what the current gate asks for."""
    looked = seen.gates
    if looked is None:
        return ()
    actions: list[Action] = []
    new = [*_found(seen).new, *_skips(seen, status, looked)]
    if new and not looked.foreign:
        kept = kept_reports(looked.reports, seen.deployment.metadata.name, new)
        actions.append(Apply(reports_object(seen.deployment, kept, seen.record)))
    wanted = stays.job if stays is not None else None
    namespace = seen.deployment.metadata.namespace
    actions += [
        Delete("batch/v1", "Job", namespace, j.name, j.uid, j.resource_version)
        for j in looked.jobs
        if j.name != wanted and not j.deleted
    ]
    return (*actions, *(stays.actions if stays is not None else ()))


# -- what is known ----------------------------------------------------------------------------------------------------


def _prior(seen: Seen) -> dict[str, GateStatus]:
    """By key, what the stored status says."""
    return {s.key: s for s in (seen.before.gates if seen.before else None) or ()}


def _keys(seen: Seen) -> dict[str, tuple[str, Gate]]:
    """Every key that a result may have now, with the revision and the gate that it stands for."""
    return {
        gate_key(content, gate): (name, gate)
        for name, content in seen.hashes.items()
        if content
        for gate in seen.rollout.gates or ()
    }


def _found(seen: Seen) -> _Found:
    """The kept results, and those of Jobs that have ended."""
    looked = seen.gates
    if looked is None:
        return _Found()
    results = {r.key: r for r in (looked.reports.results if looked.reports else ())}
    keys, new, ended = _keys(seen), [], {}
    for job in looked.jobs:
        mark = job.mark
        if mark is None or mark.key not in keys:
            continue
        known = results.get(mark.key)
        if known is not None and known.at > job.created:
            continue
        try:
            result = _result(seen, job, mark, *keys[mark.key])
        except UnmeasuredError as error:
            ended[job.name] = str(error)
            continue
        if result is not None:
            results[mark.key] = result
            new.append(result)
    return _Found(results, tuple(new), ended)


def _result(seen: Seen, job: GateJob, mark: JobMark, revision: str, gate: Gate) -> GateResult | None:
    """What a Job brought; None while it goes on. Raises UnmeasuredError where it should have ended."""
    if job.report is None:
        began = parsed_time(job.created)
        if job.ended is None and began is not None and remaining(began, timeout(gate) + _GRACE, seen.now) <= 0:
            raise UnmeasuredError(f"it has not ended within its timeout of {timeout(gate)} s")
        if job.ended is not None:
            raise UnmeasuredError(job.ended)
        return None
    checks = checks_of(gate, job.report)
    return GateResult(
        revision=revision,
        content_hash=seen.hashes[revision] or "",
        gate=gate.name,
        key=mark.key,
        outcome="Passed" if all(c.passed for c in checks) else "Failed",
        message=clipped(sentence(gate, checks), 600),
        at=seen.stamp,
        stable=mark.stable,
        checks=list(checks),
        report=job.report,
    )


def _settled(case: _Case, key: str) -> GateStatus | None:
    """The state of a gate that needs no run; None: it needs one."""
    seen, status, prior = case.seen, case.status, _prior(case.seen).get(key)
    result = case.found.results.get(key)
    if result is not None:
        counts = not status.gates_since or result.at > status.gates_since
        # whose verdict stands is not asked for gates: a failure that was kept is from before it was dropped
        counts = counts and (result.outcome != "Failed" or result in case.found.new)
        return _state_of(result) if counts else None
    retried = status.gates_since != (seen.before.gates_since if seen.before else None)
    if prior is not None and prior.state in PASSING and not retried:
        return prior
    return None


def _skips(seen: Seen, status: RolloutStatus, looked: GateObservation) -> Iterator[GateResult]:
    """Results for gates that were skipped just now: also without a status they stay skipped."""
    known = {r.key for r in (looked.reports.results if looked.reports else ()) if r.outcome == "Skipped"}
    names_of = _keys(seen)
    for state in status.gates or ():
        if state.state == "Skipped" and state.key in names_of and state.key not in known:
            revision, gate = names_of[state.key]
            yield GateResult(
                revision=revision, content_hash=seen.hashes[revision] or "", gate=gate.name, key=state.key,
                outcome="Skipped", message=state.message, at=seen.stamp,
            )  # fmt: skip


# -- the gate whose turn it is ----------------------------------------------------------------------------------------


def _current(case: _Case, gate: Gate, key: str) -> Gating:
    seen, status, candidate, prior = case.seen, case.status, case.candidate, _prior(case.seen).get(key)
    if not key:
        return _waits(
            gate, key, prior, f"nobody knows what {candidate} would serve: something that it names is missing"
        )
    if seen.gates is None:
        # the stored status does not say yet that gates are under way, so nobody has looked at Jobs
        begins = GateStatus(name=gate.name, key=key, state="Waiting", message="about to begin")
        kept = begins if prior is None or over([prior]) else prior
        return _holding(kept, look_again=_AT_ONCE)
    job = max((j for j in seen.gates.jobs if j.mark and j.mark.key == key), key=_attempt_of, default=None)
    if job is not None and job.deleted:
        return _holding(prior or GateStatus(name=gate.name, key=key, state="Waiting"), look_again=_SOON)
    if job is not None:
        return _with_job(case, gate, key, job)
    if prior is not None and prior.state == "Running":
        return _cannot_run(seen, gate, key, prior.attempt or 1, "its Job is gone, and nobody knows what it found")
    left = _left(seen, prior)
    if prior is not None and left > 0:
        return _holding(prior, look_again=left)
    stable = status.stable or ""
    why = _not_now(seen, status, candidate, stable)
    if why is not None:
        return _waits(gate, key, prior, why)
    attempt = (prior.attempt if prior else None) or 1
    mark = JobMark(gate=gate.name, key=key, revision=candidate, stable=stable, attempt=attempt)
    wanted = job_object(seen.deployment, gate, mark, seen.settings)
    state = GateStatus(name=gate.name, key=key, state="Waiting", message="its Job is being made", attempt=attempt)
    return _holding(state, job=wanted["metadata"]["name"], actions=(Apply(wanted),), look_again=_SOON)


def _attempt_of(job: GateJob) -> int:
    return job.mark.attempt if job.mark else 0


def _with_job(case: _Case, gate: Gate, key: str, job: GateJob) -> Gating:
    """The state of a gate whose Job is there."""
    seen, found, attempt = case.seen, case.found, _attempt_of(job)
    looked = seen.gates
    assert looked is not None, "there are no Jobs where nobody has looked"  # noqa: S101
    if job.name in found.ended:
        return _cannot_run(seen, gate, key, attempt, found.ended[job.name])
    if job.report is not None:
        # what it found counts no more: it was begun before somebody asked for another try
        return _cannot_run(seen, gate, key, attempt, "it is run again, as was asked for", at_once=True)
    missing = () if job.told else companions(seen.deployment, gate, job, looked.token, seen.settings)
    words = f"its pod does not start: {job.waits_for}" if job.waits_for else ""
    state = GateStatus(
        name=gate.name, key=key, state="Running", message=clipped(words), attempt=attempt,
        started_at=job.started or job.created or seen.stamp,
        progress=next_progress(seen, job.uid, _prior(seen).get(key)),
    )  # fmt: skip
    return _holding(
        state, job=job.name, actions=tuple(Apply(o) for o in missing), look_again=_SOON if missing else _LOOK
    )


def _cannot_run(seen: Seen, gate: Gate, key: str, attempt: int, why: str, *, at_once: bool = False) -> Gating:
    delay = 0.0 if at_once else min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 10))
    state = GateStatus(
        name=gate.name, key=key, state="CannotRun", message=clipped(why, 600), attempt=attempt + 1,
        retry_at=rfc3339(seen.now + timedelta(seconds=delay)),
    )  # fmt: skip
    return _holding(state, look_again=max(_SOON, delay))


def _left(seen: Seen, prior: GateStatus | None) -> float:
    """Seconds until the gate may be tried again."""
    moment = parsed_time(prior.retry_at if prior else None)
    return 0.0 if moment is None else min(LONGEST_DELAY, (moment - seen.now).total_seconds())


def _not_now(seen: Seen, status: RolloutStatus, candidate: str, stable: str) -> str | None:
    if seen.rollout.paused or status.paused:
        return "the rollout is paused"
    if not seen.ready[candidate]:
        return f"{candidate} has no ready pod yet"
    if not seen.ready.get(stable):
        return f"stable revision {stable} has no ready pod to compare with"
    return None


def _waits(gate: Gate, key: str, prior: GateStatus | None, why: str) -> Gating:
    attempt = prior.attempt if prior else None
    return _holding(GateStatus(name=gate.name, key=key, state="Waiting", message=clipped(why), attempt=attempt))


def _holding(
    state: GateStatus, *, job: str | None = None, actions: tuple[Action, ...] = (), look_again: float | None = None
) -> Gating:
    """The gate holds the candidate."""
    words = f"gate {state.name}"
    if state.state == "Running":
        told = f", {state.progress.done} of {state.progress.total} done" if state.progress else ""
        words += f" runs since {state.started_at}{told}" + (f" ({state.message})" if state.message else "")
    elif state.state == "CannotRun":
        words += f" cannot run: {state.message}; run {state.attempt} at {state.retry_at}"
    else:
        words += f" waits: {state.message}" if state.message else " waits"
    reason = Reason.GATE_CANNOT_RUN if state.state == "CannotRun" else Reason.GATING
    return Gating(False, (state,), held=Problem(reason, words), job=job, actions=actions, look_again=look_again)
