"""What statuses say, as series for Prometheus: readiness, weights, where rollouts stand, copies of adapters, pools.

Rules:
- all is read from status and spec, so that every replica of the operator tells the same: who asks Prometheus takes the
  maximum over replicas, and a new leader begins nothing anew;
- labels are names of Kubernetes objects and words of the API (phases, outcomes, reasons); nothing comes from messages;
- an object has a bounded number of series: a ModelDeployment 9, 4 a revision (3 more with a price), 4 an objective, 1 a
  gate, 1 a verdict; a LoRAAdapter 4, a BaseModel 2, 2 of its build and 4 a pool. What is gone has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.conditions import Condition, find, is_true
from tuneyard.api.external import DEFAULT_CURRENCY, ExternalPricing
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import AnalysisStatus, RolloutStatus, Verdict
from tuneyard.planning.readiness import READY, STALLED
from tuneyard.planning.timestamps import parsed_time


class Family(NamedTuple):
    """Series of one name."""

    name: str
    help: str
    labels: tuple[str, ...]


Sample = tuple[Family, tuple[str, ...], float]
"""A value: of which family, its labels' values, the number."""

_OF = ("namespace", "deployment")

OBJECT_READY = Family(
    "tuneyard_ready", "1 while an object's condition Ready is True, else 0.", ("kind", "namespace", "name")
)
OBJECT_STALLED = Family(
    "tuneyard_stalled", "1 while an object needs somebody's attention; why.", ("kind", "namespace", "name", "reason")
)
SPEC_WEIGHT = Family("tuneyard_revision_spec_weight", "Percent that the spec gives a revision.", (*_OF, "revision"))
WEIGHT = Family("tuneyard_revision_weight", "Percent that a revision really gets.", (*_OF, "revision"))
ALLOWED = Family(
    "tuneyard_revision_allowed_weight", "Percent above which gateways may not go with a revision.", (*_OF, "revision")
)
PRICE = Family(
    "tuneyard_external_price",
    "What a million tokens of an external revision cost, by its spec.",
    (*_OF, "revision", "currency", "kind"),
)
ENDPOINTS = Family("tuneyard_revision_ready_endpoints", "Pods that serve a revision.", (*_OF, "revision"))
ROLE = Family("tuneyard_revision_role", "1 for the stable revision and for the candidate.", (*_OF, "revision", "role"))
PHASE = Family("tuneyard_rollout_phase", "1 for the phase of a rollout.", (*_OF, "phase"))
STEP = Family("tuneyard_rollout_step", "Index of the candidate's step; the number of steps: past all.", _OF)
ANALYSIS = Family("tuneyard_rollout_analysis", "1 for what the answers say of the candidate.", (*_OF, "outcome"))
JUDGED = Family(
    "tuneyard_rollout_answers_judged", "Answers that were judged by an objective.", (*_OF, "objective", "role")
)
BAD = Family("tuneyard_rollout_answers_bad", "Of these, those that missed it.", (*_OF, "objective", "role"))
GATE = Family("tuneyard_rollout_gate", "1 for the state of a candidate's gate.", (*_OF, "gate", "state"))
VERDICT = Family(
    "tuneyard_rollout_verdict_timestamp_seconds",
    "When a revision was rejected that still has its verdict.",
    (*_OF, "revision", "reason"),
)
BUILD = Family("tuneyard_build", "1 for the state of a base's build.", ("namespace", "base_model", "state"))
BUILD_ATTEMPTS = Family("tuneyard_build_attempts", "Attempts of a base's build so far.", ("namespace", "base_model"))
POOL_REPLICAS = Family("tuneyard_pool_replicas", "Pods that a pool should have.", ("namespace", "base_model", "pool"))
POOL_READY = Family("tuneyard_pool_ready_replicas", "Those that are ready.", ("namespace", "base_model", "pool"))
_POOL = ("namespace", "base_model", "pool")
POOL_WANTED = Family("tuneyard_pool_wanted_replicas", "Pods that a pool's load asks for, within its bounds.", _POOL)
POOL_LIMITED = Family(
    "tuneyard_pool_scaling_limited",
    "1 while a pool's load asks for more pods than it may have; what forbids more.",
    (*_POOL, "limit"),
)
ADAPTER_PODS = Family("tuneyard_adapter_pods", "Pods that should serve an adapter.", ("namespace", "adapter"))
ADAPTER_LOADED = Family("tuneyard_adapter_loaded_pods", "Those that do.", ("namespace", "adapter"))

FAMILIES = (
    *(OBJECT_READY, OBJECT_STALLED, SPEC_WEIGHT, WEIGHT, ALLOWED, ENDPOINTS, ROLE, PHASE, STEP, ANALYSIS, JUDGED, BAD),
    *(BUILD, BUILD_ATTEMPTS, GATE, VERDICT, POOL_REPLICAS, POOL_READY, POOL_WANTED, POOL_LIMITED),
    *(ADAPTER_PODS, ADAPTER_LOADED, PRICE),
)


def status_series(
    base_models: Iterable[BaseModelResource],
    adapters: Iterable[LoRAAdapterResource],
    deployments: Iterable[ModelDeploymentResource],
) -> Mapping[Family, list[tuple[tuple[str, ...], float]]]:
    """The values of all families, also of those that have none."""
    found: dict[Family, list[tuple[tuple[str, ...], float]]] = {family: [] for family in FAMILIES}
    for base in base_models:
        _gather(found, _of_base(base))
    for adapter in adapters:
        _gather(found, _of_adapter(adapter))
    for deployment in deployments:
        _gather(found, _of_deployment(deployment))
    return found


