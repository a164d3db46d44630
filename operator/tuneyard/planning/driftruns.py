"""The evaluation of stable over days: when it is run again, by which Job, and what its scores say.

Rules:
- it is the Job of the evaluation gate, with stable in the candidate's place: same prompts, same token, no more rights;
- what runs found is kept in the ConfigMap of the reports, under a hash of the contents and of the evaluation without
  its limits. What is told of them follows from there, so a lost status loses nothing, and nothing is run twice for it;
- the baseline is the first result of these contents with these prompts, also that of the gate itself. Other prompts are
  noticed by their digest and begin a baseline of their own: their scores say nothing beside the old ones;
- it drifts when a mean score is more than maxDrop below the baseline's, until it is not even half of that below;
- runs of many deployments are spread: each has a moment of its own in every hour, at which alone runs begin. So also
  those that are late (no operator ran, a rollout was under way) do not all come at once;
- while a rollout is under way nothing is run, and a run that is under way ends;
- a run that finds nothing is tried again with growing delays, says nothing of stable, and leaves what is known;
- a run is over in the status only when its result is kept, and Running stays there until a look shows no Job, so that
  somebody looks: also where nothing is asked for any more, and where a Job could not be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tuneyard.api import names
from tuneyard.api.drift import DEFAULT_EVERY, DEFAULT_MAX_DROP, EvaluationDrift, EvaluationDriftStatus
from tuneyard.api.gatereports import DriftRun, GateReports
from tuneyard.api.gates import Gate
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.schema import seconds
from tuneyard.planning.gatejobs import companions, gate_key, job_object, reports_object, timeout
from tuneyard.planning.gatejudging import number
from tuneyard.planning.gateobservations import GateJob, GateObservation, JobMark
from tuneyard.planning.gates import FIRST_DELAY, LONGEST_DELAY, under_way
from tuneyard.planning.plan import Action, Apply, Delete
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

MAX_RUNS = 60
"""Kept of one deployment, besides the first of each baseline; each is some 400 bytes."""
_MAX_BASELINES = 8
SPREAD = 3600
"""Seconds over which runs of many deployments are spread."""
_PUNCTUAL = 12
"""A run begins in this part of its time at most."""
_GRACE = 120.0
_AT_ONCE, _SOON, _LOOK = 0.1, 1.0, 2.0
_MANY = 10
"""Tries after which the longest delay is due."""


@dataclass(frozen=True)
class Runs:
    """Where the evaluation of stable stands, and what should be done for it."""

    status: EvaluationDriftStatus | None = None
    actions: tuple[Action, ...] = ()
    look_again: float | None = None


@dataclass(frozen=True)
class _Case:
    """Stable, and the evaluation that is asked for."""

    seen: Seen
    looked: GateObservation
    spec: EvaluationDrift
    gate: Gate
    revision: str
    content_hash: str
    key: str
    prior: EvaluationDriftStatus | None

    @property
    def kept(self) -> tuple[DriftRun, ...]:
        """What was found of these contents, the gate's own result first."""
        reports = self.looked.reports or GateReports(deployment="")
        mine = [r for r in reports.drift if r.key == self.key]
        return tuple(mine if mine else self._from_gate(reports))

    def _from_gate(self, reports: GateReports) -> list[DriftRun]:
        """What the candidate's gate found before these contents had traffic."""
        wanted = gate_key(self.content_hash, self.gate)
        return [
            self.run(r.at, r.report.evaluation.prompts, r.report.evaluation.prompts_digest, r.report.evaluation.scores)
            for r in reports.results
            if r.key == wanted and r.report and r.report.evaluation and r.report.evaluation.prompts_digest
        ]

    def run(self, at: str, prompts: int, digest: str, scores: dict[str, float]) -> DriftRun:
        """A result of these contents."""
        return DriftRun(
            key=self.key, at=at, revision=self.revision, content_hash=self.content_hash, gate=self.gate.name,
            prompts=prompts, prompts_digest=digest, scores=scores,
        )  # fmt: skip


def settled(rollout: RolloutStatus | None) -> bool:
    """Whether no rollout is under way: stable serves, and is nobody's rival."""
    return rollout is not None and rollout.phase in ("Completed", "RolledBack") and not under_way(rollout)


