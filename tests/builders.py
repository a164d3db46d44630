"""Objects for tests, complete and valid, with only what a test is about given by hand.

Every builder returns the API's own class; `world_of` makes the three observations of one set of objects, so that a test
states a situation once. Times are minutes after T0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource, BaseModelSpec, BaseModelStatus
from tuneyard.api.build import BaseSource
from tuneyard.api.documents import (
    AdapterReport,
    AppliedDeployment,
    AppliedReport,
    BaseReport,
    DemandReport,
    DeploymentDemand,
    PodReport,
    RevisionDemand,
)
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterSpec, LoRAAdapterStatus
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.modeldeployment import (
    ModelDeploymentResource,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    Revision,
    TrafficTarget,
)
from tuneyard.api.rollout import RolloutSpec
from tuneyard.api.serving import ArtifactCache, ArtifactVolume, HostPath, Prewarm, ServingSpec
from tuneyard.api.sources import S3Source, Source, VolumeSource
from tuneyard.planning.answers import AnswersView
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
    child_observation,
)
from tuneyard.planning.pools import places
from tuneyard.planning.promqueries import Evaluations
from tuneyard.planning.settings import Settings

T0 = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
NAMESPACE = "team"
BASE = "smollm2"
KEYS = EngineKeys(b"not a secret: a test's master")
SETTINGS = Settings(allowed_host_path_prefixes=["/var/lib/models"], allowed_cache_host_paths=["/var/cache/tuneyard"])
VOLUME = ArtifactVolume(name="models", host_path=HostPath(path="/var/lib/models"))


def at(minutes: float) -> datetime:
    """A moment after T0."""
    return T0 + timedelta(minutes=minutes)


def stamp(minutes: float) -> str:
    """The same as text."""
    return at(minutes).strftime("%Y-%m-%dT%H:%M:%SZ")


def digest(text: str) -> str:
    """A digest that only this text has."""
    return f"sha256:{names.short_hash(text, length=64)}"


def meta(name: str, created: float = 0, **fields: Any) -> ObjectMeta:
    """Metadata of an object that is stored."""
    chosen = {
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "generation": 1,
        "resource_version": "1",
        "creation_timestamp": stamp(created),
    }
    return ObjectMeta(name=name, **{**chosen, **fields})


def base_model(
    name: str = BASE,
    *,
    serving: ServingSpec | None = None,
    status: BaseModelStatus | None = None,
    path: str = "smollm2",
    digest: str | None = None,
    source: Source | None = None,
    **fields: Any,
) -> BaseModelResource:
    """A BaseModel on the volume `models` (unless `source` is given), which its pool declares unless `serving` is."""
    return BaseModelResource(
        metadata=meta(name, **fields),
        spec=BaseModelSpec(
            source=BaseSource.from_dict((source or Source(volume=VolumeSource(name="models", path=path))).to_dict()),
            digest=digest,
            serving=serving or ServingSpec(artifact_volumes=[VOLUME]),
        ),
        status=status or BaseModelStatus(),
    )


def prewarmed_base(
    name: str = BASE, *, serving: ServingSpec | None = None, selector: dict[str, str] | None = None, **fields: Any
) -> BaseModelResource:
    """A BaseModel from a bucket that is fetched beforehand by nodes with the labels `selector`."""
    cache = ArtifactCache(
        host_path=HostPath(path="/var/cache/tuneyard"), size_limit="200Gi", prewarm=Prewarm(node_selector=selector)
    )
    block = ServingSpec(cache=cache, artifact_volumes=[VOLUME]).over(serving)
    return base_model(name, source=Source(s3=S3Source(uri=f"s3://models/{name}/")), serving=block, **fields)


def adapter(
    name: str,
    *,
    base: str = BASE,
    volume: str = "models",
    source: Source | None = None,
    digest: str | None = None,
    status: LoRAAdapterStatus | None = None,
    **fields: Any,
) -> LoRAAdapterResource:
    """A LoRAAdapter in a folder of its name, unless `source` is given."""
    return LoRAAdapterResource(
        metadata=meta(name, **fields),
        spec=LoRAAdapterSpec(
            base_model=base,
            source=source or Source(volume=VolumeSource(name=volume, path=f"adapters/{name}")),
            digest=digest,
        ),
        status=status or LoRAAdapterStatus(),
    )


def pinned(name: str, **fields: Any) -> LoRAAdapterResource:
    """A LoRAAdapter whose digest is known."""
    return adapter(name, status=LoRAAdapterStatus(digest=digest(name)), **fields)


def revision(
    name: str, adapter: str | None = None, *, base: str = BASE, serving: ServingSpec | None = None
) -> Revision:
    """A revision; without an adapter it serves the base."""
    return Revision(name=name, base_model=base, adapter=adapter, serving=serving)


def deployment(
    name: str = "chat",
    *,
    revisions: list[Revision] | None = None,
    traffic: dict[str, int] | None = None,
    model_name: str | None = None,
    serving: ServingSpec | None = None,
    rollout: RolloutSpec | None = None,
    status: ModelDeploymentStatus | None = None,
    **fields: Any,
) -> ModelDeploymentResource:
    """A ModelDeployment; by default one revision `v1` with adapter `v1`, the first revision gets all traffic."""
    listed = revisions or [revision("v1", "v1")]
    weights = traffic or {listed[0].name: 100}
    return ModelDeploymentResource(
        metadata=meta(name, **fields),
        spec=ModelDeploymentSpec(
            model_name=model_name,
            revisions=listed,
            traffic=[TrafficTarget(revision=r, weight=w) for r, w in weights.items()],
            serving=serving,
            rollout=rollout,
        ),
        status=status or ModelDeploymentStatus(),
    )


def loaded(name: str, **fields: Any) -> AdapterReport:
    """A pod's word that it serves an adapter with the bytes `digest(name)`."""
    found = {"digest": digest(name), "rank": 8, "target_modules": ["q_proj"], "size_bytes": 3_670_016}
    report: dict[str, Any] = {**found, **fields}
    return AdapterReport(state="Loaded", engine_name=names.engine_adapter_name(name, report["digest"]), **report)


