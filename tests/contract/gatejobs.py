"""Jobs that the operator may not make, each with words of the refusal."""

from __future__ import annotations

from typing import Any

from tests.contract.test_admission_rbac import MODELS
from tuneyard.api import names
from tuneyard.systems.kube.client import Object

_MANAGED = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
_RESTRICTED = {"name": "c", "image": "x", "securityContext": {"allowPrivilegeEscalation": False}}


def _job(name: str = "x-gate-0123456789", **pod: Any) -> Object:
    spec = {"automountServiceAccountToken": False, "restartPolicy": "Never", "containers": [_RESTRICTED], **pod}
    metadata = {"name": name, "namespace": MODELS, "labels": _MANAGED}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": spec}}}


def _mounts(**source: Any) -> Object:
    return _job(volumes=[{"name": "v", **source}])


def _keys_of_theirs(*keys: str) -> Object:
    items = {"items": [{"key": key, "path": key} for key in keys]} if keys else {}
    return _mounts(projected={"sources": [{"secret": {"name": "theirs", **items}}]})


REFUSED_JOBS: list[tuple[Object, str]] = [
    (_job(name="x-prewarm"), "only write Jobs of gates"),
    (_job(automountServiceAccountToken=True), "neither an API token"),
    (_job(serviceAccountName="tuneyard-agent"), "neither an API token"),
    (_job(hostNetwork=True), "nor a namespace of the host"),
    (_job(containers=[{"name": "c", "image": "x"}]), "a container whose privileges can grow"),
    (_job(containers=[{**_RESTRICTED, "envFrom": [{"secretRef": {"name": "theirs"}}]}]), "or that has an environment"),
    (_mounts(hostPath={"path": "/"}), "only write Jobs whose pods mount"),
    (_mounts(secret={"secretName": "theirs"}), "only write Jobs whose pods mount"),
    (_keys_of_theirs(), "only write Jobs whose pods mount"),
    (_keys_of_theirs("tuneyard-judge-key", "password"), "the keys tuneyard-judge-key"),
]
