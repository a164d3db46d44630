"""Observations: everything a plan is made from, read in one go.

`Reads` answers from the informers, which may be a little behind. `FreshReads` asks the API server for what a mistake
would be costly about: whether something still refers to a pool that is about to be deleted, and whether the pods of a
revision that is about to become the stable one are really there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import chain
from typing import TypeVar

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import AppliedReport, PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.sources import Source
from tuneyard.planning import children
from tuneyard.planning.answers import AnswersView
from tuneyard.planning.buildinputs import credentials_of_build, named_adapters
from tuneyard.planning.buildobservations import BuildObservation
from tuneyard.planning.demand import DemandView
from tuneyard.planning.gateobservations import GateObservation
from tuneyard.planning.observations import (
    BaseModelObservation,
    ChildObservation,
    EngineKeys,
    LoRAAdapterObservation,
    ModelDeploymentObservation,
    PodObservation,
    PoolPlaces,
    child_observation,
    pod_observation,
)
from tuneyard.planning.pools import places
from tuneyard.planning.promqueries import Evaluations
from tuneyard.planning.rolloutrecord import worth_keeping
from tuneyard.planning.settings import Settings
from tuneyard.runtime.buildgather import gather_build, wants_look
from tuneyard.runtime.gategather import gather_gates
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.wakes import Group, all_bases, claim, unreadable
from tuneyard.runtime.world import CONFIG_MAP, World, adapter_of, base_model_of, deployment_of, read_or_none
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, Object

_Value = TypeVar("_Value")


class GatewayView:
    """What is known of the gateways at one moment."""

    def __init__(
        self,
        applied: tuple[AppliedReport, ...] = (),
        expected: int = 0,
        unreachable: tuple[str, ...] = (),
        demand: DemandView | None = None,
        answers: AnswersView | None = None,
    ) -> None:
        self.applied = applied
        self.expected = expected
        self.unreachable = unreachable
        self.demand = demand or DemandView()
        self.answers = answers or AnswersView()


class Reads:
    """Reads from the informers' copies."""

    def __init__(self, world: World, api: Api) -> None:
        self._world = world
        self._api = api

    @property
    def has_leader_worker_sets(self) -> bool:
        """Whether they may be made."""
        return self._world.has_leader_worker_sets

    def object(self, key: Key) -> Object | None:
        """The object of a key as it is stored."""
        return self._world.raw(key)

    def base_model(self, namespace: str, name: str) -> BaseModelResource | None:
        """One BaseModel."""
        return self._world.base_models.get(namespace, name)

    def adapter(self, namespace: str, name: str) -> LoRAAdapterResource | None:
        """One LoRAAdapter."""
        return self._world.adapters.get(namespace, name)

    def deployment(self, namespace: str, name: str) -> ModelDeploymentResource | None:
        """One ModelDeployment."""
        return self._world.deployments.get(namespace, name)

    def siblings(self, namespace: str) -> tuple[BaseModelResource, ...]:
        """All BaseModels of a namespace."""
        return self._world.base_models.all(self._of(BASE_MODEL, all_bases(namespace)))

    def adapters(
        self, namespace: str, bases: Iterable[str], named: Iterable[str] = ()
    ) -> tuple[LoRAAdapterResource, ...]:
        """The LoRAAdapters of these bases, and those with these names."""
        found = self._of(LORA_ADAPTER, *_bases(namespace, bases))
        others = {Key(LORA_ADAPTER, namespace, name) for name in named}.difference(found)
        return self._world.adapters.all((*found, *sorted(others)))

    def deployments(self, namespace: str, bases: Iterable[str]) -> tuple[ModelDeploymentResource, ...]:
        """The ModelDeployments with a revision of one of these bases."""
        return self._world.deployments.all(self._of(MODEL_DEPLOYMENT, *_bases(namespace, bases)))

    def record(self, namespace: str, name: str, deployment: ModelDeploymentResource | None) -> ChildObservation | None:
        """The ConfigMap that outlives the ModelDeployment of this name.

        Where the status says nothing of a rollout, all depends on it: then it is fetched. A copy that is a little old
        would let a rejected revision begin again. Where one is about to be made it is too: of the name there may be
        somebody else's, which the informers do not show.
        """
        found = self._world.children[CONFIG_MAP].get(namespace, names.rollout_record(name))
        unsure = deployment is not None and found is None and worth_keeping(deployment, deployment.status.rollout)
        if unsure or (deployment is not None and deployment.status.rollout is None):
            return self._fetched_config_map(namespace, names.rollout_record(name))
        return None if found is None else self._world.applied.seen(found)

    def evidence(self, namespace: str, name: str) -> ChildObservation | None:
        """The ConfigMap with the evidence on a candidate of this ModelDeployment.

        One that is a little old does no harm: what has come since is counted again from there.
        """
        return self._world.evidence(namespace, name)

    def gates(
        self, deployment: ModelDeploymentResource | None, keys: EngineKeys, now: datetime
    ) -> GateObservation | None:
        """What is known of the deployment's gates, always fetched; None while none is under way."""
        return gather_gates(self._api, deployment, keys, now)

    def build(self, base: BaseModelResource | None) -> BuildObservation | None:
        """What is known of a base's build, always fetched; None where there is nothing to build any more."""
        if base is None or base.spec.source.build is None or not wants_look(base):
            return None
        namespace = base.metadata.namespace
        named = (self.adapter(namespace, name) for name in sorted(named_adapters(base.spec.source.build)))
        return gather_build(self._api, base, tuple(a for a in named if a is not None))

    def _fetched_config_map(self, namespace: str, name: str) -> ChildObservation | None:
        item = objects.get(self._api, *CONFIG_MAP, namespace, name)
        return None if item is None else child_observation(item)

    def unreadable(self, namespace: str) -> tuple[str, ...]:
        """Names of the ModelDeployments that exist and cannot be read."""
        return tuple(key.name for key in self._of(MODEL_DEPLOYMENT, unreadable(namespace)))

    def places(self, base: BaseModelResource) -> tuple[PoolPlaces, ...]:
        """Who has no place in which of the base's pools."""
        key = Key(BASE_MODEL, base.metadata.namespace, base.metadata.name)
        return self._world.places.of(key, lambda: self._places(base))

    def naming(self, adapter: Key) -> tuple[ModelDeploymentResource, ...]:
        """The ModelDeployments with a revision that names this adapter, of whatever base."""
        return self._world.deployments.all(self._of(MODEL_DEPLOYMENT, adapter))

    def claims(self, model_name: str) -> tuple[ModelDeploymentResource, ...]:
        """The ModelDeployments of all namespaces that claim this model name."""
        found = self._world.deployments.all(self._of(MODEL_DEPLOYMENT, claim(model_name)))
        return tuple(d for d in found if self._world.in_scope(d.metadata.namespace))

    def pods(self, namespace: str, bases: Iterable[str]) -> tuple[PodObservation, ...]:
        """The model pods of these bases."""
        groups = [(namespace, children.label_value(base)) for base in bases]
        return self._world.pods.all(self._world.pod_index.of(*groups))

    def children(self, namespace: str, base: str) -> tuple[ChildObservation, ...]:
        """The operator's own objects for this base, and those that the namespace's pools share."""
        world = self._world
        members = world.child_index.of((namespace, children.label_value(base)), (namespace, ""))
        found = [world.children[m[:2]].get(m[2], m[3]) for m in members]
        seen = [world.applied.seen(child) for child in found if child is not None]
        missing = self.missing(namespace, base)
        # of a pool that goes, too: first of all, for without any other object nothing tells of it
        pools = {c.pool: c for c in seen if c.pool}
        secrets = (world.applied.secret_beside(c, missed=pool in missing) for pool, c in pools.items())
        return (*secrets, *seen)

    def missing(self, namespace: str, base: str) -> frozenset[str]:
        """The base's pools with a pod that waits for something that it names."""
        return frozenset(p.pool for p in Reads.pods(self, namespace, [base]) if p.misses and not p.deleted)

    def _places(self, base: BaseModelResource) -> tuple[PoolPlaces, ...]:
        namespace, name = base.metadata.namespace, base.metadata.name
        plans = self.plans(namespace, name)
        return places(base, self.deployments(namespace, [name]), self.adapters(namespace, [name]), plans)

    def plans(self, namespace: str, base: str) -> tuple[ChildObservation, ...]:
        """The ConfigMaps with the plans of the base's pools."""
        found = self._world.child_index.of((namespace, children.label_value(base)))
        return self._world.children[CONFIG_MAP].all(m for m in found if m[:2] == CONFIG_MAP)

    def _of(self, kind: str, *groups: Group) -> tuple[Key, ...]:
        """The members of this kind of any of these groups."""
        return self._world.index.of(*((kind, group) for group in groups))


