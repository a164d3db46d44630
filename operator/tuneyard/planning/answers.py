"""What gateways say of the answers of ModelDeployments, as readings.

Rules:
- what a gateway counted for another object of the name, or judged by other objectives than the spec's, is no reading:
  it has not answered;
- nor has one that counts answers of other contents under a revision's name. An older gateway does not say of which:
  it is believed, as its own operator did;
- nor has one whose Envoy does not tell what becomes of requests. What it has counted before counts all the same;
- a report says for how long its process has been counting, and the operator's clock when the report came: gateways'
  clocks say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuneyard.api.analysis import Slo
from tuneyard.api.documents import EvidenceReport
from tuneyard.planning.evidence import Reading, read_counts


@dataclass(frozen=True)
class Heard:
    """One gateway's newest report."""

    report: EvidenceReport
    at: float
    """When it came: seconds since 1970."""


@dataclass(frozen=True)
class Answers:
    """What is told of one deployment."""

    readings: tuple[Reading, ...] = ()
    expected: int = 0
    """Gateways that take traffic."""
    answered: int = 0
    """Those of them that told all there is."""


@dataclass(frozen=True)
class AnswersView:
    """The newest report of each gateway that answers, and how many there should be."""

    heard: tuple[Heard, ...] = ()
    expected: int = 0

    def of(self, deployment: tuple[str, str], uid: str, slo: Slo, contents: Mapping[str, str]) -> Answers:
        """What is told of one deployment (namespace, name), whose revisions have these contents (served.py)."""
        name = "/".join(deployment)
        found = [(h, h.report.deployments[name]) for h in self.heard if name in h.report.deployments]
        fitting = [
            (h, told)
            for h, told in found
            if told.uid == uid and told.slo == slo and (not told.contents or contents.items() <= told.contents.items())
        ]
        readings = (
            Reading(h.report.process, h.at - h.report.age_seconds, read_counts(told.counts)) for h, told in fitting
        )
        return Answers(tuple(readings), self.expected, sum(h.report.judging for h, _ in fitting))
