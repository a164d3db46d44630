"""A pool's `serving.autoscaling` as a HorizontalPodAutoscaler or a KEDA ScaledObject, for those who prefer these. Pure.

Rules:
- they scale the pool's Deployment, which the block `autoscaling: {external: true}` leaves to them: that has to be
  applied with them, or two would set one number;
- a pool's block is what its pods are made from: that of a revision or ModelDeployment over that of its base, which has
  to be in the same manifest where only it says how the pool is scaled;
- what is measured are series that the chart's rules record for each pool (monitoring/rules.py). KEDA asks Prometheus
  itself, an HPA by way of an adapter for external metrics;
- ttft is left out: neither can be told that a target says only when there are too few. waitingRequests is not refused,
  though it makes both of them go up and down; a pool that has only such targets is left out;
- a pool whose replicas span nodes has no Deployment, and serving.autoscaling.external is refused there: it is left out;
- 1 replica at least: no gateway holds requests for a pool that somebody else has put to sleep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.api.autoscaling import DEFAULT_DOWN_WINDOW, DEFAULT_UP_WINDOW, Autoscaling, ScalingRules
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.schema import seconds
from tuneyard.cli.errors import UserError
from tuneyard.cli.manifestread import Manifests
from tuneyard.planning.autoscaling import Metric, least_replicas, most_replicas, targets_of
from tuneyard.planning.pools import pool_of
from tuneyard.planning.resolvedserving import Serving, resolved_serving

Json = dict[str, Any]

SERIES = {
    Metric.IN_FLIGHT: "tuneyard:pool_in_flight_requests",
    Metric.WAITING: "tuneyard:pool_waiting_requests",
    Metric.KV_CACHE: "tuneyard:pool_kv_cache_percent",
    Metric.TOKENS: "tuneyard:pool_tokens_per_second",
}
"""What is recorded of each pool: sums over its pods."""
_LONGEST_WINDOW = 3600
"""Seconds that Kubernetes takes as a stabilization window."""


@dataclass(frozen=True)
class ScaledPool:
    """A pool whose block says how it is scaled."""

    namespace: str | None
    name: str
    settings: Autoscaling


def scaled_pools(manifests: Manifests) -> tuple[list[ScaledPool], list[str]]:
    """Their pools that say how they are scaled, and notes of pools of which they say too little; else UserError."""
    bases = {base.metadata.key: base for base in manifests.bases}
    found: dict[tuple[str | None, str], ScaledPool] = {}
    notes: dict[str, None] = {}
    resources: list[BaseModelResource | ModelDeploymentResource] = [*manifests.bases, *manifests.deployments]
    for resource in resources:
        namespace = resource.metadata.namespace if "namespace" in resource.metadata.model_fields_set else None
        for name, serving in _blocks(resource, bases):
            settings = serving.autoscaling if serving else None
            if serving is None:
                notes[f"pool {name} is left out: its base is not in the file, and may say how it is scaled"] = None
            elif settings is None or settings.external:
                continue
            elif serving.nodes_per_replica > 1:
                words = "its replicas span nodes, and only Tuneyard's own scaling counts groups of pods"
                notes[f"pool {name} is left out: {words}"] = None
            elif not _targets(settings).keys() - {Metric.WAITING}:
                words = "its targets say only when there are too few replicas; add inFlightRequests, "
                words += "kvCacheUtilization or tokensPerSecond"
                notes[f"pool {name} is left out: {words}"] = None
            else:
                found[namespace, name] = ScaledPool(namespace, name, settings)
    if not found:
        words = "no serving.autoscaling with targets that can be exported: write the block first, then export it"
        raise UserError("; ".join([words, *notes]))
    return list(found.values()), list(notes)


def _blocks(
    resource: BaseModelResource | ModelDeploymentResource, bases: Mapping[tuple[str, str], BaseModelResource]
) -> Iterator[tuple[str, Serving | None]]:
    """The pools of one resource with all blocks over each other; None where the one that decides is not there."""
    if isinstance(resource, BaseModelResource):
        yield names.pool_name(resource.metadata.name), resolved_serving(resource.spec.serving)
        return
    for revision in resource.spec.revisions:
        if revision.external is not None:
            continue
        base = bases.get((resource.metadata.namespace, revision.base_model))
        blocks = [revision.serving, resource.spec.serving]
        decides = any(b and (b.autoscaling is not None or b.replicas is not None) for b in blocks)
        known = resolved_serving(*blocks, base.spec.serving if base else None) if base or decides else None
        yield pool_of(resource, revision), known


def _targets(settings: Autoscaling) -> dict[Metric, float]:
    """Those that can be said of a sum over the pool's pods."""
    return {metric: target for metric, target in targets_of(settings.targets).items() if metric in SERIES}