def wants_look(deployment: ModelDeploymentResource, now: datetime) -> bool:
    """Whether Jobs and reports have to be looked at now, as far as the stored status says."""
    stored = deployment.status.drift.evaluation if deployment.status.drift else None
    wanted = asked(deployment)
    if stored is not None and (stored.state == "Running" or wanted is None):
        return True
    if wanted is None or not settled(deployment.status.rollout):
        return False
    if deployment.status.observed_generation != deployment.metadata.generation:
        # another `every` may be due at once
        return True
    due = parsed_time(stored.next_at if stored else None)
    return due is None or due <= now


def asked(deployment: ModelDeploymentResource) -> tuple[EvaluationDrift, Gate] | None:
    """What the spec asks for, with the gate that it names."""
    rollout = deployment.spec.rollout
    spec = rollout.drift.evaluation if rollout and rollout.drift and deployment.spec.progressive else None
    if rollout is None or spec is None:
        return None
    return next(((spec, g) for g in rollout.gates or () if g.name == spec.gate and g.evaluation), None)


def drift_key(content_hash: str, gate: Gate) -> str:
    """Hash of a revision's contents and of all of an evaluation that decides its scores."""
    evaluation = gate.evaluation.to_dict() if gate.evaluation else {}
    return names.short_hash(content_hash, json.dumps(evaluation | {"min": None}, sort_keys=True), length=16)


