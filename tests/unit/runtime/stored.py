"""An API server's answers from a dictionary, and the operator's passes over them."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

from kubernetes.client.configuration import Configuration

from tuneyard.api import names
from tuneyard.planning.observations import EngineKeys
from tuneyard.planning.settings import Settings
from tuneyard.runtime.execute import Executor
from tuneyard.runtime.gather import GatewayView
from tuneyard.runtime.keys import BASE_MODEL, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.metrics import Metrics
from tuneyard.runtime.reconcile import Reconciler
from tuneyard.runtime.wakes import Wakes
from tuneyard.runtime.world import World
from tuneyard.systems.kube.client import Api, ApiError
from tuneyard.systems.kube.events import Events
from tuneyard.systems.kube.objects import PLURALS, path

Object = dict[str, Any]
NS = "team"
BASE = Key(BASE_MODEL, NS, "base")
M = Key(MODEL_DEPLOYMENT, NS, "m")
RECORD = f"/api/v1/namespaces/{NS}/configmaps/m-verdicts"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class StoredApi(Api):
    """An API server's answers from a dictionary of paths; writes are kept as (method, path, body)."""

    def __init__(self) -> None:
        super().__init__(Configuration(host="http://127.0.0.1:1"))
        self.stored: dict[str, Object] = {}
        self.writes: list[tuple[str, str, Any]] = []
        self.reads: list[str] = []
        self.refuse: dict[str, ApiError] = {}
        self.revision = 1000

    def request(self, method: str, path: str, **options: Any) -> Object:
        for part, error in self.refuse.items():
            if part in path and method != "GET":
                raise error
        if method == "GET":
            self.reads.append(path)
            if path in self.stored:
                return copy.deepcopy(self.stored[path])
            if path.rsplit("/", 1)[-1] in PLURALS.values():
                inside = [v for k, v in self.stored.items() if k.rpartition("/")[0] == path]
                return {"items": copy.deepcopy(inside)}
            raise ApiError(404, "NotFound", path)
        self.writes.append((method, path, options.get("body")))
        self.revision += 1
        body = copy.deepcopy(options.get("body") or {})
        metadata = {"uid": "uid", "resourceVersion": str(self.revision), **body.get("metadata", {})}
        return {**body, "metadata": {**metadata, "resourceVersion": str(self.revision)}}

    def written(self) -> list[tuple[str, str]]:
        return [(method, where.rpartition("/namespaces/team/")[2]) for method, where, _ in self.writes]


class Scene:
    def __init__(self) -> None:
        self.api = StoredApi()
        self.world = World(self.api, Settings())
        self.wakes = Wakes(self.world, lambda _: None, lambda _: None)
        self.leads = True
        self.metrics = Metrics()
        self.events = Events(self.api, "test")
        executor = Executor(self.api, self.events, self.world.applied, self.metrics, lambda: self.leads)
        self.reconciler = Reconciler(
            self.api,
            self.world,
            self.wakes,
            executor,
            keys=EngineKeys(b"0123456789abcdef"),
            settings=Settings(),
            gateways=GatewayView,
            now=lambda: NOW,
        )

    def see(self, item: Object, *, stored: bool = True) -> None:
        """The informers show it; the API server has it too unless `stored` is False."""
        kind = (item["apiVersion"], item["kind"])
        informers: dict[tuple[str, str], Any] = {
            (names.API_VERSION, "BaseModel"): self.world.base_models,
            (names.API_VERSION, "LoRAAdapter"): self.world.adapters,
            (names.API_VERSION, "ModelDeployment"): self.world.deployments,
            ("v1", "Pod"): self.world.pods,
            **self.world.children,
        }
        informers[kind].informer._tell("ADDED", copy.deepcopy(item))
        if stored:
            self.store(item)

    def store(self, item: Object) -> None:
        self.api.stored[path(item["apiVersion"], item["kind"], NS, item["metadata"]["name"])] = item


def resource(kind: str, name: str, spec: Object, status: Object | None = None) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": metadata(name),
        "spec": spec,
        **({"status": status} if status else {}),
    }


def metadata(name: str, **fields: Any) -> Object:
    common = {
        "uid": f"uid-{name}",
        "resourceVersion": "10",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"name": name, "namespace": NS, **common, **fields}


def pool_deployment(**annotations: str) -> Object:
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base", names.LABEL_MANAGED_BY: names.MANAGED_BY}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("base-pool", labels=labels, annotations=annotations),
        "spec": {"replicas": 1},
        "status": {},
    }


def pod(waiting: str | None = None) -> Object:
    report = {"address": "10.0.0.1:8080", "engine": "Ready", "baseModel": "base", "adapters": {}}
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base"}
    annotations = {names.ANNOTATION_ADAPTERS: json.dumps(report)}
    told = metadata("p", labels=labels, annotations=annotations)
    state = {"containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": waiting}}}]} if waiting else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": told, "status": state}


def failing_pod() -> Object:
    """One that has refused adapter `one`."""
    found = pod()
    report = json.loads(found["metadata"]["annotations"][names.ANNOTATION_ADAPTERS])
    report["adapters"]["one"] = {"state": "Failed", "reason": "NonFiniteValues", "message": "a weight is NaN"}
    found["metadata"]["annotations"][names.ANNOTATION_ADAPTERS] = json.dumps(report)
    return found
