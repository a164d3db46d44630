"""The objects of a build: the Job of an attempt, and the ConfigMap that tells it what to do.

Rules:
- the ConfigMap is made first and is the same for every attempt; both belong to the BaseModel and go with it;
- the pod reads and writes what the build names: inputs on volumes are mounted read-only, the output's claim is mounted
  to be written to, what comes and goes over the network needs the agents' account, which may read the Secrets that
  sources of the namespace name and annotate the pod itself;
- the Job is tried once: whether and when again is the operator's decision, from what it left behind. A pod that
  Kubernetes itself ends (a drain, an eviction) is no failure: the Job makes another one, which goes on at the step
  whose result is not at the output yet. Only DISRUPTIONS of them are one: a build that is too large for its node is
  evicted as well, and would be again until its time is over;
- what is left of a Job goes two days after its end, after the last moment at which its next attempt is due.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import DEFAULT_TIMEOUT, Build, Scratch
from tuneyard.api.buildtask import BuildTask, TaskStep
from tuneyard.api.schema import seconds
from tuneyard.api.serving import ArtifactCache
from tuneyard.planning.buildinputs import INPUTS, FoundInput
from tuneyard.planning.buildobservations import CONTAINER, BuildMark
from tuneyard.planning.children import label_value, marked, owner
from tuneyard.planning.podparts import container, fetching, mount, security_context, token_mount, token_volume, value
from tuneyard.planning.settings import Settings

Json = dict[str, Any]

FOLDER = "/etc/tuneyard-build/task"
TASK_FILE = "task.json"
WORK, OUTPUT = "/work", "/output"
KEPT_SECONDS = 2 * 86400
DISRUPTIONS = 3
"""Pods of one attempt that Kubernetes itself may end: with the last of them it has failed."""
_GRACE = 60
_DISK = "ephemeral-storage"


def timeout(build: Build) -> int:
    """Seconds that one attempt may take."""
    return max(1, seconds(build.timeout or DEFAULT_TIMEOUT))


def task_object(base: BaseModelResource, build: Build, steps: list[TaskStep], inputs: Sequence[FoundInput]) -> Json:
    """The ConfigMap that tells what to do."""
    task = BuildTask(
        build=f"{base.metadata.namespace}/{base.metadata.name}",
        key=steps[-1].key,
        steps=steps,
        inputs=[i.told for i in inputs],
        output=build.output,
        output_path=OUTPUT if build.output.volume is not None else None,
        digest=base.spec.digest,
    )
    text = json.dumps(task.to_dict(), sort_keys=True)
    metadata = _metadata(names.build_task(base.metadata.name, task.key), base)
    metadata["labels"][names.LABEL_BASE_MODEL] = label_value(base.metadata.name)
    return marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {TASK_FILE: text}})


def job_object(
    base: BaseModelResource, build: Build, mark: BuildMark, inputs: Sequence[FoundInput], settings: Settings
) -> Json:
    """The Job of one attempt."""
    metadata = {
        **_metadata(names.build_job(base.metadata.name, base.metadata.uid, mark.key, mark.attempt), base),
        "annotations": {names.ANNOTATION_BUILD: json.dumps(mark.to_dict(), sort_keys=True)},
    }
    spec = {
        "backoffLimit": DISRUPTIONS - 1,
        "activeDeadlineSeconds": timeout(build),
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}},
            ]
        },
        "template": {
            "metadata": {"labels": _labels(base)},
            "spec": _pod(names.build_task(base.metadata.name, mark.key), build, inputs, settings),
        },
    }
    return marked({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def _labels(base: BaseModelResource) -> dict[str, str]:
    """No label of a pool or a base on pods: gateways and pools' objects look for those."""
    return {
        names.LABEL_NAME: "tuneyard-build",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: names.BUILD,
        names.LABEL_BUILD: label_value(base.metadata.name),
    }


def _metadata(name: str, base: BaseModelResource) -> Json:
    return {
        "name": name,
        "namespace": base.metadata.namespace,
        "labels": _labels(base),
        "ownerReferences": [owner(base)],
    }


def _pod(task: str, build: Build, inputs: Sequence[FoundInput], settings: Settings) -> Json:
    volumes: list[Json] = [
        {"name": "task", "configMap": {"name": task, "items": [{"key": TASK_FILE, "path": TASK_FILE}]}},
        {"name": "work", **_scratch(build.scratch)},
        {"name": "tmp", "emptyDir": {}},
        token_volume(),
    ]
    mounts = [
        mount("task", FOLDER, read_only=True),
        mount("work", WORK),
        mount("tmp", "/tmp"),  # noqa: S108
        token_mount(),
    ]
    named: list[Json] = []
    if build.output.volume is not None:
        named.append({"name": "output", "persistentVolumeClaim": {"claimName": build.output.volume.claim_name}})
        mounts.append(mount("output", OUTPUT))
    for found in (i for i in inputs if i.volume is not None):
        # one that is a volume of the pod already is not attached once more, and not in another way
        there = next((v["name"] for v in named if _same(v, found.volume or {})), None)
        if there is None:
            there = f"input-{len(named)}"
            named.append({"name": there, **(found.volume or {})})
        mounts.append(mount(there, found.folder, read_only=True))
    volumes += named
    # TMPDIR of what only fetches is a small folder in memory
    env = [e for e in fetching(ArtifactCache(), settings) if e["name"] != "TMPDIR"]
    spec: Json = {
        "restartPolicy": "Never",
        "serviceAccountName": names.AGENT_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": security_context(),
        "containers": [
            container(
                CONTAINER,
                settings.images.build_tools,
                settings,
                command=["tuneyard", "build", "run"],
                args=["--task", f"{FOLDER}/{TASK_FILE}", "--work", WORK, "--inputs", INPUTS],
                env=[*env, value("TMPDIR", WORK), value("HOME", WORK)],
                resources=_resources(build),
                volumeMounts=mounts,
            )
        ],
        "volumes": volumes,
    }
    if build.node_selector:
        spec["nodeSelector"] = dict(build.node_selector)
    if build.tolerations:
        spec["tolerations"] = [t.to_dict() for t in build.tolerations]
    if settings.model_pull_secrets:
        spec["imagePullSecrets"] = [{"name": n} for n in settings.model_pull_secrets]
    return spec


def _same(volume: Json, other: Json) -> bool:
    """Whether both are the same claim, or the same in every word."""
    claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in (volume, other)]
    return claims[0] == claims[1] if any(claims) else {**volume, "name": None} == {**other, "name": None}


def _resources(build: Build) -> Json:
    """Quantities as text, the one form in which the API server gives them back.

    What it works on is asked of the node's disk with them, or a node without that room would take the pod and evict it.
    """
    found: Json = {"requests": {"cpu": "1", "memory": "4Gi"}}
    if build.resources is not None:
        found = {kind: {r: str(q) for r, q in given.items()} for kind, given in build.resources.to_dict().items()}
    scratch = build.scratch
    if scratch is None or scratch.size is None or scratch.storage_class is not None:
        return found
    if not any(_DISK in given for given in found.values()):
        found["requests"] = {**found.get("requests", {}), _DISK: str(scratch.size)}
    return found


def _scratch(scratch: Scratch | None) -> Json:
    """A volume of its own for each pod, or the node's disk."""
    size = str(scratch.size) if scratch is not None and scratch.size is not None else None
    if scratch is not None and scratch.storage_class is not None:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": scratch.storage_class,
            "resources": {"requests": {"storage": size}},
        }
        return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"emptyDir": {"sizeLimit": size} if size else {}}
