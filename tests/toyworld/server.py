"""The toy world's API server: what users and the operator write, whose a field is, and what somebody changes by hand.

Rules, as in the real thing: an apply replaces what was applied before and keeps what others wrote; who changes a field
owns it; a status is written only onto the version it was planned from; a deletion is refused when uid or
resourceVersion is another one. `changed` is called after every write.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.observations import ChildObservation, child_observation
from tuneyard.planning.plan import Annotate, Apply, Delete

Resource = BaseModelResource | LoRAAdapterResource | ModelDeploymentResource
Key = tuple[str, str]
"""(kind, name)."""

START = datetime.fromisoformat("2026-01-01T12:00:00+00:00")


@dataclass
class ToyObject:
    """A stored child: what was applied, and what others added."""

    obj: dict[str, Any]
    uid: str
    version: int
    annotations: dict[str, str] = field(default_factory=dict)
    owned: dict[str, Any] = field(default_factory=dict)
    """The fields that the operator owns, as in managedFields."""
    template: str | None = None
    """What identifies the pods that a Deployment wants; None for anything else."""


MEDDLING: dict[str, tuple[tuple[tuple[str, ...], Any], ...]] = {
    "Deployment": (
        (("spec", "replicas"), 0),
        (("spec", "replicas"), 3),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), 1),
    ),
    "DaemonSet": (
        (("spec", "updateStrategy", "type"), "OnDelete"),
        (("spec", "template", "spec", "serviceAccountName"), "default"),
    ),
    "ConfigMap": ((("data", "base-digest"), "sha256:" + "0" * 64),),
    "NetworkPolicy": ((("spec", "ingress"), [{}]),),
    "PodDisruptionBudget": ((("spec", "maxUnavailable"), 0),),
    "Role": ((("rules",), []),),
    "RoleBinding": ((("subjects",), []),),
    "Service": ((("spec", "selector"), {"app": "mine"}),),
    "ServiceAccount": ((("automountServiceAccountToken",), True),),
}
"""What somebody may change, by kind: (path, value)."""


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of what was applied, as managedFields has them; every list counts as one field."""
    return {f"f:{name}": fields_of(part) for name, part in value.items()} if isinstance(value, dict) else {}