def failed(reason: str, message: str = "", *, lasting: bool | None = None) -> AdapterReport:
    """A pod's word that it does not."""
    return AdapterReport(state="Failed", reason=reason, message=message, lasting=lasting)


def pod(
    name: str = "a",
    *adapters: str,
    pool: str = BASE,
    engine: str = "Ready",
    reports: dict[str, AdapterReport] | None = None,
    base: str = BASE,
    **fields: Any,
) -> PodObservation:
    """A model pod that serves its base and these adapters."""
    said = {**{n: loaded(n) for n in adapters}, **(reports or {})}
    number = sum(name.encode()) % 250 + 1
    found = PodObservation(
        name=name,
        uid=f"uid-{name}",
        namespace=NAMESPACE,
        pool=pool,
        base_model=base,
        created=stamp(0),
        ready=engine == "Ready",
        node="node-1",
        report=PodReport.from_dict(
            {
                "address": f"10.0.0.{number}:{names.FRONT_PORT}",
                "engine": engine,
                "baseModel": base,
                "adapters": {n: r.to_dict() for n, r in said.items()},
            }
        ),
        base_report=BaseReport(ok=True, digest=digest(base), size_bytes=269_000_000, architecture="LlamaForCausalLM"),
    )
    return replace(found, **fields)


def applied(
    gateway: str, deployment: ModelDeploymentResource, weights: dict[str, int], *, uid: str | None = None
) -> AppliedReport:
    """A gateway's word on one deployment."""
    told = AppliedDeployment(
        uid=uid or deployment.metadata.uid, generation=deployment.metadata.generation, weights=weights
    )
    return AppliedReport(gateway=gateway, version=1, deployments={"/".join(deployment.metadata.key): told})


