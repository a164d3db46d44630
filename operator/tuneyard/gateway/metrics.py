"""The gateway process's own metrics, as Prometheus reads them; Envoy's come from Envoy."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector


class Metrics:
    """One instance per process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.pushes = Counter("tuneyard_gateway_pushes", "Models whose routes were sent.", registry=self.registry)
        self.refusals = Gauge(
            "tuneyard_gateway_refused_pushes", "Responses that Envoy refused (NACK).", registry=self.registry
        )
        self.connected = Gauge(
            "tuneyard_gateway_envoy_connected", "1 while Envoy is connected.", registry=self.registry
        )
        self.models = Gauge("tuneyard_gateway_models", "Models that are routed.", registry=self.registry)
        self.snapshots = Counter("tuneyard_gateway_snapshots", "Snapshots written.", registry=self.registry)
        self.snapshot_failures = Counter(
            "tuneyard_gateway_snapshot_failures", "Snapshots that could not be written.", registry=self.registry
        )
        self.holds = Counter(
            "tuneyard_gateway_holds",
            "Requests that waited for an adapter, or were to, by how that ended.",
            ["outcome"],
            registry=self.registry,
        )
        self.held = Gauge("tuneyard_gateway_held", "Requests that wait for an adapter now.", registry=self.registry)
        self._ages = Gauge(
            "tuneyard_gateway_watch_age_seconds",
            "Time since the API server's last sign of life on the oldest watch of a resource.",
            ["resource"],
            registry=self.registry,
        )

    def age(self, resource: str, age: Callable[[], float]) -> None:
        """Show the age of a watch whenever metrics are read."""
        self._ages.labels(resource).set_function(age)