class FreshReads(Reads):
    """Reads from the API server itself, at most once per object or list and pass; raises ApiError."""

    def __init__(self, world: World, api: Api) -> None:
        super().__init__(world, api)
        self._fetched: dict[Key, Object | None] = {}

    def object(self, key: Key) -> Object | None:
        """The object of a key, fetched."""
        if key not in self._fetched:
            self._fetched[key] = objects.get(self._api, names.API_VERSION, *key)
        return self._fetched[key]

    def base_model(self, namespace: str, name: str) -> BaseModelResource | None:
        """One BaseModel, fetched."""
        return self._read(Key(BASE_MODEL, namespace, name), base_model_of)

    def adapter(self, namespace: str, name: str) -> LoRAAdapterResource | None:
        """One LoRAAdapter, fetched."""
        return self._read(Key(LORA_ADAPTER, namespace, name), adapter_of)

    def deployment(self, namespace: str, name: str) -> ModelDeploymentResource | None:
        """One ModelDeployment, fetched."""
        return self._read(Key(MODEL_DEPLOYMENT, namespace, name), deployment_of)

    def places(self, base: BaseModelResource) -> tuple[PoolPlaces, ...]:
        """Who has no place in which of the base's pools, for the base as it was fetched."""
        return self._places(base)

    def pods(self, namespace: str, bases: Iterable[str]) -> tuple[PodObservation, ...]:
        """The model pods of these bases, listed."""
        labels = ",".join(sorted({children.label_value(base) for base in bases}))
        found = objects.listed(self._api, "v1", "Pod", namespace, f"{names.LABEL_BASE_MODEL} in ({labels})")
        pods = (read_or_none(pod_observation, item) for item in found)
        return tuple(p for p in pods if p is not None)

    def record(self, namespace: str, name: str, deployment: ModelDeploymentResource | None) -> ChildObservation | None:
        """The ConfigMap that outlives the ModelDeployment of this name, fetched."""
        del deployment
        return self._fetched_config_map(namespace, names.rollout_record(name))

    def evidence(self, namespace: str, name: str) -> ChildObservation | None:
        """The ConfigMap with the evidence on a candidate of this ModelDeployment, fetched where there may be one."""
        deployment = self.deployment(namespace, name)
        if deployment is None or deployment.spec.analysis is None:
            return super().evidence(namespace, name)
        return self._fetched_config_map(namespace, names.rollout_evidence(name))

    def _read(self, key: Key, read: Callable[[Object], _Value]) -> _Value | None:
        item = self.object(key)
        return None if item is None else read_or_none(read, item)


