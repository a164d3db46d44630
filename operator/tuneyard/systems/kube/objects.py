"""Reading and writing single objects: server-side apply, status, deletion.

Rules:
- everything is applied by one field manager and forced: what the operator says of a field is what holds;
- a status is always written whole (fields left out are removed) and with the resourceVersion it was planned from: the
  API server lets a wrong uid through on /status, and a stale writer would write onto a re-created object;
- a deletion names the uid and the version it means; an object that is gone already is success, because a crash after
  the deletion and before its notice looks just like that, and one that has changed since stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuneyard.api import names
from tuneyard.systems.kube.client import APPLY, MERGE, Api, ApiError, Object, part

_RBAC = "rbac.authorization.k8s.io/v1"
PLURALS: Mapping[tuple[str, str], str] = {
    (names.API_VERSION, "BaseModel"): "basemodels",
    (names.API_VERSION, "LoRAAdapter"): "loraadapters",
    (names.API_VERSION, "ModelDeployment"): "modeldeployments",
    ("v1", "Pod"): "pods",
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("apps/v1", "Deployment"): "deployments",
    ("apps/v1", "DaemonSet"): "daemonsets",
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "leaderworkersets",
    ("batch/v1", "Job"): "jobs",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    (_RBAC, "Role"): "roles",
    (_RBAC, "RoleBinding"): "rolebindings",
    ("events.k8s.io/v1", "Event"): "events",
    ("coordination.k8s.io/v1", "Lease"): "leases",
}
"""Plural, as in paths, of every kind that Tuneyard reads or writes, by (apiVersion, kind)."""


def path(api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """The path of a kind, of its objects in one namespace, or of one object.

    KeyError for a kind of nobody's, ApiError (not found) for what no object can be called.
    """
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    within = f"/namespaces/{part(namespace)}" if namespace else ""
    return f"{root}{within}/{PLURALS[api_version, kind]}" + (f"/{part(name)}" if name else "")


def get(api: Api, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
    """The object as it is now, or None; raises ApiError."""
    try:
        return api.request("GET", path(api_version, kind, namespace, name))
    except ApiError as error:
        if error.not_found:
            return None
        raise


def listed(
    api: Api, api_version: str, kind: str, namespace: str, label_selector: str | None = None
) -> Sequence[Object]:
    """The namespace's objects of a kind as they are now; raises ApiError."""
    query = {"labelSelector": label_selector} if label_selector else None
    answer = api.request("GET", path(api_version, kind, namespace), query=query)
    return [{"apiVersion": api_version, "kind": kind, **item} for item in answer.get("items") or []]


def apply(api: Api, wanted: Object) -> Object:
    """Create the object or make it so; returns it as stored. Raises ApiError."""
    metadata = wanted["metadata"]
    return api.request(
        "PATCH",
        path(wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"]),
        query={"fieldManager": names.FIELD_MANAGER, "force": "true"},
        body=wanted,
        content_type=APPLY,
    )


def apply_status(api: Api, observed: Object, status: Mapping[str, object]) -> Object:
    """Write the whole status of the object that was observed; returns it as stored.

    Raises ApiError: `conflict` where the object changed since or was re-created, `not_found` where it is gone.
    """
    metadata = observed["metadata"]
    body = {
        "apiVersion": observed["apiVersion"],
        "kind": observed["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "status": status,
    }
    return api.request(
        "PATCH",
        path(observed["apiVersion"], observed["kind"], metadata["namespace"], metadata["name"]) + "/status",
        query={"fieldManager": names.FIELD_MANAGER, "force": "true"},
        body=body,
        content_type=APPLY,
    )


def annotate(
    api: Api, api_version: str, kind: str, namespace: str, name: str, *, uid: str, annotations: Mapping[str, str | None]
) -> None:
    """Set (or, with None, remove) annotations of an object that exists; raises ApiError, also for another uid."""
    body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
    api.request(
        "PATCH",
        path(api_version, kind, namespace, name),
        query={"fieldManager": names.FIELD_MANAGER},
        body=body,
        content_type=MERGE,
    )


def delete(
    api: Api, api_version: str, kind: str, namespace: str, name: str, *, uid: str, resource_version: str = ""
) -> bool:
    """Delete in the background what has this uid and is in this version ("" where that is not known: any).

    Returns whether it was there; an object of the name with another uid is somebody's new one, and one in another
    version may be wanted again: both stay. Raises ApiError.
    """
    body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
    meant = {"uid": uid, "resourceVersion": resource_version}
    body["preconditions"] = {part: value for part, value in meant.items() if value}
    try:
        api.request("DELETE", path(api_version, kind, namespace, name), body=body)
    except ApiError as error:
        # 404: a crash came between the deletion and its notice; 409: re-created or changed since
        if error.not_found or error.conflict:
            return False
        raise
    return True
