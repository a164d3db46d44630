"""What `tuneyard report` shows, as values. Pure."""

from __future__ import annotations

from tuneyard.api.base import ApiModel
from tuneyard.api.drift import KeptFeedback
from tuneyard.api.gatereports import GateCheck, GateReports, GateResult, Side, Times
from tuneyard.api.gates import GateStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutStatus
from tuneyard.cli.driftview import DriftView, drift_view
from tuneyard.planning.gatejudging import number

KINDS = (("ttft", "time to the first token"), ("itl", "time between tokens"), ("e2e", "time to the whole answer"))


class ReportView(ApiModel):
    """Results, the newest first, the gates that are under way, and stable over days."""

    namespace: str
    name: str
    phase: str
    candidate: str | None = None
    under_way: list[GateStatus] = []
    results: list[GateResult] = []
    drift: DriftView | None = None


class Bar(ApiModel):
    """One bucket of a plot, of both revisions: shares of their answers, 0 to 1."""

    upto: float
    """Milliseconds at which it ends."""
    candidate: float
    stable: float


def report_view(
    deployment: ModelDeploymentResource,
    kept: GateReports | None,
    revision: str | None = None,
    feedback: list[KeptFeedback] | None = None,
) -> ReportView:
    """The reports of one ModelDeployment, of all revisions or of one."""
    rollout = deployment.status.rollout or RolloutStatus()
    open_ = [g for g in rollout.gates or () if g.state in ("Waiting", "Running", "CannotRun")]
    results = [r for r in (kept.results if kept else ()) if revision in (None, r.revision)]
    return ReportView(
        namespace=deployment.metadata.namespace,
        name=deployment.metadata.name,
        phase=rollout.phase,
        candidate=rollout.candidate,
        under_way=open_ if revision in (None, rollout.candidate) else [],
        results=results[::-1],
        drift=drift_view(deployment, kept.drift if kept else [], feedback or [], revision),
    )


def bars(candidate: Side, stable: Side, kind: str) -> list[Bar]:
    """The histograms of both revisions over each other; empty where neither has one."""
    mine, other = (_counts(getattr(side, kind)) for side in (candidate, stable))
    buckets = sorted({*mine, *other})
    if not buckets:
        return []
    sums = (sum(mine.values()) or 1, sum(other.values()) or 1)
    return [
        Bar(
            upto=2 ** (n / 4),
            candidate=mine.get(n, 0) / sums[0],
            stable=other.get(n, 0) / sums[1],
        )
        for n in range(buckets[0], buckets[-1] + 1)
    ]


def _counts(times: Times | None) -> dict[int, int]:
    return {} if times is None else {times.histogram.first + n: c for n, c in enumerate(times.histogram.counts)}


def limit(check: GateCheck) -> str:
    """What a number may be, for people; where it follows from stable's, also as the spec says it."""
    relation = "at most" if check.upper else "at least"
    return f"{relation} {number(check.bound, check.unit)}" + (f" ({check.limit})" if "x" in check.limit else "")


def line(text: str) -> str:
    """In one line, without what would move a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def milliseconds(value: float) -> str:
    """A time for people."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms"
