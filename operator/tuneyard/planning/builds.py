"""How a build goes on: its inputs are found, a Job makes it, and what came of that is written down once. Pure.

Rules:
- a build is decided by its key. Once that stands in the status and its task is there, later changes of the inputs
  change nothing of it; what was built is never built again;
- attempts are numbered, and each has a Job of its own name: which one is due follows from the status, without one from
  the Jobs that are there;
- after a failure it is tried again: RETRIES times soon, then now and then, because what was wrong may have been mended
  outside. Whoever deletes the Job of the attempt that failed wants the next one at once;
- Jobs that are not of this build, or of attempts before the last, go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import Build
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.buildtask import BuildResult, TaskStep, UsedInput
from tuneyard.api.reasons import Reason, reason_of
from tuneyard.planning.buildchecks import violation
from tuneyard.planning.buildinputs import FoundInput, Surroundings, adapter_of_another_base, found_inputs
from tuneyard.planning.buildjobs import job_object, task_object
from tuneyard.planning.buildkeys import served_steps, task_steps
from tuneyard.planning.buildobservations import BuildJob, BuildMark, BuildObservation
from tuneyard.planning.children import as_applied
from tuneyard.planning.observations import BaseModelObservation, ChildObservation, Problem
from tuneyard.planning.plan import Action, Apply, Delete, Event, ObjectReference
from tuneyard.planning.remedies import clipped
from tuneyard.planning.timestamps import parsed_time, rfc3339

RETRIES = 3
_PODLESS = 60.0
"""Seconds after which a Job without a pod will not have one by itself: its controller takes a few, and then writes only
events of what refuses the pod."""
_CONTAINERLESS = 300.0
"""Seconds of a pod without a container, of which events alone tell too; a large image may take them as well."""
LOOK = 5.0
"""Seconds between two looks at a Job that runs, and at what a build waits for."""
_FIRST_DELAY, _LONGEST_DELAY = 10.0, 600.0
_NOW_AND_THEN = 3600.0
"""Seconds to the next attempt when all retries are used up."""
_DAILY = 86400.0
"""The same of a task that fails again whenever it is run."""


@dataclass(frozen=True)
class Building:
    """What to do for a build now, and what to say of it."""

    status: BuildStatus | None = None
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    wait: float | None = None
    """Seconds to the next look."""
    problem: Problem | None = None
    work: Problem | None = None
    result: BuildResult | None = None
    """Of an attempt that has just succeeded."""

    @property
    def done(self) -> bool:
        """Whether there is nothing to build, or nothing any more."""
        return self.status is None or self.status.succeeded


@dataclass(frozen=True)
class _Task:
    """What is to be built, where that is known."""

    steps: list[TaskStep]
    inputs: tuple[FoundInput, ...]

    @property
    def key(self) -> str:
        return self.steps[-1].key


def next_building(obs: BaseModelObservation, base: BaseModelResource, mine: Iterable[ChildObservation]) -> Building:
    """What to do for the base's build now; nothing where its source is none, or where it has succeeded."""
    build, before = base.spec.source.build, base.status.build
    if build is None or (before is not None and before.succeeded):
        return Building(status=before if build is not None else None)
    if obs.build is None:
        return Building(status=before or BuildStatus(state="Waiting"), wait=0.0)
    refused = violation(build)
    if refused is not None:
        # of one that has begun: what may change was changed to what cannot be, and is put right
        told = BuildStatus(state="Waiting", progress=clipped(refused.message))
        return Building(before if before is not None and before.key else told, problem=refused)
    task = _task(obs, base, build, obs.build)
    children = list(mine)
    begun = before.key if before and before.key and _is_there(base, before.key, children, obs.build) else None
    if begun is None and isinstance(task, Problem):
        return _waiting(task)
    key = begun or (task.key if isinstance(task, _Task) else "")
    usable = task if isinstance(task, _Task) and task.key == key else None
    now = _Attempting(obs, base, build, obs.build, key, usable, children)
    return now.building(before if before is not None and before.key == key else None)


def _task(obs: BaseModelObservation, base: BaseModelResource, build: Build, seen: BuildObservation) -> _Task | Problem:
    bases = {b.metadata.name: b for b in obs.siblings}
    adapters = {a.metadata.name: a for a in seen.adapters}
    around = Surroundings(bases, adapters, seen.calibrations, obs.settings)
    wrong = adapter_of_another_base(build, around)
    found = wrong or found_inputs(base, build, around)
    return found if isinstance(found, Problem) else _Task(task_steps(served_steps(base, build), found), found)


def _is_there(base: BaseModelResource, key: str, mine: Iterable[ChildObservation], seen: BuildObservation) -> bool:
    """Whether a build of this key has begun: then it goes on, whatever has become of its inputs."""
    name = names.build_task(base.metadata.name, key)
    return any(c.name == name and not c.deleted for c in mine) or any(j.mark and j.mark.key == key for j in seen.jobs)


