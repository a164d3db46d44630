"""A cluster in memory that behaves as far as plans can tell: API server, garbage collector, Deployment controller,
pods with their agents, gateways, and an operator that may crash, be late, or read what is no longer so.

Rules, as in the real thing:
- an apply replaces what was applied before and keeps what others wrote; who changes a field owns it; a status is
  written only onto the version it was planned from; a deletion is refused when uid or resourceVersion is another one;
- every change wakes every object's pass (the operator may lose the wake-up; `settle` gives it again, as a resync does);
- nothing happens by itself: each part moves one step when it is told to, so that any order can be tried.

`Operator` executes plans as the runtime does. `World.digest()` is what two runs are compared by.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tests.builders import NAMESPACE, SETTINGS, Situation, digest, failed, loaded
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import (
    PLAN_KEY,
    AdapterReport,
    AppliedDeployment,
    AppliedReport,
    BaseReport,
    PodReport,
    PoolPlan,
)
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.modelnames import owners
from tuneyard.planning.observations import ChildObservation, PodObservation, child_observation
from tuneyard.planning.plan import Annotate, Apply, Delete, Event, Plan
from tuneyard.planning.routes import ModelRoutes, model_routes

Resource = BaseModelResource | LoRAAdapterResource | ModelDeploymentResource
Key = tuple[str, str]
"""(kind, name)."""

START = datetime.fromisoformat("2026-01-01T12:00:00+00:00")
CORRUPT = "nan"
"""The adapter whose files no pod serves."""
LAST_STEP = 3
"""A toy pod's steps: scheduled, verified, engine ready."""


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


@dataclass
class ToyPod:
    """A model pod and the agent in it."""

    name: str
    uid: str
    pool: str
    base: str
    template: str
    created: str
    address: str
    step: int = 0
    deleted: bool = False
    digest: str | None = None
    """What `verify` was told to find."""
    adapters: dict[str, AdapterReport] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        return self.step >= LAST_STEP and not self.deleted