class FreshReferences(FreshReads):
    """Also lists ModelDeployments and workloads, for plans that delete because nothing refers to something.

    A Deployment that the informers do not show yet would lose what its pods need.
    """

    def __init__(self, world: World, api: Api) -> None:
        super().__init__(world, api)
        self._deployments: dict[str, dict[str, ModelDeploymentResource | None]] = {}

    def deployments(self, namespace: str, bases: Iterable[str]) -> tuple[ModelDeploymentResource, ...]:
        """The ModelDeployments with a revision of one of these bases, listed."""
        wanted = frozenset(bases)
        found = (d for d in self._listed(namespace).values() if d is not None)
        return tuple(d for d in found if any(r.base_model in wanted for r in d.spec.revisions))

    def unreadable(self, namespace: str) -> tuple[str, ...]:
        """Names of the listed ones that cannot be read."""
        return tuple(sorted(name for name, found in self._listed(namespace).items() if found is None))

    def children(self, namespace: str, base: str) -> tuple[ChildObservation, ...]:
        """The operator's own objects, of these the workloads listed."""
        label = f"{names.LABEL_BASE_MODEL}={children.label_value(base)}"
        kinds = children.WORKLOADS if self._world.has_leader_worker_sets else (children.DEPLOYMENT,)
        found = (item for kind in kinds for item in objects.listed(self._api, *kind, namespace, label))
        listed = [child_observation(item) for item in found]
        others = (c for c in super().children(namespace, base) if (c.api_version, c.kind) not in kinds)
        return (*others, *(self._world.applied.seen(c) for c in listed))

    def _listed(self, namespace: str) -> dict[str, ModelDeploymentResource | None]:
        if namespace not in self._deployments:
            found = objects.listed(self._api, names.API_VERSION, MODEL_DEPLOYMENT, namespace)
            read = {item["metadata"]["name"]: read_or_none(deployment_of, item) for item in found}
            self._deployments[namespace] = read
        return self._deployments[namespace]


