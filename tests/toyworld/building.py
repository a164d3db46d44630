"""Builds in memory: what the API server would hold of their Jobs, what pods leave behind, and what is at outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.builders import Situation, digest
from tests.toyworld.world import World
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.buildtask import BuildReport, BuildResult, BuildTask, StepRecord, UsedInput
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.planning.buildjobs import TASK_FILE
from tuneyard.planning.buildobservations import BuildObservation, looked_at
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.plan import Annotate, Apply, Delete

Json = dict[str, Any]
Fault = Literal["fails", "final", "evicted", "silent"]


@dataclass
class ToyJob:
    """A Job and its pod. `step` 0: it is made, 1: its pod runs, 2: it has ended."""

    obj: Json
    uid: str
    version: int
    step: int = 0
    message: str = ""
    code: int = 0
    evicted: int = 0

    @property
    def task(self) -> str:
        volumes = self.obj["spec"]["template"]["spec"]["volumes"]
        return str(next(v["configMap"]["name"] for v in volumes if v["name"] == "task"))

    def seen(self) -> Json:
        """The Job as the API server returns it."""
        stored = {"uid": self.uid, "resourceVersion": str(self.version)}
        over = {"type": "Failed" if self.code else "Complete", "status": "True"}
        status = {"conditions": [over]} if self.step > 1 else {}
        return {**self.obj, "metadata": {**self.obj["metadata"], **stored}, "status": status}

    def pod(self) -> Json:
        """Its newest pod."""
        report = json.dumps(BuildReport(step=0, phase="Building", percent=50).to_dict())
        running = {"running": {"startedAt": "2026-01-01T12:00:00Z"}}
        ended = {"terminated": {"exitCode": self.code, "reason": "Completed", "message": self.message}}
        states = [{"waiting": {"reason": "ContainerCreating"}}, running, ended]
        metadata = {
            "name": f"{self.obj['metadata']['name']}-{self.evicted}",
            "creationTimestamp": f"2026-01-01T12:00:{self.evicted:02d}Z",
            "annotations": {names.ANNOTATION_ADAPTERS: report} if self.step else {},
            "ownerReferences": [{"kind": "Job", "uid": self.uid}],
        }
        return {"metadata": metadata, "status": {"containerStatuses": [{"name": "build", "state": states[self.step]}]}}


class BuildWorld(World):
    """The toy world, with Jobs of builds in it."""

    def __init__(self) -> None:
        self.jobs: dict[str, ToyJob] = {}
        self.outputs: dict[str, str] = {}
        """Digest of what is there, by key."""
        self.made: Counter[str] = Counter()
        """How often each was really built."""
        self.faults: list[Fault] = []
        """What becomes of the next pods."""
        super().__init__()

    def execute(self, action: Apply | Annotate | Delete) -> None:
        if isinstance(action, Apply) and action.object["kind"] == "Job":
            name = action.object["metadata"]["name"]
            if name not in self.jobs:
                self.jobs[name] = ToyJob(json.loads(json.dumps(action.object)), f"job-{self.number()}", self.number())
                self.changed()
        elif isinstance(action, Delete) and action.kind == "Job":
            known = self.jobs.get(action.name)
            if known is not None and known.uid == action.uid:
                del self.jobs[action.name]
                self.changed()
        else:
            super().execute(action)

    def lose_jobs(self) -> None:
        """Somebody deletes all Jobs."""
        if self.jobs:
            self.jobs.clear()
            self.changed()

    def collect_garbage(self) -> None:
        super().collect_garbage()
        living = {r.metadata.uid for r in self.resources.values()}
        gone = [n for n, j in self.jobs.items() if j.obj["metadata"]["ownerReferences"][0]["uid"] not in living]
        for name in gone:
            del self.jobs[name]
            self.changed()

    def move_pods(self) -> None:
        super().move_pods()
        for job in self.jobs.values():
            config = self.objects.get(("ConfigMap", job.task))
            if job.step > 1 or (job.step == 0 and config is None):
                continue
            if job.step == 0:
                job.step = 1
            else:
                self._ends(job, BuildTask.model_validate_json(config.obj["data"][TASK_FILE]) if config else None)
            job.version = self.number()
            self.changed()

    def _ends(self, job: ToyJob, task: BuildTask | None) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "evicted" or task is None:
            job.step, job.evicted = 0, job.evicted + 1
            return
        job.step, job.code = 2, {"fails": 1, "final": 2, "silent": 137}.get(fault or "", 0)
        if fault == "silent":
            return
        if fault is not None:
            job.message = BuildResult(key=task.key, error="no room").shortened()
            return
        if task.key not in self.outputs:
            self.made[task.key] += 1
            self.outputs[task.key] = digest(task.key)
        inputs = [UsedInput(kind=i.kind, name=i.name, digest=i.digest) for i in task.inputs if i.digest]
        steps = [StepRecord(kind=s.step.kind, key=s.key, digest=digest(s.key)) for s in task.steps if s.step.kind]
        result = BuildResult(
            key=task.key, digest=self.outputs[task.key], size_bytes=1000, steps=steps, inputs=inputs, commit=None
        )
        job.message = result.shortened()

    def situation(self) -> Situation:
        found = super().situation()
        found = replace(found, pods=tuple(self._reading(p) for p in found.pods))
        return replace(found, builds=self._builds(found.adapters))

    def _reading(self, pod: PodObservation) -> PodObservation:
        """Pods of what was built read what is at its output."""
        base = self.resources.get(("BaseModel", pod.base_model))
        built = isinstance(base, BaseModelResource) and base.spec.source.build is not None
        if not built or pod.base_report is None:
            return pod
        (made,) = self.outputs.values()
        return replace(pod, base_report=pod.base_report.model_copy(update={"digest": made}))

    def _builds(self, adapters: tuple[LoRAAdapterResource, ...]) -> Mapping[str, BuildObservation]:
        """Everything that there is of each; who has nothing to build does not look."""
        found: dict[str, BuildObservation] = {}
        for base in self.of_kind("BaseModel"):
            status = base.status.build
            if base.spec.source.build is None or (status is not None and status.succeeded):
                continue
            mine = [j for j in self.jobs.values() if _owner(j) == base.metadata.uid]
            jobs = looked_at([j.seen() for j in mine], [j.pod() for j in mine])
            found[base.metadata.name] = BuildObservation(jobs=jobs, adapters=adapters)
        return found


def _owner(job: ToyJob) -> str:
    return str(job.obj["metadata"]["ownerReferences"][0]["uid"])
