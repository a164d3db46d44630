"""Reads what `tuneyard status` and `tuneyard lineage` show, with the rights of the user's kubeconfig (or of the pod it
runs in).

Rules:
- only GETs; every refusal becomes words that say what to do;
- pods and events are extras: who may not list them still sees the rest, with a remark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kubernetes import config
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException
from pydantic import ValidationError
from yaml import YAMLError

from tuneyard.api import names
from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.cli.errors import UserError
from tuneyard.cli.statusview import Read
from tuneyard.planning.observations import PodObservation, pod_observation
from tuneyard.systems.kube.client import Api, ApiError, Object, connect, in_cluster, own_namespace

_TIMEOUT = (5.0, 15.0)
_PAGE = "500"
_Kind = TypeVar("_Kind", bound=ApiModel)


@dataclass(frozen=True)
class Cluster:
    """An API server, the namespace that the user's context names, and what could not be read."""

    api: Api
    namespace: str
    remarks: dict[str, str] = field(default_factory=dict)
    """What is left out -> why; filled while reading."""


def open_cluster(kubeconfig: str | None, context: str | None) -> Cluster:
    """The cluster that the user's kubeconfig names; raises UserError where there is none."""
    try:
        if kubeconfig is None and context is None and in_cluster():
            return Cluster(connect(), own_namespace())
        configuration = Configuration()
        config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
        contexts, current = config.list_kube_config_contexts(config_file=kubeconfig)
    except (ConfigException, OSError, YAMLError, TypeError, KeyError, ValueError) as error:
        # the client looks into what it parsed without checking its shape
        told = " ".join(str(error).split()).rstrip(".")
        file = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise UserError(
            f"no usable kubeconfig ({file}): {told}. Set KUBECONFIG, or choose one with --kubeconfig and --context"
        ) from error
    chosen = next((c for c in contexts if c["name"] == context), current)
    return Cluster(Api(configuration), (chosen.get("context") or {}).get("namespace") or "default")


def explained(error: ApiError, what: str, host: str) -> UserError:
    """A refusal in words that say what to do."""
    if error.unreachable:
        return UserError(f"the API server {host} cannot be reached: {error.message}")
    if error.status == 401:
        return UserError(f"the API server {host} does not accept your credentials (401): log in again")
    if error.status == 403:
        return UserError(f"you may not read {what}: {error.message}")
    if error.not_found:
        return UserError(
            f"the API server {host} does not know {what} of {names.API_VERSION}: is Tuneyard installed in this cluster?"
        )
    return UserError(f"reading {what} failed: {error}")


def pages(cluster: Cluster, path: str, query: dict[str, str]) -> Iterable[Object]:
    """All objects of a list, page by page; raises ApiError."""
    token = ""
    while True:
        paging = {"limit": _PAGE, **({"continue": token} if token else {})}
        page = cluster.api.request("GET", path, query={**query, **paging}, timeout=_TIMEOUT)
        yield from page.get("items") or ()
        token = (page.get("metadata") or {}).get("continue") or ""
        if not token:
            return


def _in(namespace: str | None) -> str:
    return f"/namespaces/{namespace}" if namespace else ""


def _parsed(kind: type[_Kind], obj: Object) -> _Kind:
    try:
        return kind.from_dict(obj)
    except ValidationError as error:
        metadata = obj.get("metadata") or {}
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{obj.get('kind', 'the object')} {metadata.get('namespace')}/{metadata.get('name')} cannot be read by "
            f"this version ({where}: {first['msg']}): use the tuneyard that is as new as the one in the cluster"
        ) from error


def _objects(cluster: Cluster, namespace: str | None, plural: str, kind: type[_Kind]) -> list[_Kind]:
    path = f"/apis/{names.API_VERSION}{_in(namespace)}/{plural}"
    try:
        return [_parsed(kind, obj) for obj in pages(cluster, path, {})]
    except ApiError as error:
        raise explained(error, plural, cluster.api.host) from error


def _extra(cluster: Cluster, what: str, read: Callable[[], list[Any]]) -> list[Any]:
    """Something that is good to have: without the right to it, a remark."""
    try:
        return read()
    except ApiError as error:
        if error.status != 403:
            raise explained(error, what, cluster.api.host) from error
        cluster.remarks[what] = error.message
        return []


def _pods(cluster: Cluster, namespace: str | None) -> list[PodObservation]:
    query = {"labelSelector": names.LABEL_POOL}
    path = f"/api/v1{_in(namespace)}/pods"
    return _extra(cluster, "pods", lambda: [pod_observation(p) for p in pages(cluster, path, query)])


def _events(cluster: Cluster, namespace: str, about: Iterable[tuple[str, str]]) -> list[Object]:
    """Events about these (kind, name), one request each: a namespace may hold thousands of others."""
    path = f"/api/v1{_in(namespace)}/events"

    def read() -> list[Object]:
        found: list[Object] = []
        for kind, name in about:
            selector = f"involvedObject.kind={kind},involvedObject.name={name}"
            found += pages(cluster, path, {"fieldSelector": selector})
        return found

    return _extra(cluster, "events", read)


def read_deployment(cluster: Cluster, namespace: str, name: str) -> ModelDeploymentResource:
    """One ModelDeployment; raises UserError where there is none of that name."""
    path = f"/apis/{names.API_VERSION}{_in(namespace)}/modeldeployments/{name}"
    try:
        return _parsed(ModelDeploymentResource, cluster.api.request("GET", path, timeout=_TIMEOUT))
    except ApiError as error:
        if not error.not_found:
            raise explained(error, "modeldeployments", cluster.api.host) from error
    there = [d.metadata.name for d in _objects(cluster, namespace, "modeldeployments", ModelDeploymentResource)]
    shown = f"there are: {', '.join(sorted(there)[:10])}" if there else "there is none in this namespace"
    raise UserError(f"no ModelDeployment {name!r} in namespace {namespace}; {shown} (-n chooses another namespace)")


def read_one(cluster: Cluster, namespace: str, name: str) -> Read:
    """One ModelDeployment, the pods of its namespace and the events about it, its adapters and its bases."""
    deployment = read_deployment(cluster, namespace, name)
    about = {("ModelDeployment", name): None}
    for revision in deployment.spec.revisions:
        if revision.external is None:
            about[("BaseModel", revision.base_model)] = None
        if revision.adapter:
            about[("LoRAAdapter", revision.adapter)] = None
    return Read(
        deployments=[deployment],
        pods=_pods(cluster, namespace),
        events=_events(cluster, namespace, about),
    )


def read_registry(cluster: Cluster, namespace: str | None) -> Read:
    """The custom resources of a namespace (None: of all of them), without what runs for them."""
    return Read(
        deployments=_objects(cluster, namespace, "modeldeployments", ModelDeploymentResource),
        base_models=_objects(cluster, namespace, "basemodels", BaseModelResource),
        adapters=_objects(cluster, namespace, "loraadapters", LoRAAdapterResource),
    )


def read_all(cluster: Cluster, namespace: str | None) -> Read:
    """Everything in a namespace; None: in all of them."""
    return replace(read_registry(cluster, namespace), pods=_pods(cluster, namespace))
