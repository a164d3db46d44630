"""A cluster in memory that behaves as far as plans can tell: API server, garbage collector, Deployment controller,
pods with their agents, and gateways; `execution.Operator` is the operator, which may crash, be late, or read what is no
longer so.

Rules, as in the real thing:
- every change wakes every object's pass (the operator may lose the wake-up; `settle` gives it again, as a resync does);
- nothing happens by itself: each part moves one step when it is told to, so that any order can be tried.

`World.digest()` is what two runs are compared by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from tests.builders import NAMESPACE, SETTINGS, Situation, digest, failed, loaded
from tests.toyworld.server import START, ApiServer, Key, Resource, ToyObject
from tuneyard.api import names
from tuneyard.api.documents import (
    AdapterReport,
    AppliedDeployment,
    AppliedReport,
    BaseReport,
    PodReport,
    PoolPlan,
    PrewarmPlan,
    plan_text,
)
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.planning.modelnames import owners
from tuneyard.planning.observations import ChildObservation, PodObservation
from tuneyard.planning.routes import ModelRoutes, model_routes

CORRUPT = "nan"
"""The adapter whose files no pod serves."""
NODES = 2
"""Those whose caches are filled beforehand, at once."""
LAST_STEP = 3
"""A toy pod's steps: scheduled, verified, engine ready."""


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
    wanted_as: str
    step: int = 0
    deleted: bool = False
    digest: str | None = None
    """What `verify` was told to find."""
    adapters: dict[str, AdapterReport] = field(default_factory=dict)

    @property
    def serves(self) -> bool:
        return self.step >= LAST_STEP and not self.deleted


class World(ApiServer):
    """Everything but the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = START
        self.pods: dict[str, ToyPod] = {}
        self.gateways: dict[str, Situation] = {}
        """What each last saw."""
        self.applied: dict[str, AppliedReport] = {}
        self.history: list[Situation] = []
        self.remember()

    def changed(self) -> None:
        super().changed()
        self.remember()

    def remember(self) -> None:
        self.history = [*self.history[-3:], self.situation()]

    def _stamp(self) -> str:
        return self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def remove(self, key: Key) -> None:
        """Pods go with their Deployment."""
        if key[0] == "Deployment":
            labels = self.objects[key].obj["metadata"]["labels"]
            for pod in self.pods.values():
                pod.deleted |= pod.pool == labels[names.LABEL_POOL]
        super().remove(key)

    # controllers: each moves everything of its kind by one step

    def collect_garbage(self) -> None:
        living = {r.metadata.uid for r in self.resources.values()}
        for key, child in list(self.objects.items()):
            owners_of = child.obj["metadata"]["ownerReferences"]
            if not any(o["uid"] in living for o in owners_of):
                self.remove(key)

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
                spec["template"]["metadata"]["annotations"][names.ANNOTATION_TEMPLATE],
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
        return (
            plan is not None
            and plan.pods != []
            and all(a.name in pod.adapters and pod.adapters[a.name].state != "Loading" for a in plan.adapters)
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
        text = plan_text(config.obj) if config else None
        return PoolPlan.model_validate_json(text).share(pod.name) if text else None

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
                    uid=r.uid, generation=r.generation, weights=r.weights, contents=r.contents
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

    def restart_engine(self, number: int) -> None:
        """An engine that comes back has no adapters."""
        if self.pods:
            pod = sorted(self.pods.values(), key=lambda p: p.name)[number % len(self.pods)]
            pod.step, pod.adapters = min(pod.step, 1), {}
            self.changed()

    # looking at it

    def situation(self) -> Situation:
        return Situation(
            bases=self.of_kind("BaseModel"),
            adapters=self.of_kind("LoRAAdapter"),
            deployments=self.of_kind("ModelDeployment"),
            pods=tuple(_observed_pod(p) for p in sorted(self.pods.values(), key=lambda p: p.name)),
            children=tuple(self._observed_child(k) for k in sorted(self.objects)),
            applied=tuple(report for _, report in sorted(self.applied.items())),
            gateways_expected=2,
            settings=SETTINGS,
            now=self.clock,
        )

    def _observed_child(self, key: Key) -> ChildObservation:
        child, known = self.objects[key], self.stored(key)
        if known.kind == "DaemonSet":
            return replace(known, replicas=NODES, ready_replicas=NODES)
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
        pods = sorted((p.pool, p.serves) for p in self.pods.values())
        copies = sorted((p.pool, n, r.state) for p in self.pods.values() for n, r in p.adapters.items())
        statuses = {f"{k}/{n}": _settled(r) for (k, n), r in self.resources.items()}
        return {"children": children, "pods": pods, "copies": copies, "statuses": statuses}


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
        template=pod.template,
        wanted_as=pod.wanted_as,
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
    known = {**child.obj, "metadata": {**metadata, "annotations": marks}}
    plan = plan_text(child.obj) if child.obj["kind"] == "ConfigMap" else None
    if plan is None:
        return known
    if names.LABEL_POOL in metadata["labels"]:
        return {**known, "data": _without_pods(PoolPlan.model_validate_json(plan))}
    # of a base that nobody uses in the end, whether it was ever read depends on what happened on the way
    return {**known, "data": PrewarmPlan.model_validate_json(plan).model_copy(update={"digest": None}).to_dict()}


def _without_pods(plan: PoolPlan) -> dict[str, Any]:
    """How many pods have each adapter; which ones depends on which there were when it came."""
    pods = {a.name: a.pods and len(a.pods) for a in plan.adapters}
    return {**plan.to_dict(), "pods": plan.pods and len(plan.pods), "adapters": pods}


def _settled(resource: Resource) -> dict[str, Any]:
    """The status without times, and without what depends on what was seen on the way and is not wanted any more: facts
    about files that no pod has loaded, who was stable before a canary, since when and who was promoted, and so who gets
    what is withheld."""
    status = resource.status.to_dict()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status.pop("conditions")}
    for history in ("observedGeneration", "promotedAt", "promotedBy"):
        status.pop(history, None)
    if isinstance(resource, LoRAAdapterResource) and conditions["Loaded"][0] == "False":
        return {"Ready": conditions["Ready"], "Loaded": conditions["Loaded"], "usedBy": status.get("usedBy")}
    if conditions["Ready"] == ("True", "NotUsed"):
        return {"Ready": "NotUsed", "usedBy": status.get("usedBy")}
    rollout = status.pop("rollout", {})
    rollout.pop("stableSince", None)
    if rollout.get("phase") == "Completed":
        status["rollout"] = rollout
    if any(t.get("withheld") for t in status.get("traffic", [])):
        conditions.pop("Available")
        told = [{**t, "withheld": t.get("withheld", "").split(":")[0]} for t in status["traffic"]]
        status["traffic"] = [{k: v for k, v in t.items() if k != "weight"} for t in told]
    return {**status, "conditions": conditions}


PARTS: dict[str, Callable[[World], None]] = {
    "garbage collector": lambda w: w.collect_garbage(),
    "Deployment controller": World.roll_deployments,
    "pods": lambda w: w.move_pods(),
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
