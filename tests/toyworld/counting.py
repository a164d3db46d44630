"""What one gateway counts of answers, as its report tells it: counters that only grow while its process lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.builders import T0
from tuneyard.api.analysis import Slo
from tuneyard.api.documents import DeploymentEvidence, EvidenceReport
from tuneyard.planning.answers import Heard
from tuneyard.planning.evidence import NOTHING, Objective, Series, Tally, written_counts

_LONG_AGO = T0 - timedelta(days=365)


@dataclass
class Counting:
    """One gateway; it began long before the test did."""

    name: str
    number: int = 1
    """Of its process."""
    started: datetime = _LONG_AGO
    counts: dict[Series, Tally] = field(default_factory=dict)
    silent: bool = False
    judging: bool = True
    about: tuple[str, Slo] | None = None
    """Which object, judged by what; with another one it counts anew."""

    def count(self, revision: str, tally: Tally, objective: Objective = Objective.ERROR_RATE, prompts: int = 0) -> None:
        """So many more answers."""
        series = Series(revision, objective, prompts)
        self.counts[series] = self.counts.get(series, NOTHING).plus(tally)

    def restart(self, now: datetime) -> None:
        """Another process: what nobody has read is lost."""
        self.number, self.started, self.counts = self.number + 1, now, {}

    def heard(
        self, key: tuple[str, str], uid: str, slo: Slo, now: datetime, contents: Mapping[str, str]
    ) -> Heard | None:
        """What it answers now; `contents`: of the revisions as it sees them, empty where it does not say that."""
        if self.about is not None and self.about != (uid, slo):
            self.counts = {}
        self.about = (uid, slo)
        if self.silent:
            return None
        report = EvidenceReport(
            gateway=self.name,
            process=f"{self.name}-{self.number}",
            age_seconds=(now - self.started).total_seconds(),
            version=1,
            judging=self.judging,
            deployments={
                "/".join(key): DeploymentEvidence(
                    uid=uid, slo=slo, contents=dict(contents), counts=written_counts(self.counts)
                )
            },
        )
        return Heard(EvidenceReport.model_validate_json(report.model_dump_json(by_alias=True)), now.timestamp())
