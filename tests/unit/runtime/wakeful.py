"""A world of informers that are told things, and whom that wakes."""

from __future__ import annotations

import json
from typing import Any

from kubernetes.client.configuration import Configuration

from tuneyard.api import names
from tuneyard.planning.settings import Settings
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.wakes import Wakes
from tuneyard.runtime.world import World
from tuneyard.systems.kube.client import Api
from tuneyard.systems.kube.informers import Informer
from tuneyard.systems.kube.watching import Change

Object = dict[str, Any]
NS = "team"


def deployment(name: str) -> Key:
    return Key(MODEL_DEPLOYMENT, NS, name)


def adapter(name: str) -> Key:
    return Key(LORA_ADAPTER, NS, name)


def base(name: str) -> Key:
    return Key(BASE_MODEL, NS, name)


class Scene:
    """A world without an API server: changes are told as its informers would tell them."""

    def __init__(self, **settings: Any) -> None:
        self.world = World(Api(Configuration(host="http://127.0.0.1:1")), Settings.from_dict(settings))
        self.itself: set[Key] = set()
        self.others: set[Key] = set()
        self.wakes = Wakes(self.world, self.itself.add, self.others.update)
        self._versions = 0

    def tell(self, informer: Informer, change: Change, item: Object) -> set[Key]:
        """Tell a change; returns who was woken besides the object itself."""
        self.itself.clear()
        self.others.clear()
        self._versions += 1
        item["metadata"].setdefault("namespace", NS)
        item["metadata"].setdefault("uid", f"uid-{item['metadata']['name']}")
        item["metadata"]["resourceVersion"] = str(self._versions)
        informer._tell(change, json.loads(json.dumps(item)))
        return set(self.others)

    def base(
        self,
        name: str,
        change: Change = "ADDED",
        serving: Object | None = None,
        *,
        status: Object | None = None,
        **metadata: Any,
    ) -> set[Key]:
        spec = {"source": {"volume": {"name": "v", "path": name}}, **({"serving": serving} if serving else {})}
        item = {"metadata": {"name": name, "generation": 1, **metadata}, "spec": spec, "status": status or {}}
        return self.tell(self.world.base_models.informer, change, item)

    def adapter(
        self,
        name: str,
        of: str = "base",
        change: Change = "ADDED",
        status: Object | None = None,
        parent: str | None = None,
    ) -> set[Key]:
        lineage = {"lineage": {"parent": parent}} if parent else {}
        spec = {"baseModel": of, "source": {"volume": {"name": "v", "path": name}}, **lineage}
        item = {"metadata": {"name": name, "generation": 1}, "spec": spec, "status": status or {}}
        return self.tell(self.world.adapters.informer, change, item)

    def deployment(
        self,
        name: str,
        revisions: dict[str, tuple[str, str | None]],
        change: Change = "ADDED",
        *,
        generation: int = 1,
        status: Object | None = None,
        **spec: Any,
    ) -> set[Key]:
        listed = [{"name": r, "baseModel": b, **({"adapter": a} if a else {})} for r, (b, a) in revisions.items()]
        traffic = [{"revision": next(iter(revisions)), "weight": 100}]
        item = {
            "metadata": {"name": name, "generation": generation},
            "spec": {"revisions": listed, "traffic": traffic, **spec},
            "status": status or {},
        }
        return self.tell(self.world.deployments.informer, change, item)

    def pod(
        self,
        name: str,
        adapters: Object,
        change: Change = "ADDED",
        *,
        of: str = "base",
        pool: str = "base",
        engine: str = "Ready",
        **fields: Any,
    ) -> set[Key]:
        report = {"address": "10.0.0.1:8080", "engine": engine, "baseModel": of, "adapters": adapters}
        item = {
            "metadata": {
                "name": name,
                "labels": {names.LABEL_POOL: pool, names.LABEL_BASE_MODEL: of},
                "annotations": {names.ANNOTATION_ADAPTERS: json.dumps(report)},
            },
            **fields,
        }
        return self.tell(self.world.pods.informer, change, item)
