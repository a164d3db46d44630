"""The Jobs of gates in memory: what the API server would hold of them, and what their pods leave behind."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.builders import KEYS
from tuneyard.api import names
from tuneyard.api.documents import DemandReport, DeploymentDemand
from tuneyard.api.gatereports import BenchmarkNumbers, GateReport, GateReports, GateRun, GateTask, Side
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.gate.measures import times
from tuneyard.planning.demand import DemandView
from tuneyard.planning.driftruns import wants_look
from tuneyard.planning.gatejobs import TASK_FILE
from tuneyard.planning.gateobservations import REPORTS_KEY, GateObservation, looked_at
from tuneyard.planning.gates import under_way
from tuneyard.planning.plan import Apply, Delete, Redacted
from tuneyard.planning.timestamps import rfc3339

Json = dict[str, Any]

SPEED = {"name": "speed", "benchmark": {"max": {"ttftP95": "1.10x"}}}
QUALITY = {"name": "quality", "evaluation": {"prompts": {"configMap": "evals"}, "min": {"exactMatch": 0.8}}}


def measured(candidate: float, stable: float = 100.0) -> GateReport:
    """A benchmark that saw these 95th percentiles of the time to the first token."""

    def side(ttft: float) -> Side:
        return Side(requests=200, ttft=times([ttft] * 200))

    return GateReport(benchmark=BenchmarkNumbers(candidate=side(candidate), stable=side(stable)))


def _owners(obj: Json) -> list[str]:
    return [o["uid"] for o in obj["metadata"].get("ownerReferences", ())]


@dataclass
class Gates:
    """All objects of gates of one namespace."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    """By Job: the termination message of its pod."""
    lingering: list[Json] | None = None
    """Pods that are still there when their Job is gone; None: they go with it."""
    broken: bool = False
    """No Job can be made, or it is gone at once."""
    made: list[str] = field(default_factory=list)
    """Every Job that was ever made."""
    told: dict[str, GateRun] = field(default_factory=dict)
    """By gateway: the newest run that it knows of, and how far that was."""

    def takes(self, action: object) -> bool:
        """Whether an action is about gates."""
        if isinstance(action, Delete):
            return action.kind == "Job"
        return isinstance(action, Apply) and action.object["metadata"]["labels"].get(names.LABEL_COMPONENT) in (
            names.GATE,
            names.GATE_REPORTS,
        )

    def execute(self, action: object, now: datetime) -> None:
        if isinstance(action, Delete):
            self.remove(action.name)
        elif isinstance(action, Apply):
            obj = json.loads(json.dumps(action.object))
            kind, name = obj["kind"], obj["metadata"]["name"]
            if kind == "Job" and self.broken:
                return
            before = self.objects.get((kind, name))
            if kind == "Job" and before is None:
                self.made.append(name)
            fresh = {"uid": f"uid-{kind}-{len(self.made)}-{name}", "creationTimestamp": rfc3339(now)}
            known = before["metadata"] if before else fresh
            obj["metadata"] |= {field: known[field] for field in fresh}
            self.objects[kind, name] = obj

    def remove(self, job: str) -> None:
        """A Job goes, and what it owns."""
        if ("Job", job) not in self.objects:
            return
        if self.lingering is not None:
            self.lingering.append(self._pod(job))
        self.messages.pop(job, None)
        gone = self.objects["Job", job]["metadata"]["uid"]
        for key, obj in list(self.objects.items()):
            if key == ("Job", job) or gone in _owners(obj):
                del self.objects[key]

    def lose(self) -> None:
        """Somebody has deleted all Jobs."""
        for job in self.jobs:
            self.remove(job)

    def orphaned(self, uid: str) -> None:
        """A ModelDeployment goes, and its Jobs."""
        for job in self.jobs:
            if uid in _owners(self.objects["Job", job]):
                self.remove(job)

    @property
    def jobs(self) -> list[str]:
        return [name for kind, name in self.objects if kind == "Job"]

    @property
    def running(self) -> list[str]:
        """Jobs whose pod has all that it mounts and has not ended."""
        return [
            j
            for j in self.jobs
            if ("ConfigMap", j) in self.objects
            and ("Secret", names.gate_secret(j)) in self.objects
            and j not in self.messages
        ]

    def end(self, report: GateReport | str) -> None:
        """The pods of all running Jobs end."""
        text = report if isinstance(report, str) else json.dumps(report.to_dict())
        self.messages.update(dict.fromkeys(self.running, text))

    def is_at(self, gateway: str, done: int, total: int) -> None:
        """A gateway has seen a request of the gate that runs."""
        task = GateTask.model_validate_json(self.objects["ConfigMap", self.running[0]]["data"][TASK_FILE])
        self.told[gateway] = GateRun(job=task.job, done=done, total=total)

    def demand(self, deployment: ModelDeploymentResource) -> DemandView:
        """What gateways tell of it."""
        name = "/".join(deployment.metadata.key)
        reports = (
            DemandReport(gateway=gateway, version=1, deployments={name: DeploymentDemand(gate=run)})
            for gateway, run in self.told.items()
        )
        return DemandView(tuple(reports), len(self.told))

    @property
    def results(self) -> list[tuple[str, str, str]]:
        reports = next((o for (_, n), o in self.objects.items() if n == names.gate_reports("chat")), None)
        kept = GateReports.model_validate_json(reports["data"][REPORTS_KEY]).results if reports else []
        return [(r.revision, r.gate, r.outcome) for r in kept]

    def seen_by(self, deployment: ModelDeploymentResource, now: datetime) -> GateObservation | None:
        if not (under_way(deployment.status.rollout) or wants_look(deployment, now)):
            return None
        reports = self.objects.get(("ConfigMap", names.gate_reports(deployment.metadata.name)))
        of_gates = [o for o in self.objects.values() if o["metadata"]["labels"][names.LABEL_COMPONENT] == names.GATE]
        return looked_at(
            [o for o in of_gates if o["kind"] == "Job"],
            [*(self.lingering or ()), *(self._pod(j) for j in self.jobs)],
            [o for o in of_gates if o["kind"] == "ConfigMap"],
            reports=reports,
            token=Redacted(names.gate_token(KEYS.master, *deployment.metadata.key)),
        )

    def _pod(self, job: str) -> Json:
        message = self.messages.get(job)
        state = {"running": {}} if message is None else {"terminated": {"exitCode": 0, "message": message}}
        return {
            "metadata": {
                "labels": {"batch.kubernetes.io/job-name": job},
                "ownerReferences": [{"kind": "Job", "name": job, "uid": self.objects["Job", job]["metadata"]["uid"]}],
            },
            "status": {"containerStatuses": [{"name": "gate", "state": state}]},
        }
