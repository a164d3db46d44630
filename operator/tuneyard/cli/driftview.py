"""What `tuneyard report` shows of stable over days, as values. Pure."""

from __future__ import annotations

from tuneyard.api.base import ApiModel
from tuneyard.api.conditions import Condition, find
from tuneyard.api.drift import KeptFeedback
from tuneyard.api.gatereports import DriftRun, Sample
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.reasons import Reason
from tuneyard.planning.drift import DRIFTING
from tuneyard.planning.evidence import Tally
from tuneyard.planning.gatejudging import number

_UNMEASURED = Reason.DRIFT_UNMEASURED.value


class RunRow(ApiModel):
    """One run of the evaluation."""

    at: str
    revision: str
    prompts: int
    scores: dict[str, float]
    baseline: bool
    """The first of these contents with these prompts: what later ones are held against."""

    @property
    def words(self) -> str:
        """The scores for people."""
        return ", ".join(f"{metric} {number(score, '')}" for metric, score in sorted(self.scores.items()))


class DayRow(ApiModel):
    """Feedback of one day; of a baseline, of its days together."""

    day: str
    revision: str
    judged: int
    bad: int
    baseline: bool = False

    @property
    def words(self) -> str:
        """The share of bad answers for people."""
        return f"{100 * self.bad / self.judged:.3g} %" if self.judged else "-"


class DriftView(ApiModel):
    """What is known of stable over days, the newest first."""

    known: bool = False
    """Whether anything is: False of a revision that is not stable, before a result, and after a run that found none."""
    drifting: bool = False
    message: str = ""
    runs: list[RunRow] = []
    samples: list[Sample] = []
    """The worst answers of the newest run."""
    days: list[DayRow] = []


def drift_line(deployment: ModelDeploymentResource) -> str | None:
    """One line for `tuneyard rollout status`; None where nobody asks for it."""
    found = _condition(deployment)
    if found is None:
        return None
    if found.reason == _UNMEASURED:
        return f"whether stable drifts is not known: {found.message}"
    return f"{'stable drifts' if found.status == 'True' else 'stable does not drift'}: {found.message}"


def drift_view(
    deployment: ModelDeploymentResource,
    runs: list[DriftRun],
    feedback: list[KeptFeedback],
    revision: str | None = None,
) -> DriftView | None:
    """What is kept, of all revisions or of one; None where there is nothing."""
    found = _condition(deployment)
    wanted = [r for r in runs if revision in (None, r.revision)]
    days = [row for kept in feedback if revision in (None, kept.revision) for row in _days(kept)]
    if found is None and not wanted and not days:
        return None
    stable = deployment.status.rollout.stable if deployment.status.rollout else None
    # what the condition says is about stable
    if found is not None and revision not in (None, stable):
        found = None
    drifting = found is not None and found.status == "True"
    measured = any(r.revision == stable for r in runs) or any(k.revision == stable and k.baseline for k in feedback)
    return DriftView(
        known=drifting or (found is not None and found.reason != _UNMEASURED and measured),
        drifting=drifting,
        message=found.message if found is not None else "",
        runs=_rows(wanted)[::-1],
        samples=wanted[-1].samples if wanted else [],
        days=sorted(days, key=lambda d: d.day, reverse=True),
    )


def _condition(deployment: ModelDeploymentResource) -> Condition | None:
    return find(deployment.status.conditions, DRIFTING)


def _rows(runs: list[DriftRun]) -> list[RunRow]:
    known: set[tuple[str, str]] = set()
    rows = []
    for run in runs:
        about = run.key, run.prompts_digest
        baseline = about not in known
        known.add(about)
        row = RunRow(at=run.at, revision=run.revision, prompts=run.prompts, scores=run.scores, baseline=baseline)
        rows.append(row)
    return rows


def _days(kept: KeptFeedback) -> list[DayRow]:
    found = [_day(day, kept, Tally(*counts)) for day, counts in kept.days.items()]
    first = kept.baseline
    if first is not None:
        row = _day(f"{first.first} to {first.last}", kept, Tally(*first.counts))
        found.append(row.model_copy(update={"baseline": True}))
    return found


def _day(day: str, kept: KeptFeedback, tally: Tally) -> DayRow:
    return DayRow(day=day, revision=kept.revision, judged=tally.judged, bad=tally.bad)
