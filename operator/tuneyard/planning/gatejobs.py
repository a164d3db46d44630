"""The objects of a gate: the Job that runs it, what its pod is told, and the ConfigMap that keeps what came of it.

Rules:
- the Job is made first and owns the rest, so that everything goes with it; its pod waits until it finds what it mounts;
- its pod may nothing: no API token, no privilege, nothing of the node. It asks the gateway like any client, with one
  secret of its own: the token by which gateways let it choose the revision;
- it is run once (no restarts): whether and when again is the operator's decision, from what it left behind;
- what people name in a gate (prompts, a judge's key) is mounted as optional: that it is missing is then said by the
  gate in its report, and not by a pod that waits without a word. Of a Secret only the keys meant for judges are.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from tuneyard.api import names
from tuneyard.api.gatereports import MAX_RESULTS, GateReports, GateResult, GateTask
from tuneyard.api.gates import DEFAULT_PROMPTS_KEY, DEFAULT_TIMEOUT, JUDGE_KEY, JUDGE_URL, Gate
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.schema import seconds
from tuneyard.planning.children import label_value, marked, owner
from tuneyard.planning.gateobservations import REPORTS_KEY, GateJob, JobMark
from tuneyard.planning.observations import ChildObservation
from tuneyard.planning.plan import Redacted
from tuneyard.planning.podparts import container, mount, requests, security_context
from tuneyard.planning.settings import Settings

Json = dict[str, Any]

FOLDER = "/etc/tuneyard-gate"
TASK_FILE, PROMPTS_FILE = "gate.json", "prompts.jsonl"
TOKEN = "token"  # noqa: S105
CONTAINER = "gate"
_KEPT_SECONDS = 3600
"""A finished Job that nobody has removed, because no operator runs, goes after that."""
_MEMORY = "512Mi"


def gate_key(content_hash: str, gate: Gate) -> str:
    """Hash of a revision's contents and of all that the gate says but its timeout, which decides no number."""
    text = json.dumps(gate.to_dict() | {"timeout": None}, sort_keys=True)
    return names.short_hash(content_hash, text, length=16)


def timeout(gate: Gate) -> int:
    """Seconds that one run may take."""
    return seconds(gate.timeout or DEFAULT_TIMEOUT)


def job_object(deployment: ModelDeploymentResource, gate: Gate, mark: JobMark, settings: Settings) -> Json:
    """The Job of one run."""
    name = names.gate_job(deployment.metadata.name, mark.key, mark.attempt)
    metadata = {
        **_metadata(name, deployment, owner(deployment)),
        "annotations": {names.ANNOTATION_GATE: json.dumps(mark.to_dict(), sort_keys=True)},
    }
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": max(1, timeout(gate)),
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "template": {
            "metadata": {"labels": _labels(deployment)},
            "spec": _pod(name, gate, settings),
        },
    }
    return marked({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def companions(
    deployment: ModelDeploymentResource, gate: Gate, job: GateJob, token: Redacted, settings: Settings
) -> tuple[Json, Json]:
    """What the pod of a Job mounts: its token and, last because it tells that all is there, its task."""
    mark = job.mark
    assert mark is not None, "a Job without a mark is nobody's, and goes"  # noqa: S101
    of_job = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}
    task = GateTask(
        gateway=settings.gateway_service.rstrip("/"),
        model=deployment.model_name,
        job=job.uid,
        candidate=mark.revision,
        stable=mark.stable,
        gate=gate.to_dict(),
    )
    # `str` of what is redacted would be the word for it
    secret = Redacted(base64.b64encode(token.encode()).decode())
    text = json.dumps(task.to_dict(), sort_keys=True)
    return (
        marked(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "metadata": _metadata(names.gate_secret(job.name), deployment, of_job),
                "data": {TOKEN: secret},
            }
        ),
        marked(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": _metadata(job.name, deployment, of_job),
                "data": {TASK_FILE: text},
            }
        ),
    )