def next_start(place: str, every: int, last: datetime | None, now: datetime) -> datetime:
    """When the next run begins, at the earliest now; `place` decides which moment of the hour is its own."""
    length = min(SPREAD, every)
    phase = int(names.short_hash(place), 16) % length

    def number_of(moment: datetime) -> int:
        return int((moment.timestamp() - phase) // length)

    here = number_of(now)
    first = here if last is None else max(here, number_of(min(last, now)) + -(-every // length))
    start = datetime.fromtimestamp(first * length + phase, UTC)
    if first > here:
        return start
    late = (now - start).total_seconds() > length / _PUNCTUAL
    return start + timedelta(seconds=length) if late else now


def plan_runs(seen: Seen, looked: GateObservation | None, rollout: RolloutStatus) -> Runs:
    """Where the evaluation of stable stands now."""
    stored = seen.deployment.status.drift.evaluation if seen.deployment.status.drift else None
    jobs = looked.drift if looked else ()
    wanted, stable = asked(seen.deployment), rollout.stable or ""
    content = seen.hashes.get(stable)
    gone = _removed(seen, jobs)
    if wanted is None:
        return Runs(stored, gone, _LOOK) if gone else Runs()
    key = drift_key(content, wanted[1]) if content else ""
    prior = stored if stored is not None and stored.key == key else None
    before = prior or EvaluationDriftStatus(key=key, state="Waiting")
    if not settled(rollout) or not content:
        waits = EvaluationDriftStatus(
            key=key, state="Running" if gone else "Waiting", drifting=before.drifting, message=before.message
        )
        return Runs(waits, gone, _LOOK if gone else None)
    if looked is None or under_way(seen.deployment.status.rollout):
        # nobody has looked, or the reports are being written for a gate
        known = before.model_copy(update={"next_at": before.next_at or seen.stamp})
        return Runs(known, look_again=max(_AT_ONCE, _left(known.next_at, seen) or 0.0))
    case = _Case(seen, looked, *wanted, stable, content, key, prior)
    if looked.foreign:
        taken = (
            f"ConfigMap {names.gate_reports(seen.deployment.metadata.name)} is not the operator's: no result is kept"
        )
        return _cannot_run(case, _MANY, taken, gone)
    return _watched(case)


def _watched(case: _Case) -> Runs:
    """Takes in what Jobs have brought; one run is under way at most."""
    known = {r.at for r in case.kept}
    mine = [j for j in case.looked.drift if j.mark and j.mark.drift == case.key and not j.deleted]
    current = max(
        (j for j in mine if _mark(j).began not in known), key=lambda j: (_mark(j).began or "", j.name), default=None
    )
    others = _removed(case.seen, (j for j in case.looked.drift if j is not current))
    begun = case.prior is not None and case.prior.state == "Running" and case.prior.started_at is not None
    if current is None and case.prior is not None and begun and not _was_kept(case):
        attempt = case.prior.attempt or 1
        return _cannot_run(case, attempt, "its Job is gone, and nobody knows what it found", others)
    if current is not None:
        return _with_job(case, current, others)
    return _due(case, others)


def _was_kept(case: _Case) -> bool:
    """Whether the run that the status speaks of is kept."""
    return case.prior is not None and any(r.at == case.prior.started_at for r in case.kept)


def _with_job(case: _Case, job: GateJob, others: tuple[Action, ...]) -> Runs:
    seen, mark = case.seen, _mark(job)
    state = _told(case).model_copy(update={"state": "Running", "attempt": mark.attempt, "started_at": mark.began})
    found = job.report.evaluation if job.report else None
    began = parsed_time(mark.began)
    if found is not None and found.prompts_digest and mark.began:
        run = case.run(mark.began, found.prompts, found.prompts_digest, found.scores)
        run = run.model_copy(update={"samples": job.report.samples if job.report else []})
        return Runs(state, (*others, Apply(_reports(case, run))), _AT_ONCE)
    why = (job.report.cannot_run or "its report holds no numbers") if job.report else job.ended
    if why is None and (began is None or remaining(began, timeout(case.gate) + _GRACE, seen.now) <= 0):
        why = f"it has not ended within its timeout of {timeout(case.gate)} s"
    if why is not None:
        return _cannot_run(case, mark.attempt, why, (*others, *_removed(seen, [job])))
    missing = () if job.told else companions(seen.deployment, case.gate, job, case.looked.token, seen.settings)
    if job.waits_for:
        state = state.model_copy(update={"trouble": clipped(f"its pod does not start: {job.waits_for}")})
    return Runs(state, (*others, *(Apply(o) for o in missing)), _SOON if missing else _LOOK)


def _due(case: _Case, others: tuple[Action, ...]) -> Runs:
    """Begins a run when it is time for it."""
    seen, told = case.seen, _told(case)
    place, every = "/".join(seen.deployment.metadata.key), seconds(case.spec.every or DEFAULT_EVERY)
    last = parsed_time(case.kept[-1].at if case.kept else None)
    start = next_start(place, every, last, seen.now)
    if case.prior is not None and case.prior.state == "CannotRun":
        left = min(LONGEST_DELAY, _left(case.prior.next_at, seen) or 0.0)
        if left > 0:
            return Runs(case.prior, others, left)
        start = seen.now
    if start > seen.now:
        # a second later than that: moments are stored in whole ones
        start += timedelta(seconds=1)
        update = {"next_at": rfc3339(start), "state": "Running" if others else "Waiting"}
        return Runs(told.model_copy(update=update), others, _LOOK if others else (start - seen.now).total_seconds())
    if not seen.ready.get(case.revision):
        again = min(SPREAD, every)
        words = clipped(f"{told.message}; the next run waits for a pod of {case.revision}")
        waiting = {"next_at": rfc3339(seen.now + timedelta(seconds=again)), "message": words}
        return Runs(told.model_copy(update=waiting), others, float(again))
    attempt = (case.prior.attempt if case.prior else None) or 1
    hour = str(int(seen.now.timestamp() // min(SPREAD, every)))
    mark = JobMark(
        gate=case.gate.name, key=names.short_hash(case.key, hour, length=16), revision=case.revision,
        stable=case.revision, attempt=attempt, drift=case.key, began=seen.stamp,
    )  # fmt: skip
    made = job_object(seen.deployment, case.gate, mark, seen.settings)
    # without started_at: whether it is there, the next look tells
    state = told.model_copy(update={"state": "Running", "next_at": seen.stamp, "attempt": attempt})
    return Runs(state, (*others, Apply(made)), _SOON)


def _cannot_run(case: _Case, attempt: int, why: str, actions: tuple[Action, ...]) -> Runs:
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 10))
    update = {
        "state": "CannotRun",
        "trouble": clipped(why, 600),
        "attempt": attempt + 1,
        "next_at": rfc3339(case.seen.now + timedelta(seconds=delay)),
    }
    return Runs(_told(case).model_copy(update=update), actions, delay)


def _left(moment: str | None, seen: Seen) -> float | None:
    """Seconds until a moment that the status names."""
    found = parsed_time(moment)
    return None if found is None else (found - seen.now).total_seconds()


def _mark(job: GateJob) -> JobMark:
    assert job.mark is not None, "Jobs of stable are known by their mark"  # noqa: S101
    return job.mark


def _removed(seen: Seen, jobs: Iterable[GateJob]) -> tuple[Action, ...]:
    namespace = seen.deployment.metadata.namespace
    return tuple(Delete("batch/v1", "Job", namespace, j.name, j.uid, j.resource_version) for j in jobs if not j.deleted)


# -- what runs have found ---------------------------------------------------------------------------------------------


def _reports(case: _Case, run: DriftRun) -> dict[str, object]:
    """The ConfigMap with one more result, and the gate's own among the first."""
    deployment, reports = case.seen.deployment, case.looked.reports
    reports = reports or GateReports(deployment=deployment.metadata.name)
    older = [*(r for r in reports.drift if r.key != case.key), *case.kept]
    kept = bounded_runs([*(r.model_copy(update={"samples": []}) for r in older), run])
    return reports_object(deployment, reports.model_copy(update={"drift": kept}), case.seen.record)


def bounded_runs(runs: list[DriftRun]) -> list[DriftRun]:
    """The newest, and before them the first of each of the newest baselines."""
    runs = sorted(runs, key=lambda r: r.at)
    first: dict[tuple[str, str], DriftRun] = {}
    newest: dict[tuple[str, str], str] = {}
    for run in runs:
        first.setdefault((run.key, run.prompts_digest), run)
        newest[run.key, run.prompts_digest] = run.at
    stay = sorted(first, key=lambda k: newest[k])[-_MAX_BASELINES:]
    recent = runs[-MAX_RUNS:]
    return [*(r for r in runs[:-MAX_RUNS] if r in [first[k] for k in stay]), *recent]


def _told(case: _Case) -> EvaluationDriftStatus:
    """What the kept results say."""
    prior, kept = case.prior, case.kept
    found = EvaluationDriftStatus(key=case.key, state="Waiting", trouble=prior.trouble if prior else None)
    if not kept:
        return found.model_copy(update={"message": f"evaluation {case.gate.name} of {case.revision} has no result yet"})
    if prior is not None and prior.state == "Running" and _was_kept(case):
        found = found.model_copy(update={"trouble": None})
    drifting, words = compared_runs(kept, case.spec.max_drop or DEFAULT_MAX_DROP)
    return found.model_copy(update={"drifting": drifting, "message": clipped(f"evaluation {case.gate.name}: {words}")})


def compared_runs(kept: Iterable[DriftRun], most: float) -> tuple[bool, str]:
    """Whether the newest of the results, of which there is one at least, are below the first with the same prompts."""
    runs = list(kept)
    newest = runs[-1]
    same = [r for r in runs if r.prompts_digest == newest.prompts_digest]
    first, drifting = same[0], False
    for run in same[1:]:
        deepest = max(drops(first, run).values(), default=0.0)
        drifting = deepest > most or (drifting and deepest > most / 2)
    if newest is first:
        scores = ", ".join(f"{metric} {number(score, '')}" for metric, score in sorted(first.scores.items()))
        return False, f"{first.revision} had {scores} at {first.at}, the baseline"
    fallen = drops(first, newest)
    worst = max(fallen, key=lambda m: fallen[m], default="")
    told = [worst] if drifting else sorted(fallen)
    scores = ", ".join(f"{m} {number(newest.scores[m], '')} against {number(first.scores[m], '')}" for m in told)
    limit = f": {number(fallen[worst], '')} below, and maxDrop is {number(most, '')}" if drifting else ""
    return drifting, f"{newest.revision} has {scores} at {newest.at} and {first.at}{limit}"


def drops(first: DriftRun, run: DriftRun) -> dict[str, float]:
    """By score, how far it is below the first one."""
    return {m: round(first.scores[m] - s, 6) for m, s in run.scores.items() if m in first.scores}
