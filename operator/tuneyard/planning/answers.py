"""What gateways say of the answers of ModelDeployments, as readings.

Rules:
- what a gateway counted for another object of the name, or judged by other objectives than the spec's, is no reading:
  it has not answered;
- nor has one that counts answers of other contents under the name of a revision that is looked at (`about`): what it
  counts of others says nothing against it. An older gateway does not say of which: it is believed, as its own operator
  did;
- nor has one whose Envoy does not tell what becomes of requests. What it has counted before counts all the same;
- a report says for how long its process has been counting, and the operator's clock when the report came: gateways'
  clocks say nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tuneyard.api.analysis import Slo
from tuneyard.api.documents import DeploymentEvidence, EvidenceReport
from tuneyard.planning.evidence import Reading, read_counts


@dataclass(frozen=True)
class Heard:
    """One gateway's newest report."""

    report: EvidenceReport
    at: float
    """When it came: seconds since 1970."""


@dataclass(frozen=True)
class _Told:
    """What one gateway tells of one deployment."""

    reading: Reading
    judging: bool
    others: frozenset[str] = frozenset()
    """Revisions under whose names it counts answers of other contents."""


@dataclass(frozen=True)
class Answers:
    """What is told of one deployment."""

    told: tuple[_Told, ...] = ()
    expected: int = 0
    """Gateways that take traffic."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What they have counted."""
        return tuple(t.reading for t in self.told)

    @property
    def answered(self) -> int:
        """Gateways that told all there is."""
        return sum(t.judging for t in self.told)

    def about(self, revisions: Collection[str]) -> Answers:
        """What those tell that count answers of these revisions' contents."""
        return Answers(tuple(t for t in self.told if t.others.isdisjoint(revisions)), self.expected)


@dataclass(frozen=True)
class AnswersView:
    """The newest report of each gateway that answers, and how many there should be."""

    heard: tuple[Heard, ...] = ()
    expected: int = 0

    def of(self, deployment: tuple[str, str], uid: str, slo: Slo, contents: Mapping[str, str]) -> Answers:
        """What is told of one deployment (namespace, name), whose revisions have these contents (served.py)."""
        name = "/".join(deployment)
        found = [(h.report, h.at, told) for h in self.heard if (told := h.report.deployments.get(name)) is not None]
        fitting = [_told(*f, contents) for f in found if f[2].uid == uid and f[2].slo == slo]
        return Answers(tuple(fitting), self.expected)


def _told(report: EvidenceReport, at: float, told: DeploymentEvidence, contents: Mapping[str, str]) -> _Told:
    others = frozenset(n for n, known in contents.items() if told.contents and told.contents.get(n) != known)
    counts = {series: tally for series, tally in read_counts(told.counts).items() if series.revision not in others}
    return _Told(Reading(report.process, at - report.age_seconds, counts), report.judging, others)