def kept_reports(before: GateReports | None, deployment: str, results: list[GateResult]) -> GateReports:
    """The reports with these: of one key the newest, and of all the newest MAX_RESULTS."""
    new = {r.key for r in results}
    older = [r for r in (before.results if before else ()) if r.key not in new]
    drift = before.drift if before else []
    return GateReports(deployment=deployment, results=[*older, *results][-MAX_RESULTS:], drift=drift)


def reports_object(deployment: ModelDeploymentResource, reports: GateReports, record: ChildObservation | None) -> Json:
    """The ConfigMap of the results. It goes with the record of the verdicts, which outlives the deployment."""
    if record is not None and record.component == names.ROLLOUT_RECORD:
        kept_by = {"apiVersion": "v1", "kind": "ConfigMap", "name": record.name, "uid": record.uid}
    else:
        kept_by = owner(deployment)
    metadata = _metadata(names.gate_reports(deployment.metadata.name), deployment, kept_by)
    metadata["labels"][names.LABEL_COMPONENT] = names.GATE_REPORTS
    text = json.dumps(reports.to_dict(), sort_keys=True, separators=(",", ":"))
    return marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {REPORTS_KEY: text}})


def _labels(deployment: ModelDeploymentResource) -> dict[str, str]:
    """No label of a pool or a base: gateways and pools' objects look for those."""
    return {
        names.LABEL_NAME: "tuneyard-gate",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: names.GATE,
        names.LABEL_DEPLOYMENT: label_value(deployment.metadata.name),
    }


def _metadata(name: str, deployment: ModelDeploymentResource, owned_by: Json) -> Json:
    return {
        "name": name,
        "namespace": deployment.metadata.namespace,
        "labels": _labels(deployment),
        "ownerReferences": [owned_by],
    }


def _pod(name: str, gate: Gate, settings: Settings) -> Json:
    task = {"configMap": {"name": name, "items": [{"key": TASK_FILE, "path": TASK_FILE}]}}
    token = {"secret": {"secretName": names.gate_secret(name), "defaultMode": 0o440}}
    volumes: list[Json] = [{"name": "task", **task}, {"name": "token", **token}]
    mounts = [mount("task", f"{FOLDER}/task", read_only=True), mount("token", f"{FOLDER}/token", read_only=True)]
    for volume, source in _named(gate).items():
        volumes.append({"name": volume, **source})
        mounts.append(mount(volume, f"{FOLDER}/{volume}", read_only=True))
    spec: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": security_context(),
        "containers": [
            container(
                CONTAINER,
                settings.images.tuneyard,
                settings,
                command=["tuneyard", "gate"],
                args=["--folder", FOLDER],
                resources={**requests("100m", "128Mi"), "limits": {"memory": _MEMORY}},
                volumeMounts=mounts,
            )
        ],
        "volumes": volumes,
    }
    if settings.model_pull_secrets:
        spec["imagePullSecrets"] = [{"name": n} for n in settings.model_pull_secrets]
    return spec


def _named(gate: Gate) -> dict[str, Json]:
    """Volumes of what people name in the gate."""
    if gate.evaluation is None:
        return {}
    prompts, judge = gate.evaluation.prompts, gate.evaluation.judge
    items = [{"key": prompts.key or DEFAULT_PROMPTS_KEY, "path": PROMPTS_FILE}]
    found: dict[str, Json] = {"prompts": {"configMap": {"name": prompts.config_map, "items": items, "optional": True}}}
    if judge is not None and judge.secret is not None:
        # of keys that are missing nothing is mounted, for the whole source is optional
        sources = [
            {"secret": {"name": judge.secret, "items": [{"key": key, "path": key}], "optional": True}}
            for key in (JUDGE_KEY, JUDGE_URL)
        ]
        found["judge"] = {"projected": {"sources": sources, "defaultMode": 0o440}}
    return found
