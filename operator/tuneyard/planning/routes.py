"""What gateways serve, as values of our own: models -> revisions -> endpoints. Translated to xDS elsewhere.

Rules:
- a model's routes follow from its owner's spec and status, the adapters' digests and the pods' reports alone, so that
  every gateway computes the same and none asks the operator;
- weights are those of traffic.effective; a revision is listed even at weight 0, because a request may choose it;
- what vanished (deployment, adapter, base) counts for GRACE seconds more: a forced sync deletes and creates again, and
  no request may fail for that;
- a deployment that cannot be read keeps the routes of its last readable form: a typo of one tool is not an outage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from tuneyard.api.analysis import Slo
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.drill import Fault, fault_of
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.routing import Affinity
from tuneyard.api.schema import seconds
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.autoscaling import ENGINES, targets_of
from tuneyard.planning.contents import hash_of
from tuneyard.planning.endpoints import Endpoint, ReportingPod, adapter_digest, engine_name, ready_pods
from tuneyard.planning.external import Accesses, ExternalRoute, accesses_of, external_route, lacking_of, nothing_asked
from tuneyard.planning.idling import has_no_room, held_on_demand
from tuneyard.planning.mirror import MirrorRoute, mirror_route
from tuneyard.planning.modelnames import owners
from tuneyard.planning.poolreplicas import scaled_by
from tuneyard.planning.pools import pool_of
from tuneyard.planning.rolloutcontents import in_force
from tuneyard.planning.served import served_contents
from tuneyard.planning.traffic import effective

GRACE = 10.0
"""Seconds for which something that vanished still counts."""

Key = tuple[str, str]
"""(namespace, name)."""

_Resource = TypeVar("_Resource")


@dataclass(frozen=True)
class RevisionRoute:
    """One revision of a model."""

    name: str
    pool: str
    engine_name: str | None
    """What the engine is asked for; None while nobody knows the adapter's digest: then there is no endpoint."""
    weight: int
    """Percent of the model's requests that go here."""
    endpoints: tuple[Endpoint, ...] = ()
    adapter: str | None = None
    """The LoRAAdapter that it serves, None for the base itself."""
    digest: str | None = None
    """The digest of the adapter, or without one of the base, as far as it is known."""
    held: bool = False
    """No pod has it, and one will when somebody asks for it: requests are held until then."""
    starting: bool = False
    """It is held, and its pool has no pod that serves anything."""
    fault: Fault | None = None
    """What a rehearsal puts into its answers."""
    base_digest: str | None = None
    """With an adapter, the digest of its base, as far as it is known."""
    base_model: str | None = None
    """The BaseModel that it serves, or whose adapter."""
    prompt: SystemPrompt | None = None
    """What its chats begin with."""
    external: ExternalRoute | None = None
    """Where it is served, if not by pods of this cluster."""
    asks_engines: bool = False
    """Its pool is scaled by what its engines say (autoscaling.ENGINES)."""

    @property
    def contents(self) -> str:
        """What answers, as a hash: answers are known by it (served.py)."""
        base_digest = self.external.url if self.external else self.base_digest if self.adapter else self.digest
        return served_contents(self.pool, self.engine_name, base_digest, self.fault, self.prompt)


@dataclass(frozen=True)
class ModelRoutes:
    """Everything a gateway knows of one model. Invariant: weights and `unserved` add up to 100."""

    model: str
    namespace: str
    deployment: str
    uid: str
    generation: int
    created: int
    """Unix time, for /v1/models."""
    revisions: tuple[RevisionRoute, ...]
    unserved: int = 0
    """Percent that nobody may serve: those requests get 503."""
    allow_revision_header: bool = False
    gated: bool = False
    """Its rollout has gates: those who have their token may choose any revision."""
    no_room: bool = False
    """Requests are held for an adapter that its pool has no place for."""
    slo: Slo | None = None
    """What its answers are judged by."""
    mirror: MirrorRoute | None = None
    """Copies of requests that another revision gets."""
    stable: str = ""
    """The revision that has what no other one takes."""
    sticky_by: str | None = None
    """The header that says whose a request is, where users stay on their revision."""
    affinity: Affinity | None = None
    """Which requests go to the same pod."""
    timeout: int | None = None
    """Seconds that a request may take in all, None: as many as it likes."""
    idle_timeout: int | None = None
    """Seconds for which its engine may be silent, None: as gateways have it."""
    hold_seconds: int | None = None
    """How long its requests wait for what is loaded on demand; None: as long as the gateway says."""
    most_held: int | None = None
    """How many of them may wait at each gateway; None: as many as the gateway says."""

    @property
    def weights(self) -> dict[str, int]:
        """Weight per revision."""
        return {r.name: r.weight for r in self.revisions}

    @property
    def contents(self) -> dict[str, str]:
        """What each revision is."""
        return {r.name: r.contents for r in self.revisions}


