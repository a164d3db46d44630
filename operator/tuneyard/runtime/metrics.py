"""The operator's own metrics, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tuneyard.runtime.statusmetrics import Objects, StatusMetrics

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Drifts(Collector):
    """Reads who drifts whenever metrics are read, so that who is gone is forgotten."""

    def __init__(self, told: Callable[[], Iterable[tuple[str, str, bool]]]) -> None:
        self._told = told

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The metric without its values: nothing is read at the start."""
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One value a ModelDeployment."""
        family = self._family()
        for namespace, name, drifting in self._told():
            family.add_metric([namespace, name], float(drifting))
        yield family

    @staticmethod
    def _family() -> GaugeMetricFamily:
        words = "1 while a ModelDeployment's stable revision drifts, of those that are watched for it."
        return GaugeMetricFamily("tuneyard_drifting", words, labels=["namespace", "deployment"])


class Metrics:
    """Counters of the runtime; one instance per process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.passes = Counter(
            "tuneyard_reconcile_passes", "Passes over an object.", ["kind", "outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "tuneyard_reconcile_seconds", "Duration of a pass.", ["kind"], buckets=_BUCKETS, registry=self.registry
        )
        self.writes = Counter("tuneyard_writes", "Writes to the API server.", ["kind", "verb"], registry=self.registry)
        self.leader = Gauge("tuneyard_leader", "1 while this process leads.", registry=self.registry)
        self._watch_age = Gauge(
            "tuneyard_watch_age_seconds",
            "Time since the API server's last sign of life on a watch.",
            ["resource"],
            registry=self.registry,
        )
        self._waiting = Gauge("tuneyard_queue_length", "Keys that wait for a pass.", registry=self.registry)
        self._oldest = Gauge(
            "tuneyard_queue_oldest_seconds", "How long the next key has waited.", registry=self.registry
        )

    def watch_ages(self, ages: dict[str, Callable[[], float]]) -> None:
        """Show the age of these watches whenever metrics are read."""
        for resource, age in ages.items():
            self._watch_age.labels(resource).set_function(age)

    def drifts(self, told: Callable[[], Iterable[tuple[str, str, bool]]]) -> None:
        """Show of which ModelDeployments (namespace, name) stable drifts whenever metrics are read."""
        self.registry.register(_Drifts(told))

    def statuses(self, told: Callable[[], Objects]) -> None:
        """Show what the statuses of these objects say whenever metrics are read."""
        self.registry.register(StatusMetrics(told))

    def queue(self, length: Callable[[], int], oldest: Callable[[], float]) -> None:
        """Show the state of the queue whenever metrics are read."""
        self._waiting.set_function(lambda: float(length()))
        self._oldest.set_function(oldest)