class World:
    """Everything but the operator."""

    def __init__(self) -> None:
        self.clock = START
        self.resources: dict[Key, Resource] = {}
        self.objects: dict[Key, ToyObject] = {}
        self.pods: dict[str, ToyPod] = {}
        self.gateways: dict[str, Situation] = {}
        """What each last saw."""
        self.applied: dict[str, AppliedReport] = {}
        self._observed: dict[tuple[Key, int], ChildObservation] = {}
        self.changes = 0
        self.numbers = 0
        self.creations = 0
        self.history: list[Situation] = []
        self.remember()

    # storage

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def changed(self) -> None:
        self.changes += 1
        self.remember()

    def remember(self) -> None:
        self.history = [*self.history[-3:], self.situation()]

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

    def _stamp(self) -> str:
        return self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")

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
            self._remove((action.kind, action.name))

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

    def _remove(self, key: Key) -> None:
        child = self.objects.pop(key)
        if key[0] == "Deployment":
            for pod in self.pods.values():
                pod.deleted |= pod.pool == child.obj["metadata"]["labels"][names.LABEL_POOL]
        self.changed()

    # controllers: each moves everything of its kind by one step

    def collect_garbage(self) -> None:
        living = {r.metadata.uid for r in self.resources.values()}
        for key, child in list(self.objects.items()):
            owners_of = child.obj["metadata"]["ownerReferences"]
            if not any(o["uid"] in living for o in owners_of):
                self._remove(key)

    def roll_deployments(self) -> None:
        for child in list(self.objects.values()):
            if child.template is not None:
                self._roll(child.obj, child.template)

    def _roll(self, obj: dict[str, Any], template: str) -> None:
        spec, labels = obj["spec"], obj["metadata"]["labels"]
        pool = labels[names.LABEL_POOL]
        alive = [p for p in self.pods.values() if p.pool == pool and not p.deleted]
        new = [p for p in alive if p.template == template]
        surge = spec["strategy"]["rollingUpdate"]["maxSurge"]
        if len(new) < spec["replicas"] and len(alive) < spec["replicas"] + surge:
            number = self.number()
            name = f"{pool}-{number}"
            self.pods[name] = ToyPod(
                name,
                f"pod-{number}",
                pool,
                obj["metadata"]["labels"][names.LABEL_BASE_MODEL],
                template,
                self._stamp(),
                f"10.1.{number // 250}.{number % 250 + 1}:8080",
            )
            self.changed()
            return
        spare = len([p for p in alive if p.serves and self._tried_all(p)]) - spec["replicas"] + (0 if surge else 1)
        old = sorted((p for p in alive if p.template != template), key=lambda p: (p.serves, p.name))
        surplus = sorted(new, key=lambda p: (p.serves, p.name))[: max(0, len(new) - spec["replicas"])]
        for pod in [*old, *surplus]:
            if not pod.serves or spare > 0:
                pod.deleted = True
                self.changed()
                return

    def _tried_all(self, pod: ToyPod) -> bool:
        plan = self._plan_of(pod)
        return plan is not None and all(
            a.name in pod.adapters and pod.adapters[a.name].state != "Loading" for a in plan.adapters
        )

    def move_pods(self) -> None:
        for pod in list(self.pods.values()):
            if pod.deleted:
                del self.pods[pod.name]
                self.changed()
            elif pod.step == 0:
                config = self.objects.get(("ConfigMap", names.pool_plan(pod.pool)))
                if config is not None:
                    pod.digest, pod.step = config.obj["data"]["base-digest"] or digest(pod.base), 1
                    self.changed()
            elif pod.step < LAST_STEP:
                pod.step += 1
                self.changed()

    def _plan_of(self, pod: ToyPod) -> PoolPlan | None:
        config = self.objects.get(("ConfigMap", names.pool_plan(pod.pool)))
        return PoolPlan.model_validate_json(config.obj["data"][PLAN_KEY]) if config else None

    def move_agents(self) -> None:
        for pod in self.pods.values():
            plan = self._plan_of(pod) if pod.serves else None
            if plan is None:
                continue
            wanted = {a.name: _next_report(a.name, a.digest, pod.adapters.get(a.name)) for a in plan.adapters}
            if wanted != pod.adapters:
                pod.adapters = wanted
                self.changed()

    def move_gateway(self, name: str) -> None:
        view = replace(self.history[-1], applied=(), now=START)
        if self.gateways.get(name) != view:
            self.gateways[name] = view
            told = {
                f"{r.namespace}/{r.deployment}": AppliedDeployment(
                    uid=r.uid, generation=r.generation, weights=r.weights
                )
                for r in self.routes(name).values()
            }
            report = AppliedReport(gateway=name, version=1, deployments=told)
            if self.applied.get(name) != report:
                self.applied[name] = report
                self.changed()

    def wait(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.remember()

    def kill_pod(self, number: int) -> None:
        if self.pods:
            pod = sorted(self.pods.values(), key=lambda p: p.name)[number % len(self.pods)]
            pod.deleted = True
            self.changed()

    # looking at it

    def of_kind(self, kind: str) -> tuple[Any, ...]:
        return tuple(r for (k, _), r in sorted(self.resources.items()) if k == kind)

    def situation(self) -> Situation:
        return Situation(
            bases=self.of_kind("BaseModel"),
            adapters=self.of_kind("LoRAAdapter"),
            deployments=self.of_kind("ModelDeployment"),
            pods=tuple(_observed_pod(p) for p in sorted(self.pods.values(), key=lambda p: p.name)),
            children=tuple(self._observed_child(k, self.objects[k]) for k in sorted(self.objects)),
            applied=tuple(report for _, report in sorted(self.applied.items())),
            gateways_expected=2,
            settings=SETTINGS,
            now=self.clock,
        )

    def _observed_child(self, key: Key, child: ToyObject) -> ChildObservation:
        known = self._observed.get((key, child.version))
        if known is None:
            metadata = child.obj["metadata"]
            annotations = {**metadata["annotations"], **child.annotations}
            ours = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": child.owned}
            stored = {"uid": child.uid, "resourceVersion": str(child.version), "annotations": annotations}
            stored |= {"managedFields": [ours, {"manager": "somebody", "operation": "Update", "fieldsV1": {}}]}
            known = child_observation({**child.obj, "metadata": {**metadata, **stored}, "status": {}})
            self._observed[key, child.version] = known
        if child.template is None:
            return known
        pods = [p for p in self.pods.values() if p.pool == known.pool and not p.deleted]
        updated = sum(p.template == child.template for p in pods)
        return replace(known, updated_replicas=updated, old_replicas=len(pods) - updated)

    def routes(self, gateway: str) -> dict[str, ModelRoutes]:
        """What a gateway serves, as it last saw the cluster, by model name."""
        view = self.gateways[gateway]
        mine = {d.metadata.key: d for d in view.deployments}
        return {
            model: model_routes(mine[key], view.adapters, view.bases, view.pods)
            for model, key in owners(view.deployments).items()
        }

    def digest(self) -> dict[str, Any]:
        """What is wanted and served, without names, times and versions that differ from run to run."""
        children = {f"{k}/{n}": _without_identities(c) for (k, n), c in self.objects.items()}
        pods = sorted(
            (p.pool, p.serves, sorted((n, r.state) for n, r in p.adapters.items())) for p in self.pods.values()
        )
        statuses = {f"{k}/{n}": _settled(r) for (k, n), r in self.resources.items()}
        return {"children": children, "pods": pods, "statuses": statuses}


MEDDLING: dict[str, tuple[tuple[tuple[str, ...], Any], ...]] = {
    "Deployment": (
        (("spec", "replicas"), 0),
        (("spec", "replicas"), 3),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), 1),
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


def _next_report(name: str, planned: str | None, before: AdapterReport | None) -> AdapterReport:
    """An agent's next word: it reads the bytes, loads, and then serves; or says what is wrong."""
    if before is None:
        return AdapterReport(state="Loading", digest=planned)
    if name == CORRUPT:
        return failed("NonFiniteValues", "a weight is NaN")
    if planned not in (None, digest(name)):
        return failed("DigestMismatch", f"found {digest(name)}, pinned is {planned}")
    return loaded(name)


def _observed_pod(pod: ToyPod) -> PodObservation:
    return PodObservation(
        name=pod.name,
        uid=pod.uid,
        namespace=NAMESPACE,
        pool=pod.pool,
        base_model=pod.base,
        created=pod.created,
        deleted=pod.deleted,
        ready=pod.serves,
        report=PodReport(
            address=pod.address,
            engine="Draining" if pod.deleted else "Ready",
            base_model=pod.base,
            adapters=dict(pod.adapters),
        )
        if pod.step >= LAST_STEP
        else None,
        base_report=BaseReport(ok=True, digest=digest(pod.base), size_bytes=1, architecture="Toy")
        if pod.step
        else None,
    )


def _without_identities(child: ToyObject) -> dict[str, Any]:
    metadata = {k: v for k, v in child.obj["metadata"].items() if k not in ("ownerReferences", "annotations")}
    marks = sorted({**child.obj["metadata"]["annotations"], **child.annotations})
    return {**child.obj, "metadata": {**metadata, "annotations": marks}}


def _settled(resource: Resource) -> dict[str, Any]:
    """The status without times, and without what depends on what was seen on the way and is not wanted any more: facts
    about files that no pod has loaded, who was stable before a canary, and so who gets what is withheld."""
    status = resource.status.to_dict()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status.pop("conditions")}
    status.pop("observedGeneration")
    if isinstance(resource, LoRAAdapterResource) and conditions["Loaded"][0] == "False":
        return {"Ready": conditions["Ready"], "Loaded": conditions["Loaded"], "usedBy": status.get("usedBy")}
    if conditions["Ready"] == ("True", "NotUsed"):
        return {"Ready": "NotUsed", "usedBy": status.get("usedBy")}
    rollout = status.pop("rollout", {})
    if rollout.get("phase") == "Completed":
        status["rollout"] = rollout
    if any(t.get("withheld") for t in status.get("traffic", [])):
        conditions.pop("Available")
        told = [{**t, "withheld": t.get("withheld", "").split(":")[0]} for t in status["traffic"]]
        status["traffic"] = [{k: v for k, v in t.items() if k != "weight"} for t in told]
    return {**status, "conditions": conditions}