GatewayRoutes = Mapping[str, ModelRoutes]
"""By model name."""


@dataclass(frozen=True)
class Vanished:
    """An object that the API server has no more, and when that was noticed (seconds on any one clock)."""

    deployments: Mapping[Key, tuple[ModelDeploymentResource, float]] = field(default_factory=dict)
    adapters: Mapping[Key, tuple[LoRAAdapterResource, float]] = field(default_factory=dict)
    base_models: Mapping[Key, tuple[BaseModelResource, float]] = field(default_factory=dict)


def readable_deployment(raw: Mapping[str, Any]) -> ModelDeploymentResource:
    """The object; ValueError where routes cannot be made of it (then the API server's rules were not in force)."""
    deployment = ModelDeploymentResource.model_validate(raw)
    revisions = {r.name for r in deployment.spec.revisions}
    targets = deployment.spec.traffic
    if not revisions.issuperset(t.revision for t in targets) or sum(t.weight for t in targets) != 100:
        raise ValueError("traffic must name listed revisions and sum to 100")
    return deployment


def lingering(
    present: Mapping[Key, _Resource], vanished: Mapping[Key, tuple[_Resource, float]], now: float
) -> dict[Key, _Resource]:
    """What counts: all that is present, and what vanished less than GRACE seconds ago."""
    recent = {key: gone for key, (gone, since) in vanished.items() if now - since < GRACE}
    return {**recent, **present}


def files_of(adapter: LoRAAdapterResource) -> object:
    """What of an adapter's spec decides which files are served: lineage, which grows, and a system prompt do not."""
    return adapter.spec.model_copy(update={"lineage": None, "system_prompt": None})


def with_known_digest(adapter: LoRAAdapterResource, before: LoRAAdapterResource | None) -> LoRAAdapterResource:
    """The adapter; one that was created again and not read yet keeps the digest it had with the same files.

    Without this a forced sync of an adapter whose digest stands in status only would unroute it until it is pinned.
    """
    known = before.status.digest if before is not None and files_of(before) == files_of(adapter) else None
    if known is None or adapter.pinned_digest:
        return adapter
    return adapter.model_copy(update={"status": adapter.status.model_copy(update={"digest": known})})


def with_known_rollout(
    deployment: ModelDeploymentResource, before: ModelDeploymentResource | None
) -> ModelDeploymentResource:
    """The deployment; one whose status says nothing (it was created again) keeps who was stable and who was rejected.

    Without this the rejected revision of an object that a forced sync has created again could be served until the
    operator has looked. A position on the way is not kept: without a status a candidate begins anew.
    """
    known = before.status.rollout if before is not None else None
    if known is None or deployment.status.rollout is not None:
        return deployment
    settled = {name: limit for name, limit in (known.allowed or {}).items() if limit in (0, 100)}
    kept = RolloutStatus(
        stable=known.stable,
        allowed=settled or None,
        contents=known.contents,
        verdicts=known.verdicts,
        history=known.history,
    )
    return deployment.model_copy(update={"status": deployment.status.model_copy(update={"rollout": kept})})


def _created(timestamp: str) -> int:
    """Unix time of an RFC 3339 text, 0 where there is none."""
    try:
        return int(datetime.fromisoformat(timestamp).timestamp())
    except ValueError:
        return 0


