"""Reads what is known of a deployment's gates, from the API server itself.

Nothing of it is watched: it is looked at every few seconds while gates are under way or stable is evaluated, when that
is due, and at no other time. So what is
read is never behind, and a Job that was just made is there in the next pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.children import label_value
from tuneyard.planning.driftruns import wants_look
from tuneyard.planning.gateobservations import GateObservation, looked_at
from tuneyard.planning.gates import under_way
from tuneyard.planning.observations import EngineKeys
from tuneyard.planning.plan import Redacted
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api

_JOB, _POD, _CONFIG_MAP = ("batch/v1", "Job"), ("v1", "Pod"), ("v1", "ConfigMap")


def gather_gates(
    api: Api, deployment: ModelDeploymentResource | None, keys: EngineKeys, now: datetime
) -> GateObservation | None:
    """Jobs, their pods and the kept reports; None while no gate is under way and no run of stable. Raises ApiError."""
    if deployment is None or not (under_way(deployment.status.rollout) or wants_look(deployment, now)):
        return None
    namespace, name = deployment.metadata.key
    selector = f"{names.LABEL_COMPONENT}={names.GATE},{names.LABEL_DEPLOYMENT}={label_value(name)}"
    # pods after Jobs: one whose Job is over is over too
    jobs = [j for j in objects.listed(api, *_JOB, namespace, selector) if _owned(j, name)]
    pods = objects.listed(api, *_POD, namespace, selector) if jobs else []
    told = objects.listed(api, *_CONFIG_MAP, namespace, selector) if jobs else []
    return looked_at(
        jobs,
        pods,
        told,
        reports=objects.get(api, *_CONFIG_MAP, namespace, names.gate_reports(name)),
        token=Redacted(names.gate_token(keys.master, namespace, name)),
    )


def _owned(job: Mapping[str, Any], name: str) -> bool:
    """Whether a Job is of the deployment of this name: labels hold only the beginning of a long one."""
    owners = job["metadata"].get("ownerReferences") or ()
    return any(o.get("kind") == "ModelDeployment" and o.get("name") == name for o in owners)