def gather_basemodel(
    reads: Reads, key: Key, *, keys: EngineKeys, settings: Settings, now: datetime, demand: DemandView
) -> BaseModelObservation:
    """What plan_basemodel looks at."""
    namespace, name = key.namespace, key.name
    deployments = reads.deployments(namespace, [name])
    siblings = reads.siblings(namespace)
    named = {r.adapter for d in deployments for r in d.spec.revisions if r.adapter and r.base_model == name}
    base = reads.base_model(namespace, name)
    return BaseModelObservation(
        base=base,
        deployments=deployments,
        adapters=reads.adapters(namespace, [name], named),
        pods=reads.pods(namespace, [name]),
        children=reads.children(namespace, name),
        siblings=siblings,
        keys=keys,
        settings=settings,
        now=now,
        credentials=credentials_of(reads, namespace, siblings),
        unreadable=reads.unreadable(namespace),
        demand=demand,
        has_leader_worker_sets=reads.has_leader_worker_sets,
        build=reads.build(base),
    )


def credentials_of(reads: Reads, namespace: str, bases: Iterable[BaseModelResource]) -> frozenset[str]:
    """Names of the Secrets that agents of the namespace need."""
    known = {b.metadata.name: b for b in bases}
    adapters = reads.adapters(namespace, known)
    sources: list[Source] = [*(b.spec.source for b in known.values()), *(a.spec.source for a in adapters)]
    named = {r.adapter for d in reads.deployments(namespace, known) for r in d.spec.revisions if r.adapter}
    gone = named - {a.metadata.name for a in adapters}
    if gone:
        # pods are told to fetch these as long as they stand in a plan (planning/vanished.py)
        plans = (parsed(PoolPlan, c.plan) for base in known for c in reads.plans(namespace, base))
        sources += [a.source for plan in plans if plan for a in plan.adapters if a.name in gone]
    built = (b.spec.source.build for b in known.values() if b.spec.source.build)
    return frozenset((*(s.credentials for s in sources if s.credentials), *chain(*map(credentials_of_build, built))))


def gather_loraadapter(reads: Reads, key: Key, *, settings: Settings, now: datetime) -> LoRAAdapterObservation:
    """What plan_loraadapter looks at."""
    adapter = reads.adapter(key.namespace, key.name)
    base = reads.base_model(key.namespace, adapter.spec.base_model) if adapter else None
    parent = adapter.parent_name if adapter else None
    return LoRAAdapterObservation(
        adapter=adapter,
        base=base,
        pools=reads.places(base) if base else (),
        # those that name it with another base too: that is what has to be said of it
        deployments=reads.naming(key),
        pods=reads.pods(key.namespace, [base.metadata.name]) if base else (),
        settings=settings,
        now=now,
        parent=reads.adapter(key.namespace, parent) if parent else None,
    )


def gather_modeldeployment(
    reads: Reads,
    key: Key,
    *,
    gateways: GatewayView,
    keys: EngineKeys,
    settings: Settings,
    now: datetime,
    checks: Evaluations | None = None,
) -> ModelDeploymentObservation:
    """What plan_modeldeployment looks at."""
    namespace = key.namespace
    deployment = reads.deployment(namespace, key.name)
    revisions = deployment.spec.revisions if deployment else []
    bases = sorted({r.base_model for r in revisions if r.base_model})
    found_bases = (reads.base_model(namespace, base) for base in bases)
    found_adapters = (reads.adapter(namespace, name) for name in sorted({r.adapter for r in revisions if r.adapter}))
    return ModelDeploymentObservation(
        deployment=deployment,
        claims=reads.claims(deployment.model_name) if deployment else (),
        adapters=tuple(a for a in found_adapters if a is not None),
        base_models=tuple(b for b in found_bases if b is not None),
        pods=reads.pods(namespace, bases) if bases else (),
        applied=gateways.applied,
        gateways_expected=gateways.expected,
        unreachable=gateways.unreachable,
        demand=gateways.demand,
        settings=settings,
        now=now,
        record=reads.record(namespace, key.name, deployment),
        answers=gateways.answers,
        evidence=reads.evidence(namespace, key.name),
        gates=reads.gates(deployment, keys, now),
        checks=checks or {},
    )


def _bases(namespace: str, bases: Iterable[str]) -> list[Key]:
    return [Key(BASE_MODEL, namespace, base) for base in bases]