def child_of(obj: dict[str, Any], **status: Any) -> ChildObservation:
    """What is observed of an object that was applied as it stands here; `status` for a Deployment."""
    metadata = {"namespace": NAMESPACE, "uid": f"uid-{obj['kind']}-{obj['metadata']['name']}", **obj["metadata"]}
    return child_observation({**obj, "metadata": metadata, "status": status})


def demand(in_flight: Mapping[str, float], expected: int = 1, *, deployment: str = "chat") -> DemandView:
    """What one of so many gateways says is under way, by revision."""
    revisions = {name: RevisionDemand(requests=1, in_flight=number) for name, number in in_flight.items()}
    told = {f"{NAMESPACE}/{deployment}": DeploymentDemand(revisions=revisions)}
    return DemandView((DemandReport(gateway="one", version=1, deployments=told),), expected)


@dataclass(frozen=True)
class Situation:
    """Everything there is, from which each plan observes its part: no more than the runtime gives it."""

    bases: tuple[BaseModelResource, ...] = ()
    adapters: tuple[LoRAAdapterResource, ...] = ()
    deployments: tuple[ModelDeploymentResource, ...] = ()
    pods: tuple[PodObservation, ...] = ()
    children: tuple[ChildObservation, ...] = ()
    applied: tuple[AppliedReport, ...] = ()
    gateways_expected: int = 2
    unreachable: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    demand: DemandView = field(default_factory=DemandView)
    answers: AnswersView = field(default_factory=AnswersView)
    gates: GateObservation | None = None
    checks: Evaluations = field(default_factory=dict)
    has_leader_worker_sets: bool = False
    builds: Mapping[str, BuildObservation] = field(default_factory=dict)
    """By BaseModel; none: nobody has looked."""
    settings: Settings = SETTINGS
    now: datetime = field(default=T0)

    def base_model(self, name: str = BASE) -> BaseModelObservation:
        """What the plan of a BaseModel observes."""
        return BaseModelObservation(
            base=next((b for b in self.bases if b.metadata.name == name), None),
            deployments=tuple(d for d in self.deployments if any(r.base_model == name for r in d.spec.revisions)),
            adapters=tuple(a for a in self.adapters if a.spec.base_model == name),
            pods=tuple(p for p in self.pods if p.base_model == name),
            children=tuple(c for c in self.children if c.base_model in ("", name) and c.record is None),
            siblings=self.bases,
            keys=KEYS,
            settings=self.settings,
            now=self.now,
            unreadable=self.unreadable,
            demand=self.demand,
            has_leader_worker_sets=self.has_leader_worker_sets,
            build=self.builds.get(name),
        )

    def adapter(self, name: str) -> LoRAAdapterObservation:
        """What the plan of a LoRAAdapter observes."""
        found = next((a for a in self.adapters if a.metadata.name == name), None)
        wanted = found.spec.base_model if found else None
        base = next((b for b in self.bases if b.metadata.name == wanted), None)
        plans = [c for c in self.children if c.kind == "ConfigMap"]
        return LoRAAdapterObservation(
            adapter=found,
            base=base,
            pools=places(base, self.deployments, self.adapters, plans) if base else (),
            deployments=self.deployments,
            pods=self.pods,
            settings=self.settings,
            now=self.now,
            parent=next((a for a in self.adapters if found and a.metadata.name == found.parent_name), None),
        )

    def deployment(self, name: str = "chat") -> ModelDeploymentObservation:
        """What the plan of a ModelDeployment observes."""
        found = next((d for d in self.deployments if d.metadata.name == name), None)
        return ModelDeploymentObservation(
            deployment=found,
            claims=self.deployments,
            adapters=self.adapters,
            base_models=self.bases,
            pods=self.pods,
            applied=self.applied,
            gateways_expected=self.gateways_expected,
            unreachable=self.unreachable,
            demand=self.demand,
            settings=self.settings,
            now=self.now,
            record=next((c for c in self.children if c.name == names.rollout_record(name)), None),
            answers=self.answers,
            evidence=next((c for c in self.children if c.name == names.rollout_evidence(name)), None),
            gates=self.gates,
            checks=self.checks,
        )