def _waiting(problem: Problem) -> Building:
    status = BuildStatus(state="Waiting", progress=clipped(problem.message))
    if problem.reason is Reason.BUILD_PENDING:
        return Building(status, wait=LOOK, work=problem)
    return Building(status, wait=3 * LOOK, problem=problem)


@dataclass(frozen=True)
class _Attempting:
    """One look at a build of which it is known what it is."""

    obs: BaseModelObservation
    base: BaseModelResource
    build: Build
    seen: BuildObservation
    key: str
    task: _Task | None
    """None: its inputs are not what they were when it began."""
    mine: list[ChildObservation]

    def building(self, before: BuildStatus | None) -> Building:
        """`before`: what the status says of this key."""
        attempt = (before.attempt if before else None) or self._last_attempt()
        jobs = [j for j in self.seen.jobs if j.mark is not None and j.mark.key == self.key]
        job = next((j for j in jobs if j.mark and j.mark.attempt == attempt and not j.deleted), None)
        last = next((j for j in jobs if j.mark and j.mark.attempt == attempt - 1 and not j.deleted), None)
        # an older attempt's pod holds its volume: with a quota for one the next attempt's would never start
        holds = job is not None and self.build.scratch is not None and self.build.scratch.storage_class is not None
        kept = {j.name for j in (job, None if holds else last) if j is not None}
        strays = [_deletion(self.base, j) for j in self.seen.jobs if j.name not in kept and not j.deleted]
        found = self._with(attempt, before, job, last)
        return replace(found, actions=(*strays, *found.actions))

    def _with(self, attempt: int, before: BuildStatus | None, job: BuildJob | None, last: BuildJob | None) -> Building:
        status = self._status(attempt, before)
        if self._is_going(attempt):
            # an apply would land on a dying object
            told = status.model_copy(update={"progress": "its Job was deleted; the attempt starts anew"})
            return Building(told, wait=LOOK, work=Problem(Reason.BUILD_PENDING, told.progress or ""))
        if job is None:
            left = self._left(before) if last is not None else 0.0
            if before is not None and before.state == "Failed" and left > 0:
                return self._failed(before, left)
            return self._start(status, attempt)
        status = status.model_copy(update={"job": job.name, "retry_at": None})
        if job.result is not None and job.result.error is None and job.result.digest is not None:
            wrong = self._other_bytes(job.result.digest)
            return self._after(status, job, wrong) if wrong else self._succeeded(status, job.result)
        if job.ended is not None or job.result is not None:
            return self._after(status, job, None)
        return self._running(status, job)

    def _last_attempt(self) -> int:
        return max((j.mark.attempt for j in self.seen.jobs if j.mark and j.mark.key == self.key), default=1)

    def _is_going(self, attempt: int) -> bool:
        name = names.build_job(self.base.metadata.name, self.base.metadata.uid, self.key, attempt)
        return any(j.name == name and j.deleted for j in self.seen.jobs)

    def _status(self, attempt: int, before: BuildStatus | None) -> BuildStatus:
        inputs = self.task.inputs if self.task else ()
        used = [UsedInput(kind=i.told.kind, name=i.told.name, digest=i.told.digest) for i in inputs if i.told.digest]
        return BuildStatus(
            state="Running",
            key=self.key,
            attempt=attempt,
            output=self.build.output.place(self.key),
            started_at=(before.started_at if before else None) or rfc3339(self.obs.now),
            inputs=used or (before.inputs if before else None),
        )

    def _left(self, before: BuildStatus | None) -> float:
        due = parsed_time(before.retry_at) if before and before.retry_at else None
        return (due - self.obs.now).total_seconds() if due else 0.0

    def _start(self, status: BuildStatus, attempt: int) -> Building:
        """The next attempt's Job, after what tells it what to do."""
        if self.task is None:
            words = "an input is not what it was when the build began, and no attempt of it is under way"
            return _waiting(Problem(Reason.BUILD_INPUT_MISSING, words))
        mark = BuildMark(key=self.key, attempt=attempt)
        task = task_object(self.base, self.build, self.task.steps, self.task.inputs)
        job = job_object(self.base, self.build, mark, self.task.inputs, self.obs.settings)
        there = next((c for c in self.mine if c.kind == "ConfigMap" and c.name == task["metadata"]["name"]), None)
        needed = there is None or not as_applied(there, task)
        kinds = " → ".join(s.step.kind or "?" for s in self.task.steps)
        words = f"attempt {attempt} of {kinds} into {self.build.output.place(self.key)}"
        name = job["metadata"]["name"]
        started = status.model_copy(update={"job": name, "progress": "its pod starts", "step": self._step(0)})
        return Building(
            started,
            actions=(*([Apply(task)] if needed else []), Apply(job)),
            events=(Event("Normal", Reason.BUILD_STARTED, clipped(words), self._about()),),
            wait=LOOK,
            work=Problem(Reason.BUILD_RUNNING, f"{words}: its pod starts"),
        )

    def _running(self, status: BuildStatus, job: BuildJob) -> Building:
        report = job.report if job.runs else None
        step, before = self._step(report.step if report else 0), f"; {job.disrupted}" if job.disrupted else ""
        waits = f"its pod waits: {job.waits_for}" if job.waits_for is not None else self._does_not_run(job)
        if waits is not None:
            words = f"{waits}{before}"
            told = status.model_copy(update={"step": step, "progress": clipped(words)})
            return Building(told, wait=LOOK, work=Problem(Reason.BUILD_PENDING, told.progress or ""))
        words = "its pod starts"
        if report is not None:
            percent = f" {report.percent} %" if report.percent is not None else ""
            more = f": {report.message}" if report.message else ""
            words = f"{report.phase.lower()}{percent}{more}"
        words += before
        told = status.model_copy(update={"step": step, "progress": clipped(words)})
        return Building(told, wait=LOOK, work=Problem(Reason.BUILD_RUNNING, f"step {step}: {words}"))

    def _does_not_run(self, job: BuildJob) -> str | None:
        """What to say of a Job without a pod, or whose pod has no container, once they had time to come."""
        since = parsed_time(job.created)
        age = 0.0 if since is None else (self.obs.now - since).total_seconds()
        if job.runs or age < (_CONTAINERLESS if job.has_pod else _PODLESS):
            return None
        if job.has_pod:
            why = "a volume that another node holds, a folder that the node lacks, an image that is long in coming"
            return f"its pod has not started: `kubectl describe pod -l job-name={job.name}` says why ({why})"
        why = "a quota, Pod Security, a LimitRange, a webhook"
        return f"it has no pod: `kubectl describe job {job.name}` says why ({why})"

    def _step(self, number: int) -> str:
        steps = self.build.steps
        number = min(number, len(steps) - 1)
        return f"{number + 1}/{len(steps)} {steps[number].kind or '?'}"

    def _other_bytes(self, digest: str) -> Problem | None:
        wanted = self.base.spec.digest
        if wanted is None or wanted == digest:
            return None
        return Problem(Reason.DIGEST_MISMATCH, f"what was built has digest {digest}, spec.digest is {wanted}")

    def _succeeded(self, status: BuildStatus, result: BuildResult) -> Building:
        # what must be served by a commit is nowhere without it
        if self.build.output.source(self.key, result.commit) is None:
            lacking = Problem(Reason.BUILD_FAILED, "the result names no commit of the repository it was written to")
            return self._again(status, lacking, final=True)
        done = status.model_copy(
            update={
                "state": "Succeeded",
                "finished_at": rfc3339(self.obs.now),
                "commit": result.commit,
                "inputs": result.inputs or status.inputs,
                "steps": result.steps,
            }
        )
        words = f"built {done.output}: {result.digest}"
        return Building(
            done,
            events=(Event("Normal", Reason.BUILD_SUCCEEDED, clipped(words), self._about()),),
            wait=0.0,
            result=result,
        )

    def _after(self, status: BuildStatus, job: BuildJob, wrong: Problem | None) -> Building:
        """An attempt that has failed."""
        error = job.result.error if job.result else job.ended
        reason = reason_of(job.result.reason or "") if job.result else None
        problem = wrong or Problem(reason or Reason.BUILD_FAILED, error or "its process said nothing")
        return self._again(status, problem, final=job.final or wrong is not None)

    def _again(self, status: BuildStatus, problem: Problem, *, final: bool) -> Building:
        attempt = status.attempt or 1
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt - 1, 10))
        delay = _DAILY if final else delay if attempt <= self._retries else _NOW_AND_THEN
        due = rfc3339(self.obs.now + timedelta(seconds=delay))
        told = status.model_copy(
            update={
                "state": "Failed",
                "attempt": attempt + 1,
                "retry_at": due,
                "final": True if final else None,
                "progress": clipped(f"{problem.reason.value}: attempt {attempt}: {problem.message}"),
            }
        )
        building = self._failed(told, delay)
        if building.problem is not None:
            return building  # the condition's own event tells of it
        event = Event("Warning", Reason.BUILD_FAILED, clipped(told.progress or ""), self._about())
        return replace(building, events=(event,))

    def _failed(self, status: BuildStatus, left: float) -> Building:
        """Between two attempts. It needs somebody where the next one is not soon."""
        words = f"{status.progress or 'it failed'}; the next attempt is due at {status.retry_at}"
        if status.final or (status.attempt or 1) - 1 > self._retries:
            return Building(status, wait=min(left, 10 * LOOK), problem=Problem(Reason.BUILD_FAILED, words))
        return Building(status, wait=min(left, LOOK), work=Problem(Reason.BUILD_PENDING, words))

    @property
    def _retries(self) -> int:
        return RETRIES if self.build.retries is None else self.build.retries

    def _about(self) -> ObjectReference:
        meta = self.base.metadata
        return ObjectReference(names.API_VERSION, "BaseModel", meta.namespace, meta.name, meta.uid)


def _deletion(base: BaseModelResource, job: BuildJob) -> Delete:
    return Delete("batch/v1", "Job", base.metadata.namespace, job.name, job.uid, job.resource_version)
