"""What the operator sees of the cluster: its informers, and their objects read into values.

Rules:
- the informers' objects are the only copies; what is kept beside them is an index of keys, and each object's parsed
  form until it changes (parsing a thousand objects again for every pass would take seconds);
- an object that cannot be read is left out for everybody but itself, and its own pass says so in its status;
- of pods, Deployments, LeaderWorkerSets and DaemonSets only the parts that plans read are kept in memory;
- Secrets are never read: what the operator applied itself is remembered (`applied.py`), metadata only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pydantic import ValidationError

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning import children
from tuneyard.planning.drift import DRIFTING
from tuneyard.planning.observations import ChildObservation, child_observation, pod_observation
from tuneyard.planning.ownership import is_ours
from tuneyard.planning.podgroups import LEADER_WORKER_SET
from tuneyard.planning.settings import Settings
from tuneyard.runtime.applied import SECRET, Applied
from tuneyard.runtime.index import Index
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.places import Places
from tuneyard.runtime.statusmetrics import Objects
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, Object
from tuneyard.systems.kube.informers import Informer
from tuneyard.systems.kube.watching import Change

_Value = TypeVar("_Value")
_Resource = TypeVar("_Resource", BaseModelResource, LoRAAdapterResource, ModelDeploymentResource)
Name = tuple[str, str]
"""(namespace, name)."""

DAEMON_SET = ("apps/v1", "DaemonSet")
CONFIG_MAP = ("v1", "ConfigMap")
_MANAGED = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


class Parsed(Generic[_Value]):
    """Values read from one informer's objects, each read once, when it is first asked for.

    Readers take no lock: a thousand reads for one pass, in eight threads, would mostly wait for it.
    """

    def __init__(self, informer: Informer, read: Callable[[Object], _Value]) -> None:
        self.informer = informer
        self._read = read
        self._entries: dict[Name, _Entry[_Value]] = {}
        # before anybody else listens: who is woken by a change finds it here
        informer.listen(self._on_change)

    def raw(self, namespace: str, name: str) -> Object | None:
        """The object as last seen."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else entry.item

    def get(self, namespace: str, name: str) -> _Value | None:
        """The value, or None where there is no object or none that can be read."""
        entry = self._entries.get((namespace, name))
        if entry is None:
            return None
        if not entry.parsed:
            entry.value, entry.parsed = read_or_none(self._read, entry.item), True
        return entry.value

    def raws(self) -> list[Object]:
        """All objects as last seen."""
        return [entry.item for entry in list(self._entries.values())]

    def all(self, wanted: Iterable[tuple[str, ...]]) -> tuple[_Value, ...]:
        """The values of these that can be read, in this order; of a name the last two parts count."""
        found = (self.get(name[-2], name[-1]) for name in wanted)
        return tuple(value for value in found if value is not None)

    def _on_change(self, change: Change, item: Object) -> None:
        metadata = item["metadata"]
        name = (metadata.get("namespace", ""), metadata["name"])
        if change == "DELETED":
            self._entries.pop(name, None)
        else:
            self._entries[name] = _Entry(item)


class _Entry(Generic[_Value]):
    """One object and, once it was asked for, its value; a changed object is another entry."""

    __slots__ = ("item", "parsed", "value")

    def __init__(self, item: Object) -> None:
        self.item = item
        self.parsed = False
        self.value: _Value | None = None


def read_or_none(read: Callable[[Object], _Value], item: Object) -> _Value | None:
    """The value of an object, or None where it does not fit (written under another version of the CRD)."""
    try:
        return read(item)
    except (ValidationError, KeyError, TypeError, ValueError):
        return None


def _reader(resource: type[_Resource]) -> Callable[[Object], _Resource]:
    """Reads an object; a status that does not fit counts as none, and is written anew by the object's own pass."""

    def read(item: Object) -> _Resource:
        try:
            return resource.from_dict(item)
        except ValidationError:
            return resource.from_dict({**item, "status": {}})

    return read


base_model_of = _reader(BaseModelResource)
adapter_of = _reader(LoRAAdapterResource)
deployment_of = _reader(ModelDeploymentResource)