def model_routes(
    deployment: ModelDeploymentResource,
    adapters: Iterable[LoRAAdapterResource],
    base_models: Iterable[BaseModelResource],
    pods: Iterable[ReportingPod],
    accesses: Accesses = nothing_asked,
) -> ModelRoutes:
    """The routes of one deployment, as if it owned its model name; `accesses`: what there is for external revisions."""
    known, bases, reporting = list(adapters), list(base_models), list(pods)
    outside = accesses_of(deployment, accesses)
    ready = ready_pods(deployment, known, bases, reporting, lacking_of(outside))
    on_demand = held_on_demand(deployment, bases)
    pods_of = {revision: len(endpoints) for revision, endpoints in ready.items()}
    takers = {revision for revision, number in pods_of.items() if number} | on_demand
    rollout = in_force(
        deployment.status.rollout,
        _hashes(deployment, known, bases),
        takers,
        progressive=deployment.spec.progressive,
    )
    split = effective(
        deployment.spec,
        pods_of,
        stable=rollout.stable,
        allowed=rollout.allowed,
        on_demand=on_demand,
    )
    by_name = {a.metadata.name: a for a in known if a.metadata.namespace == deployment.metadata.namespace}
    prompts = {name: adapter.spec.system_prompt for name, adapter in by_name.items()}
    bases_by_name = {b.metadata.name: b for b in bases if b.metadata.namespace == deployment.metadata.namespace}
    base_digests = {name: base.pinned_digest for name, base in bases_by_name.items()}
    routing, fault = deployment.spec.routing, fault_of(deployment.metadata.annotations)
    waits = routing.cold_start if routing else None
    analysis = deployment.spec.analysis
    return ModelRoutes(
        model=deployment.model_name,
        namespace=deployment.metadata.namespace,
        deployment=deployment.metadata.name,
        uid=deployment.metadata.uid,
        generation=deployment.metadata.generation,
        created=_created(deployment.metadata.creation_timestamp),
        revisions=tuple(
            RevisionRoute(
                name=revision.name,
                pool=pool_of(deployment, revision),
                engine_name=engine_name(revision, by_name.get(revision.adapter or "")),
                weight=split.weights[revision.name],
                endpoints=ready[revision.name],
                adapter=revision.adapter,
                digest=(
                    adapter_digest(revision, by_name.get(revision.adapter))
                    if revision.adapter
                    else base_digests.get(revision.base_model)
                ),
                held=revision.name in on_demand and not ready[revision.name],
                starting=revision.name in on_demand
                and not any(p.pool == pool_of(deployment, revision) and _runs(p) for p in reporting),
                fault=fault if fault and fault.revision == revision.name else None,
                base_digest=base_digests.get(revision.base_model) if revision.adapter else None,
                base_model=revision.base_model,
                prompt=prompts.get(revision.adapter or "", revision.system_prompt_of_its_own),
                external=external_route(revision.external, outside.get(revision.name)),
                asks_engines=_asks_engines(bases_by_name.get(revision.base_model), deployment, revision),
            )
            for revision in deployment.spec.revisions
        ),
        unserved=split.unserved,
        allow_revision_header=bool(routing and routing.allow_revision_header),
        gated=deployment.spec.progressive and bool(deployment.spec.rollout and deployment.spec.rollout.gates),
        no_room=has_no_room(deployment),
        slo=analysis.slo if analysis else None,
        mirror=mirror_route(deployment.spec, pods_of, rollout.allowed),
        stable=split.stable,
        sticky_by=routing.sticky_by.header if routing and routing.sticky_by else None,
        affinity=routing.affinity if routing else None,
        timeout=seconds(routing.timeout) if routing and routing.timeout else None,
        idle_timeout=seconds(routing.idle_timeout) if routing and routing.idle_timeout else None,
        hold_seconds=seconds(waits.hold_timeout) if waits and waits.hold_timeout else None,
        most_held=waits.max_held if waits else None,
    )


def _asks_engines(base: BaseModelResource | None, deployment: ModelDeploymentResource, revision: Revision) -> bool:
    by = scaled_by(revision.serving, deployment.spec.serving, base.spec.serving) if base is not None else None
    return by is not None and bool(targets_of(by.targets).keys() & ENGINES)


def _runs(pod: ReportingPod) -> bool:
    return not pod.deleted and pod.report is not None and pod.report.engine == "Ready"


def _hashes(
    deployment: ModelDeploymentResource, adapters: Iterable[LoRAAdapterResource], bases: Iterable[BaseModelResource]
) -> dict[str, str | None]:
    """What the revisions are, as far as the status says whom its positions are about."""
    namespace, fault = deployment.metadata.namespace, fault_of(deployment.metadata.annotations)
    if deployment.status.rollout is None or not deployment.status.rollout.contents:
        return {}
    adapter_of = {a.metadata.name: a for a in adapters if a.metadata.namespace == namespace}
    base_of = {b.metadata.name: b for b in bases if b.metadata.namespace == namespace}
    return {
        r.name: hash_of(r, base_of.get(r.base_model), adapter_of.get(r.adapter or ""), fault)
        for r in deployment.spec.revisions
    }


def gateway_routes(
    deployments: Mapping[Key, ModelDeploymentResource],
    adapters: Mapping[Key, LoRAAdapterResource],
    base_models: Mapping[Key, BaseModelResource],
    pods: Iterable[ReportingPod],
    *,
    vanished: Vanished,
    now: float,
) -> GatewayRoutes:
    """The routes of every model, from all that is there and what vanished just now.

    The gateway process computes the same model by model, for those that a change touches (gateway/world.py).
    """
    routed = lingering(deployments, vanished.deployments, now)
    adapters = lingering(adapters, vanished.adapters, now)
    bases = lingering(base_models, vanished.base_models, now)
    everywhere = list(pods)
    return {
        model: model_routes(routed[key], adapters.values(), bases.values(), everywhere)
        for model, key in sorted(owners(routed.values()).items())
    }
