"""What gateways say is asked of ModelDeployments, as one: each gateway sees only the requests that came to it.

Rules:
- requests of all gateways add up; so many are there at least, however many gateways are silent;
- a deployment is idle only for as long as every gateway that takes traffic has seen it idle: while one does not answer,
  or knows nothing of the deployment, nobody knows for how long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tuneyard.api.documents import DemandReport, DeploymentDemand, EngineLoad
from tuneyard.api.gatereports import GateRun


@dataclass(frozen=True)
class DemandView:
    """The newest report of each gateway that answers, and how many there should be."""

    reports: tuple[DemandReport, ...] = ()
    expected: int = 0
    """Gateway pods that take traffic."""

    @property
    def known(self) -> bool:
        """Whether every gateway has said what is asked of it."""
        return 0 < self.expected <= len(self.reports)

    def of(self, namespace: str, deployment: str) -> list[DeploymentDemand]:
        """What the gateways that know the deployment say of it."""
        name = f"{namespace}/{deployment}"
        return [r.deployments[name] for r in self.reports if name in r.deployments]

    def idle_seconds(self, namespace: str, deployment: str) -> float | None:
        """Since when nobody has asked the deployment; None while that is not known."""
        said = self.of(namespace, deployment)
        whole = self.known and len(said) == len(self.reports)
        return min(d.idle_seconds for d in said) if whole else None

    def waiting(self, namespace: str, deployment: str) -> int:
        """Requests that gateways hold until something of the deployment is loaded."""
        return sum(d.waiting for d in self.of(namespace, deployment))

    def held(self, namespace: str, deployment: str, revision: str) -> int:
        """Those of them that are for this revision, by its share or by their header."""
        return sum(d.revisions[revision].waiting for d in self.of(namespace, deployment) if revision in d.revisions)

    def in_flight(self, namespace: str, deployment: str, revision: str) -> float:
        """Requests to a revision that are under way."""
        return self._in_flight.get((namespace, deployment, revision), 0.0)

    def first_tokens(self, namespace: str, deployment: str, revision: str) -> dict[int, int]:
        """Streams of the last minute by the time to their first token (firsttokens.py)."""
        found: dict[int, int] = {}
        for said in self.of(namespace, deployment):
            of_it = said.revisions.get(revision)
            for edge, count in (of_it.ttft if of_it else {}).items():
                found[edge] = found.get(edge, 0) + count
        return found

    @cached_property
    def engines(self) -> dict[str, EngineLoad]:
        """By `namespace/pod`, what was read of its engine last."""
        found: dict[str, EngineLoad] = {}
        for report in self.reports:
            for pod, load in report.engines.items():
                known = found.get(pod)
                if known is None or load.age_seconds < known.age_seconds:
                    found[pod] = load
        return found

    def gate_run(self, namespace: str, deployment: str, job: str) -> GateRun | None:
        """How far a gate's Job (its uid) is, by the gateway that knows most of it."""
        runs = (d.gate for d in self.of(namespace, deployment) if d.gate is not None and d.gate.job == job)
        return max(runs, key=lambda run: run.done, default=None)

    def asked(self) -> Iterator[tuple[str, str]]:
        """(namespace, name) of the deployments of which requests are under way."""
        return iter({(namespace, name): None for namespace, name, _ in self._in_flight})

    def waited_for(self) -> Iterator[tuple[str, str]]:
        """(namespace, name) of the deployments for which requests are held."""
        names = (n for report in self.reports for n, said in report.deployments.items() if said.waiting)
        return iter(dict.fromkeys((n.partition("/")[0], n.partition("/")[2]) for n in names))

    @cached_property
    def _in_flight(self) -> dict[tuple[str, str, str], float]:
        found: dict[tuple[str, str, str], float] = {}
        for report in self.reports:
            for deployment, said in report.deployments.items():
                namespace, _, name = deployment.partition("/")
                for revision, of_it in said.revisions.items():
                    if of_it.in_flight > 0:
                        key = (namespace, name, revision)
                        found[key] = found.get(key, 0.0) + of_it.in_flight
        return found