class World:
    """All that is watched. `listen` before `start`; every reader after `wait_synced`."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._namespaces = frozenset(settings.watch_namespaces)
        self.applied = Applied()
        self.base_models = Parsed(_followed(api, names.API_VERSION, BASE_MODEL), base_model_of)
        self.adapters = Parsed(_followed(api, names.API_VERSION, LORA_ADAPTER), adapter_of)
        self.deployments = Parsed(_followed(api, names.API_VERSION, MODEL_DEPLOYMENT), deployment_of)
        self.pods = Parsed(
            _followed(api, "v1", "Pod", label_selector=names.LABEL_BASE_MODEL, trim=_trim_pod), pod_observation
        )
        self.children: dict[tuple[str, str], Parsed[ChildObservation]] = {
            kind: Parsed(_child_informer(api, *kind), _child_reader(*kind))
            for kind in children.kinds(settings)
            if kind != SECRET
        }
        self.gateways = _followed(
            api,
            "v1",
            "Pod",
            namespace=settings.tuneyard_namespace,
            label_selector=f"{names.LABEL_COMPONENT}=gateway",
            trim=_trim_pod,
        )
        self.index: Index[Key, tuple[str, Key | tuple[str, ...]]] = Index()
        """Custom resources by their kind and what they name, see runtime.wakes."""
        self.places = Places()
        """Who has a place in the pools of each base, see runtime.wakes."""
        self.pod_index: Index[Name, tuple[str, str]] = Index()
        """Model pods, and those that keep caches, by (namespace, value of the label tuneyard.dev/base-model)."""
        self.child_index: Index[tuple[str, str, str, str], tuple[str, str]] = Index()
        """Children as (apiVersion, kind, namespace, name), grouped like pods; "" for what pools share."""

    def informers(self) -> dict[str, Informer]:
        """All informers, by a name for metrics and logs."""
        found = {
            "basemodels": self.base_models.informer,
            "loraadapters": self.adapters.informer,
            "modeldeployments": self.deployments.informer,
            "pods": self.pods.informer,
            "gateways": self.gateways,
        }
        return found | {objects.PLURALS[kind]: parsed.informer for kind, parsed in self.children.items()}

    def start(self) -> None:
        """Begin to list and watch everything."""
        for informer in self.informers().values():
            informer.start()

    def stop(self) -> None:
        """End all watches, side by side."""
        threads = [threading.Thread(target=i.stop, daemon=True) for i in self.informers().values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(6.0)

    def synced(self) -> bool:
        """Whether every first list has come: before that, what is missing only has not been seen."""
        return all(informer.synced for informer in self.informers().values())

    def wait_synced(self, timeout: float) -> bool:
        """Wait for all first lists; returns whether they have come."""
        deadline = time.monotonic() + timeout
        return all(i.wait_synced(max(0.0, deadline - time.monotonic())) for i in self.informers().values())

    def drifts(self) -> list[tuple[str, str, bool]]:
        """Of each ModelDeployment (namespace, name) that is watched for it, whether stable drifts."""
        found = ((i["metadata"], (i.get("status") or {}).get("conditions") or ()) for i in self.deployments.raws())
        return [
            (meta.get("namespace", ""), meta["name"], condition.get("status") == "True")
            for meta, conditions in found
            if self.in_scope(meta.get("namespace", ""))
            for condition in conditions
            if condition.get("type") == DRIFTING
        ]

    def statuses(self) -> Objects:
        """All custom resources that the operator looks at and that can be read."""
        return Objects(
            self._readable(self.base_models), self._readable(self.adapters), self._readable(self.deployments)
        )

    def _readable(self, parsed: Parsed[_Resource]) -> list[_Resource]:
        metadata = (item["metadata"] for item in parsed.raws())
        found = (parsed.get(m["namespace"], m["name"]) for m in metadata if self.in_scope(m["namespace"]))
        return [value for value in found if value is not None]

    @property
    def has_leader_worker_sets(self) -> bool:
        """Whether they may be made: the chart enables them, and the API server knows the kind."""
        followed = self.children.get(LEADER_WORKER_SET)
        return followed is not None and followed.informer.served

    def evidence(self, namespace: str, name: str) -> ChildObservation | None:
        """The ConfigMap with the evidence on a candidate of this ModelDeployment."""
        return self.children[CONFIG_MAP].get(namespace, names.rollout_evidence(name))

    def in_scope(self, namespace: str) -> bool:
        """Whether the operator looks at this namespace at all."""
        return not self._namespaces or namespace in self._namespaces

    def raw(self, key: Key) -> Object | None:
        """The object of a key as last seen."""
        return self.parsed(key.kind).raw(key.namespace, key.name)

    def parsed(
        self, kind: str
    ) -> Parsed[BaseModelResource] | Parsed[LoRAAdapterResource] | Parsed[ModelDeploymentResource]:
        """The values of one of the three kinds."""
        if kind == BASE_MODEL:
            return self.base_models
        return self.adapters if kind == LORA_ADAPTER else self.deployments


def _followed(
    api: Api,
    api_version: str,
    kind: str,
    *,
    namespace: str | None = None,
    label_selector: str | None = None,
    metadata_only: bool = False,
    trim: Callable[[Object], None] | None = None,
    keeps: Callable[[Object], bool] | None = None,
    optional: bool = False,
) -> Informer:
    return Informer(
        api,
        objects.path(api_version, kind, namespace),
        label_selector=label_selector,
        metadata_only=metadata_only,
        trim=trim,
        keeps=keeps,
        optional=optional,
    )


def _child_informer(api: Api, api_version: str, kind: str) -> Informer:
    trimmed = (api_version, kind) in (*children.WORKLOADS, DAEMON_SET)
    return _followed(
        api,
        api_version,
        kind,
        label_selector=_MANAGED,
        metadata_only=not trimmed and (api_version, kind) != CONFIG_MAP,
        trim=_trim_workload if trimmed else None,
        keeps=is_ours,
        optional=(api_version, kind) == LEADER_WORKER_SET,
    )


def _child_reader(api_version: str, kind: str) -> Callable[[Object], ChildObservation]:
    # of objects asked for as metadata, the API server calls the kind PartialObjectMetadata
    return lambda item: child_observation({**item, "apiVersion": api_version, "kind": kind})


def _trim_pod(pod: Object) -> None:
    spec = pod.get("spec") or {}
    pod["spec"] = {"nodeName": spec["nodeName"]} if "nodeName" in spec else {}


def _trim_workload(workload: Object) -> None:
    spec = workload.get("spec") or {}
    workload["spec"] = {"replicas": spec["replicas"]} if "replicas" in spec else {}