PLANS: dict[str, Callable[[Situation, str], Plan]] = {
    "BaseModel": lambda s, name: plan_basemodel(s.base_model(name)),
    "LoRAAdapter": lambda s, name: plan_loraadapter(s.adapter(name)),
    "ModelDeployment": lambda s, name: plan_modeldeployment(s.deployment(name)),
}


@dataclass
class Operator:
    """Executes plans as the runtime does; `events` is everything it told."""

    world: World
    events: list[Event] = field(default_factory=list)
    _seen: dict[Key, int] = field(default_factory=dict)
    _due: dict[Key, datetime] = field(default_factory=dict)

    def reconcile(self, key: Key, *, behind: int = 0, crash_after: int | None = None) -> Plan:
        """One pass over one object: on an old view, or ending after so many actions without a status."""
        kind, name = key
        world = self.world
        view = replace(world.history[max(0, len(world.history) - 1 - behind)], now=world.clock)
        seen = world.changes
        plan = PLANS[kind](view, name)
        if any(isinstance(a, Delete) for a in plan.actions):
            # who deletes asks the API server itself for references and Deployments
            now, kept = world.situation(), tuple(c for c in view.children if c.kind != "Deployment")
            fresh = tuple(c for c in now.children if c.kind == "Deployment")
            view = replace(view, deployments=now.deployments, children=(*kept, *fresh))
            plan = PLANS[kind](view, name)
        for action in plan.actions[:crash_after]:
            world.execute(action)
        if crash_after is not None:
            return plan
        known = next((r for r in _resources(view, kind) if r.metadata.name == name), None)
        if known is not None and plan.status is not None and world.put_status(kind, known.metadata, plan.status):
            self.events += plan.events
        self._seen[key] = seen
        self._due.pop(key, None)
        if plan.requeue_after is not None:
            self._due[key] = world.clock + timedelta(seconds=max(0.0, plan.requeue_after))
        return plan

    def settle(self) -> None:
        """No more faults: every wake-up arrives, every part moves, time passes to what is due, until all is quiet."""
        world = self.world
        self._seen.clear()
        for _ in range(400):
            before = world.changes
            for key in sorted(world.resources):
                if (
                    self._seen.get(key) != world.changes
                    or self._due.get(key, world.clock + timedelta(1)) <= world.clock
                ):
                    self.reconcile(key)
            for part in PARTS.values():
                part(world)
            if world.changes != before or any(self._seen.get(k) != world.changes for k in world.resources):
                continue
            self._due = {k: d for k, d in self._due.items() if k in world.resources}
            if not self._due:
                return
            world.clock = max(world.clock + timedelta(seconds=1), min(self._due.values()))
            world.remember()
        raise AssertionError(f"not quiet after 400 rounds: {world.digest()}")


def _resources(view: Situation, kind: str) -> tuple[Resource, ...]:
    found: dict[str, tuple[Resource, ...]] = {
        "BaseModel": view.bases,
        "LoRAAdapter": view.adapters,
        "ModelDeployment": view.deployments,
    }
    return found[kind]


PARTS: dict[str, Callable[[World], None]] = {
    "garbage collector": World.collect_garbage,
    "Deployment controller": World.roll_deployments,
    "pods": World.move_pods,
    "agents": World.move_agents,
    "gateway g1": lambda w: w.move_gateway("g1"),
    "gateway g2": lambda w: w.move_gateway("g2"),
}


def different(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two digests differ, a line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [line for k in keys for line in different(one.get(k), other.get(k), f"{where}/{k}")]
    return [] if one == other else [f"{where}: {one} != {other}"]
