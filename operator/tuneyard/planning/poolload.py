"""What is asked of a pool, by all who share it: from the gateways' reports, and what they have read of engines.

Rules:
- requests to all revisions that the pool serves add up, those that gateways hold for one of them too. What is held for
  another revision of the same ModelDeployment goes to that one's pool, once it can;
- the word of all gateways is needed to know that there is no more; of engines, that of each pod that serves, not older
  than STALE. Where one is missing, what the others say is the least that there is;
- a first token is judged by streams of the last minute; too few of them say nothing, and are no outage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuneyard.api.autoscaling import Autoscaling
from tuneyard.api.documents import EngineLoad
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.planning.autoscaling import ENGINES, Measured, Metric, targets_of
from tuneyard.planning.demand import DemandView
from tuneyard.planning.firsttokens import added, percentile
from tuneyard.planning.growth import PoolKey
from tuneyard.planning.observations import PodObservation, serves
from tuneyard.planning.pools import pool_of

STALE = 30.0
"""Seconds after which nobody knows what an engine has to do."""

Use = tuple[ModelDeploymentResource, Revision]


def uses_of(pool: PoolKey, deployments: Iterable[ModelDeploymentResource]) -> list[Use]:
    """The revisions that the pool serves."""
    mine = (d for d in deployments if d.metadata.namespace == pool[0])
    return [(d, r) for d in mine for r in d.spec.revisions if r.external is None and pool_of(d, r) == pool[1]]


def measured(
    settings: Autoscaling,
    pool: PoolKey,
    uses: Sequence[Use],
    demand: DemandView,
    pods: Iterable[PodObservation],
) -> Measured:
    """What the pool has to do; `pods`: its own."""
    held = sum(demand.held(*d.metadata.key, r.name) for d, r in uses)
    flying = sum(demand.in_flight(*d.metadata.key, r.name) for d, r in uses)
    values, whole = {Metric.IN_FLIGHT: flying + held}, {Metric.IN_FLIGHT} if demand.known else set[Metric]()
    targets = targets_of(settings.targets)
    if settings.targets is not None and settings.targets.ttft is not None:
        counts = added(demand.first_tokens(*d.metadata.key, r.name) for d, r in uses)
        values[Metric.TTFT] = percentile(counts, settings.targets.ttft.percentile) or 0.0
        whole |= {Metric.TTFT} if demand.known else set()
    if targets.keys() & ENGINES:
        loads = [_fresh(demand.engines.get(f"{pool[0]}/{name}")) for name in _serving(pods)]
        heard = [load for load in loads if load is not None]
        values |= {
            Metric.WAITING: sum(load.waiting for load in heard) + held,
            Metric.KV_CACHE: 100 * sum(load.kv_cache for load in heard),
            Metric.TOKENS: sum(load.tokens_per_second or 0.0 for load in heard),
        }
        complete = demand.known and bool(loads) and len(heard) == len(loads)
        whole |= {Metric.WAITING, Metric.KV_CACHE} if complete else set()
        whole |= {Metric.TOKENS} if complete and all(h.tokens_per_second is not None for h in heard) else set()
    return Measured(values, frozenset(whole))


def _fresh(load: EngineLoad | None) -> EngineLoad | None:
    return load if load is not None and load.age_seconds <= STALE else None


def _serving(pods: Iterable[PodObservation]) -> list[str]:
    return [p.name for p in pods if serves(p)]