class ApiServer:
    """Stored objects, and every write to them."""

    def __init__(self) -> None:
        self.resources: dict[Key, Resource] = {}
        self.objects: dict[Key, ToyObject] = {}
        self.changes = 0
        self.numbers = 0
        self.creations = 0
        self._observed: dict[tuple[Key, int], ChildObservation] = {}

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def changed(self) -> None:
        self.changes += 1

    def put(self, resource: Resource) -> None:
        """What a user applies: a new object, or another spec of one that is there."""
        kind = type(resource).__name__.removesuffix("Resource")
        known = self.resources.get((kind, resource.metadata.name))
        if known is None:
            # Age is counted in creations: it decides who keeps a name or a place, and must not hang on the clock.
            self.creations += 1
            created = (START + timedelta(seconds=self.creations)).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata = {"uid": f"{resource.metadata.name}-{self.number()}", "generation": 1}
            meta = resource.metadata.model_copy(
                update={**metadata, "resource_version": str(self.number()), "creation_timestamp": created}
            )
            self.resources[kind, meta.name] = resource.model_copy(update={"metadata": meta})
        elif known.spec != resource.spec:
            meta = self._next_version(known.metadata, known.metadata.generation + 1)
            self.resources[kind, meta.name] = known.model_copy(update={"metadata": meta, "spec": resource.spec})
        else:
            return
        self.changed()

    def drop(self, kind: str, name: str) -> None:
        """A user deletes an object."""
        if self.resources.pop((kind, name), None) is not None:
            self.changed()

    def put_status(self, kind: str, before: ObjectMeta, status: Any) -> bool:
        """Refused unless the object is still the version that the status was planned from."""
        known = self.resources.get((kind, before.name))
        if known is None or (known.metadata.uid, known.metadata.resource_version) != (
            before.uid,
            before.resource_version,
        ):
            return False
        if known.status != status:
            stored = type(status).from_dict(status.to_dict())
            meta = self._next_version(known.metadata, known.metadata.generation)
            self.resources[kind, before.name] = known.model_copy(update={"metadata": meta, "status": stored})
            self.changed()
        return True

    def lose_status(self, kind: str, name: str) -> None:
        """An older backup, a careless tool."""
        known = self.resources.get((kind, name))
        if known is not None and known.status != type(known.status)():
            meta = self._next_version(known.metadata, known.metadata.generation)
            self.resources[kind, name] = known.model_copy(update={"metadata": meta, "status": type(known.status)()})
            self.changed()

    def _next_version(self, meta: ObjectMeta, generation: int) -> ObjectMeta:
        return meta.model_copy(update={"resource_version": str(self.number()), "generation": generation})

    def execute(self, action: Apply | Annotate | Delete) -> None:
        """One write of the operator's."""
        if isinstance(action, Apply):
            self._apply(json.loads(json.dumps(action.object)))
            return
        known = self.objects.get((action.kind, action.name))
        if known is None or known.uid != action.uid:
            return
        if isinstance(action, Annotate):
            for key, value in action.annotations.items():
                known.annotations.pop(key, None)
                if value is not None:
                    known.annotations[key] = value
            known.version = self.number()
            self.changed()
        elif action.resource_version in ("", str(known.version)):
            self.remove((action.kind, action.name))

    def _apply(self, obj: dict[str, Any]) -> None:
        key = (obj["kind"], obj["metadata"]["name"])
        known = self.objects.get(key)
        if known is None:
            self.objects[key] = ToyObject(obj, f"child-{self.number()}", self.number())
        elif (known.obj, known.owned) == (obj, fields_of(obj)):
            return
        else:
            known.obj, known.version = obj, self.number()
        self.objects[key].owned = fields_of(obj)
        if obj["kind"] == "Deployment":
            self.objects[key].template = names.short_hash(json.dumps(obj["spec"]["template"], sort_keys=True))
        self.changed()

    def meddle(self, number: int) -> Key | None:
        """Somebody changes a field of one of the operator's objects, and takes it by that; returns which object."""
        found = [(key, part) for key in sorted(self.objects) for part in MEDDLING.get(key[0], ())]
        if not found:
            return None
        key, (path, value) = found[number % len(found)]
        child = self.objects[key]
        obj, owned = copy.deepcopy(child.obj), copy.deepcopy(child.owned)
        part, fields = obj, owned
        for step in path[:-1]:
            part, fields = part[step], fields.get(f"f:{step}", {})
        part[path[-1]] = value
        fields.pop(f"f:{path[-1]}", None)
        if obj == child.obj:
            return None
        child.obj, child.owned, child.version = obj, owned, self.number()
        if key[0] == "Deployment":
            child.template = names.short_hash(json.dumps(obj["spec"]["template"], sort_keys=True))
        self.changed()
        return key

    def remove(self, key: Key) -> None:
        del self.objects[key]
        self.changed()

    def of_kind(self, kind: str) -> tuple[Any, ...]:
        return tuple(r for (k, _), r in sorted(self.resources.items()) if k == kind)

    def stored(self, key: Key) -> ChildObservation:
        """A child as it is read, with the fields that are the operator's."""
        child = self.objects[key]
        known = self._observed.get((key, child.version))
        if known is None:
            metadata = child.obj["metadata"]
            annotations = {**metadata["annotations"], **child.annotations}
            ours = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": child.owned}
            stored = {"uid": child.uid, "resourceVersion": str(child.version), "annotations": annotations}
            stored |= {"managedFields": [ours, {"manager": "somebody", "operation": "Update", "fieldsV1": {}}]}
            known = child_observation({**child.obj, "metadata": {**metadata, **stored}, "status": {}})
            self._observed[key, child.version] = known
        return known
