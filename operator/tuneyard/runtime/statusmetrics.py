"""The series of planning/statusseries.py for Prometheus, and how often rollouts have ended how.

Rules:
- nothing is kept beside the objects but what of their histories has been counted: series end with their object;
- an end counts once, also where the object was created again and its history comes back from its record. What a history
  holds when its object is first seen happened before and does not count.
Called by the threads of the health server, one page at a time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.statusseries import FAMILIES, Family, status_series

OUTCOMES = "tuneyard_rollout_outcomes"
_REMEMBERED = 100
"""Ends of one deployment that are known as counted; a history holds fewer."""

Name = tuple[str, str]
Values = Mapping[Family, list[tuple[tuple[str, ...], float]]]


class Objects(NamedTuple):
    """All custom resources that can be read."""

    base_models: Iterable[BaseModelResource]
    adapters: Iterable[LoRAAdapterResource]
    deployments: Iterable[ModelDeploymentResource]


class StatusMetrics(Collector):
    """Reads the objects whenever metrics are read."""

    def __init__(self, told: Callable[[], Objects]) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._seen: dict[Name, set[tuple[str, str, str]]] = {}
        self._ends: dict[Name, Counter[str]] = {}

    def describe(self) -> Iterator[Metric]:
        """The metrics without values: nothing is read at the start."""
        yield from (_gauge(family) for family in FAMILIES)
        yield self._counter()

    def collect(self) -> Iterator[Metric]:
        """All values."""
        objects = self._told()
        deployments = list(objects.deployments)
        values: Values = status_series(objects.base_models, objects.adapters, deployments)
        for family, samples in values.items():
            gauge = _gauge(family)
            for labels, value in samples:
                gauge.add_metric(labels, value)
            yield gauge
        with self._lock:
            self._count(deployments)
            ends = [(name, outcome, n) for name, counts in self._ends.items() for outcome, n in counts.items()]
        counter = self._counter()
        for name, outcome, number in ends:
            counter.add_metric((*name, outcome), number)
        yield counter

    def _count(self, deployments: Iterable[ModelDeploymentResource]) -> None:
        """What is new in histories."""
        present = {d.metadata.key: d.status.rollout for d in deployments if d.spec.progressive}
        for gone in self._seen.keys() - present.keys():
            del self._seen[gone], self._ends[gone]
        for name, rollout in present.items():
            told: set[tuple[str, str, str]] = {
                (e.content_hash, e.at, e.outcome) for e in (rollout.history if rollout else None) or ()
            }
            known = self._seen.get(name)
            if known is None:
                self._seen[name], self._ends[name] = told, Counter({"Stable": 0, "Rejected": 0})
                continue
            self._ends[name].update(outcome for _, _, outcome in told - known)
            self._seen[name] = known | told if len(known) < _REMEMBERED else told

    @staticmethod
    def _counter() -> CounterMetricFamily:
        words = "Rollouts that ended since this process began, by what became of the candidate."
        return CounterMetricFamily(OUTCOMES, words, labels=["namespace", "deployment", "outcome"])


def _gauge(family: Family) -> GaugeMetricFamily:
    return GaugeMetricFamily(family.name, family.help, labels=family.labels)
