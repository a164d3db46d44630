"""The operator's own metrics, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of the runtime; one instance per process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
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

    def queue(self, length: Callable[[], int], oldest: Callable[[], float]) -> None:
        """Show the state of the queue whenever metrics are read."""
        self._waiting.set_function(lambda: float(length()))
        self._oldest.set_function(oldest)
