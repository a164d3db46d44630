"""Jobs that the operator may make, and those that it may not, each with words of the refusal."""

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


def _build(**pod: Any) -> Object:
    return _job("x-build-0123456789", **{"serviceAccountName": "tuneyard-agent", **pod})


def _build_mounts(*, read_only: bool = True, **source: Any) -> Object:
    mounted = {**_RESTRICTED, "volumeMounts": [{"name": "v", "mountPath": "/x", "readOnly": read_only}]}
    return _build(containers=[mounted], volumes=[{"name": "v", **source}])


def _build_env(**source: Any) -> Object:
    return _build(containers=[{**_RESTRICTED, "env": [{"name": "E", "valueFrom": source}]}])


BUILD_JOBS: list[Object] = [
    _build(),
    _build_mounts(hostPath={"path": "/models"}),
    _build_mounts(persistentVolumeClaim={"claimName": "models"}, read_only=False),
    _build_env(fieldRef={"fieldPath": "metadata.name"}),
]
"""Jobs of builds that the operator may make."""

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
    (_build(serviceAccountName="default"), "whose pods are of tuneyard-agent"),
    (_build(hostPID=True), "neither a namespace of the host"),
    (_build(initContainers=[{**_RESTRICTED, "name": "before"}]), "whose pods are of tuneyard-agent"),
    (_build(containers=[{"name": "c", "image": "x"}]), "a container whose privileges can grow"),
    (_build_env(secretKeyRef={"name": "theirs", "key": "k"}), "whose environment comes from elsewhere"),
    (_build_mounts(secret={"secretName": "theirs"}), "mount no Secret"),
    (_build_mounts(projected={"sources": [{"secret": {"name": "theirs"}}]}), "mount no Secret"),
    (_build_mounts(hostPath={"path": "/"}, read_only=False), "folders of the node only to read"),
]