def hpa(pool: ScaledPool) -> Json:
    """A HorizontalPodAutoscaler over external metrics."""
    settings = pool.settings
    metrics = [
        {
            "type": "External",
            "external": {
                "metric": {
                    "name": SERIES[metric].replace(":", "_"),
                    "selector": {"matchLabels": {"pool": pool.name}},
                },
                "target": {"type": "AverageValue", "averageValue": f"{target:g}"},
            },
        }
        for metric, target in _targets(settings).items()
    ]
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.pool_deployment(pool.name)},
        "minReplicas": least_replicas(settings),
        "maxReplicas": most_replicas(settings),
        "metrics": metrics,
        "behavior": _behavior(settings),
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", pool, spec)


def keda(pool: ScaledPool, server: str) -> Json:
    """A KEDA ScaledObject that asks Prometheus itself."""
    settings, where = pool.settings, f'namespace="{pool.namespace}",' if pool.namespace else ""
    triggers = [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": server,
                "query": f'sum({SERIES[metric]}{{{where}pool="{pool.name}"}})',
                "threshold": f"{target:g}",
                # an empty answer is an outage, and no reason to take replicas away
                "ignoreNullValues": "false",
            },
        }
        for metric, target in _targets(settings).items()
    ]
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.pool_deployment(pool.name)},
        "minReplicaCount": least_replicas(settings),
        "maxReplicaCount": most_replicas(settings),
        "pollingInterval": 15,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(settings)}},
        "triggers": triggers,
    }
    return _object("keda.sh/v1alpha1", "ScaledObject", pool, spec)


def limits(pools: Iterable[ScaledPool]) -> list[str]:
    """What the exported objects cannot do, for people."""
    found = ["apply it together with serving.autoscaling: {external: true} in the block that it was made from"]
    for pool in pools:
        settings = pool.settings
        if settings.targets is not None and settings.targets.ttft is not None:
            found.append(f"{pool.name}: ttft is left out, neither knows a target that only asks for more")
        if settings.min_replicas == 0:
            found.append(f"{pool.name}: 1 replica at least; only Tuneyard's own scaling holds requests for a pool at 0")
        if settings.targets is not None and settings.targets.waiting_requests is not None:
            found.append(f"{pool.name}: waitingRequests falls to 0 once there are enough, and takes them back again")
    found.append("a candidate's pool is not enlarged before its next step: that is Tuneyard's own scaling too")
    return found


def _object(api_version: str, kind: str, pool: ScaledPool, spec: Json) -> Json:
    metadata: Json = {"name": names.pool_deployment(pool.name)}
    if pool.namespace:
        metadata["namespace"] = pool.namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _behavior(settings: Autoscaling) -> Json:
    up, down = settings.scale_up or ScalingRules(), settings.scale_down or ScalingRules()
    up_policies = [{"type": "Pods", "value": up.max_step or 4, "periodSeconds": 15}]
    if up.max_step is None:
        up_policies.append({"type": "Percent", "value": 100, "periodSeconds": 15})
    window = seconds(down.stabilization_window or DEFAULT_DOWN_WINDOW)
    found: Json = {
        "scaleUp": {
            "stabilizationWindowSeconds": min(_LONGEST_WINDOW, seconds(up.stabilization_window or DEFAULT_UP_WINDOW)),
            "policies": up_policies,
        },
        "scaleDown": {"stabilizationWindowSeconds": min(_LONGEST_WINDOW, window)},
    }
    if down.max_step is not None:
        period = max(1, min(1800, window))
        found["scaleDown"]["policies"] = [{"type": "Pods", "value": down.max_step, "periodSeconds": period}]
    return found