def _gather(found: Mapping[Family, list[tuple[tuple[str, ...], float]]], samples: Iterable[Sample]) -> None:
    for family, labels, value in samples:
        found[family].append((labels, value))


def _readiness(kind: str, metadata: ObjectMeta, conditions: list[Condition]) -> Iterator[Sample]:
    of = (kind, metadata.namespace, metadata.name)
    if find(conditions, READY) is not None:
        yield OBJECT_READY, of, float(is_true(conditions, READY))
    stalled = find(conditions, STALLED)
    if stalled is not None and stalled.status == "True":
        yield OBJECT_STALLED, (*of, stalled.reason), 1.0


def _of_base(base: BaseModelResource) -> Iterator[Sample]:
    yield from _readiness("BaseModel", base.metadata, base.status.conditions)
    build = base.status.build
    if build is not None:
        named = (base.metadata.namespace, base.metadata.name)
        yield BUILD, (*named, build.state), 1.0
        # of one that failed it is the next one
        yield BUILD_ATTEMPTS, named, float((build.attempt or 0) - (build.state == "Failed"))
    for pool in base.status.pools or ():
        of = (base.metadata.namespace, base.metadata.name, pool.name)
        yield POOL_REPLICAS, of, pool.replicas
        yield POOL_READY, of, pool.ready_replicas
        if pool.wanted_replicas is not None and not pool.asleep_since:
            yield POOL_WANTED, of, pool.wanted_replicas
        if pool.scaling is not None and pool.scaling.limit is not None:
            yield POOL_LIMITED, (*of, pool.scaling.limit), 1.0


def _of_adapter(adapter: LoRAAdapterResource) -> Iterator[Sample]:
    yield from _readiness("LoRAAdapter", adapter.metadata, adapter.status.conditions)
    loaded, _, wanted = (adapter.status.loaded or "").partition("/")
    if loaded.isdecimal() and wanted.isdecimal():
        yield ADAPTER_PODS, adapter.metadata.key, int(wanted)
        yield ADAPTER_LOADED, adapter.metadata.key, int(loaded)


def _of_deployment(deployment: ModelDeploymentResource) -> Iterator[Sample]:
    of, status = deployment.metadata.key, deployment.status
    yield from _readiness("ModelDeployment", deployment.metadata, status.conditions)
    for revision in deployment.spec.revisions:
        yield SPEC_WEIGHT, (*of, revision.name), deployment.spec.weight_of(revision.name)
        if revision.external is not None and revision.external.pricing is not None:
            yield from _of_price((*of, revision.name), revision.external.pricing)
    for target in status.traffic or ():
        yield WEIGHT, (*of, target.revision), target.weight
        yield ENDPOINTS, (*of, target.revision), target.ready_endpoints
    if status.rollout is not None:
        yield from _of_rollout(of, status.rollout)


def _of_price(of: tuple[str, str, str], price: ExternalPricing) -> Iterator[Sample]:
    """By the kinds of tokens that usage is counted in."""
    cached = price.input_per_million if price.cached_input_per_million is None else price.cached_input_per_million
    kinds = {"prompt": price.input_per_million, "cached": cached, "completion": price.output_per_million}
    for kind, cost in kinds.items():
        yield PRICE, (*of, price.currency or DEFAULT_CURRENCY, kind), cost


def _of_rollout(of: tuple[str, str], rollout: RolloutStatus) -> Iterator[Sample]:
    yield PHASE, (*of, rollout.phase), 1.0
    for role, revision in (("stable", rollout.stable), ("candidate", rollout.candidate)):
        if revision is not None:
            yield ROLE, (*of, revision, role), 1.0
    for revision, allowed in (rollout.allowed or {}).items():
        yield ALLOWED, (*of, revision), allowed
    if rollout.step is not None:
        yield STEP, of, rollout.step
    for gate in rollout.gates or ():
        yield GATE, (*of, gate.name, gate.state), 1.0
    if rollout.analysis is not None:
        yield from _of_analysis(of, rollout.analysis)
    yield from _of_verdicts(of, rollout.verdicts or ())


def _of_analysis(of: tuple[str, str], analysis: AnalysisStatus) -> Iterator[Sample]:
    yield ANALYSIS, (*of, analysis.outcome), 1.0
    for counts in analysis.objectives or ():
        yield JUDGED, (*of, counts.objective, "candidate"), counts.candidate_judged
        yield JUDGED, (*of, counts.objective, "stable"), counts.stable_judged
        yield BAD, (*of, counts.objective, "candidate"), counts.candidate_bad
        yield BAD, (*of, counts.objective, "stable"), counts.stable_bad


def _of_verdicts(of: tuple[str, str], verdicts: Iterable[Verdict]) -> Iterator[Sample]:
    """Contents differ under one name: the newest verdict counts."""
    newest: dict[tuple[str, str], float] = defaultdict(float)
    for verdict in verdicts:
        at = parsed_time(verdict.at)
        if at is not None:
            key = (verdict.revision, verdict.reason)
            newest[key] = max(newest[key], at.timestamp())
    for (revision, reason), seconds in newest.items():
        yield VERDICT, (*of, revision, reason), seconds
