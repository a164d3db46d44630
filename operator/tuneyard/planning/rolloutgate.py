"""What the evidence means for a rollout: whether a step may be taken, and whether the candidate is rejected for it.

Rules:
- a hold that is over is not enough: the next step needs Pass now. With all traffic on the candidate there is nobody to
  compare it with: it becomes stable unless it does gross harm, or gateways do not tell;
- Reject is a verdict at once, also while the rollout is paused;
- silence is no outcome. When a hold has been over for inconclusiveDeadline and the evidence, though every gateway tells
  it, has not been enough, `onInconclusive` decides. While gateways do not tell, or stable breaks an objective since the
  candidate has traffic, that time does not run: an outage of the metrics neither rejects nor promotes, however long it
  takes. What has run of it counts on afterwards;
- a candidate that was asked, though none of its answers could be judged, is never promoted for having waited: whoever
  answers nothing would become stable;
- checks of Prometheus are one more condition for a step, and one more reason to reject (promchecks.py);
- a stable revision that broke an objective before the candidate came is no reason to keep it;
- a rehearsal that is over and was left behind is rejected (rehearsal.py);
- who is promoted by a command, or has been stable before, is asked for no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from tuneyard.api.analysis import DEFAULT_INCONCLUSIVE_DEADLINE
from tuneyard.api.promchecks import CheckStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import AnalysisStatus, ObjectiveCounts
from tuneyard.api.schema import seconds
from tuneyard.planning.analysis import Outcome
from tuneyard.planning.observations import Problem
from tuneyard.planning.promchecks import Standings, standings
from tuneyard.planning.rehearsal import rehearsal_over
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutanalysis import Look, look, rules_of
from tuneyard.planning.rolloutposition import position
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.sequential import Comparison, Watch
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

_UNKNOWN = frozenset({Outcome.CONTINUE, Outcome.NO_TRAFFIC})
_REASONS = {
    Outcome.CONTINUE: Reason.INCONCLUSIVE,
    Outcome.NO_TRAFFIC: Reason.NO_TRAFFIC,
    Outcome.METRICS_UNAVAILABLE: Reason.METRICS_UNAVAILABLE,
}


@dataclass(frozen=True)
class Gate:
    """What stands between a candidate and its next step."""

    look: Look | None = None
    """None: nothing is asked."""
    opens: bool = True
    against: Problem | None = None
    """Why it is rejected."""
    status: AnalysisStatus | None = None
    told: str = ""
    """What the step that is taken now is taken for."""

    @property
    def closed(self) -> Problem | None:
        """Why no step is taken, though its hold is over."""
        if self.status is None:
            return None
        if self.status.stable_broken:
            return Problem(Reason.STABLE_BROKEN, self.status.stable_broken)
        reason = _REASONS.get(Outcome(self.status.outcome))
        return Problem(reason, self.status.sentence) if reason else None


OPEN = Gate()


def gate(seen: Seen, candidate: str, stable: str, *, stopped: bool) -> Gate:
    """What the evidence lets the candidate do now; `stopped`: the rollout is paused."""
    if rules_of(seen.rollout) is None:
        return OPEN
    over = rehearsal_over(seen.deployment, seen.now)
    if over is not None:
        return Gate(opens=False, against=over)
    found = look(seen, candidate, stable)
    if found is None or found.judgement is None:
        return Gate(found, opens=False)
    checks = standings(seen, found.record)
    judgement = checks.weighed(found.judgement)
    outcome, sentence = judgement.outcome, clipped(judgement.sentence, 900)
    told = _status(seen, found, candidate, (outcome, sentence, checks))
    if outcome is Outcome.REJECT:
        return Gate(found, opens=False, against=Problem(Reason.ANALYSIS_FAILED, sentence), status=told)
    opens = outcome is Outcome.PASS and not found.blamed
    if found.alone:
        opens = outcome is not Outcome.METRICS_UNAVAILABLE and checks.fine
    if opens:
        return Gate(found, status=told, told=sentence)
    return _unproven(seen, found, (told, checks), candidate, stable, stopped=stopped)


def _unproven(
    seen: Seen, found: Look, said: tuple[AnalysisStatus, Standings], candidate: str, stable: str, *, stopped: bool
) -> Gate:
    """What becomes of a candidate of which too little is known; the time runs only from the end of its hold."""
    told, checks = said
    at = position(seen, candidate, stable, skips=False, stopped=stopped, passes=False)
    same = seen.before is not None and seen.before.step == at.step
    before = _before(seen, candidate) if same else None
    if not at.waits or found.blamed or checks.halted or Outcome(told.outcome) not in _UNKNOWN:
        return Gate(found, opens=False, status=_halted(seen, told, before))
    started = _resumed(seen, before) or seen.stamp
    told = told.model_copy(update={"inconclusive_since": started})
    left, action = inconclusive_left(seen, told), _action(seen)
    held = action == "Promote" and (found.doubtful or not checks.fine)
    if left is None or left > 0 or action == "Hold" or held:
        return Gate(found, opens=False, status=told)
    words = f"{told.sentence}; it has been inconclusive since {started}, longer than inconclusiveDeadline"
    if action == "Promote":
        return Gate(found, status=told, told=words)
    return Gate(found, opens=False, against=Problem(Reason.INCONCLUSIVE, clipped(words, 900)), status=told)


def _halted(seen: Seen, told: AnalysisStatus, before: AnalysisStatus | None) -> AnalysisStatus:
    """The time does not run now; what has run of it at this step counts on afterwards."""
    if before is None or before.inconclusive_since is None:
        return told
    kept = {"inconclusive_since": before.inconclusive_since, "halted_since": before.halted_since or seen.stamp}
    return told.model_copy(update=kept)


def _resumed(seen: Seen, before: AnalysisStatus | None) -> str | None:
    """Since when the evidence has not been enough, later by as long as the time did not run."""
    since = parsed_time(before.inconclusive_since if before else None)
    halted = parsed_time(before.halted_since if before else None)
    if since is None:
        return None
    return rfc3339(since + (seen.now - halted) if halted is not None else since)


def inconclusive_left(seen: Seen, told: AnalysisStatus | None) -> float | None:
    """Seconds of inconclusiveDeadline that are left; None while it does not run."""
    spec, since = seen.rollout.analysis, parsed_time(told.inconclusive_since if told else None)
    if spec is None or since is None or (told is not None and told.halted_since):
        return None
    deadline = spec.inconclusive_deadline
    return remaining(since, seconds(deadline) if deadline else DEFAULT_INCONCLUSIVE_DEADLINE, seen.now)


def _action(seen: Seen) -> str:
    spec = seen.rollout.analysis
    return (spec.on_inconclusive if spec else None) or "Hold"


def _before(seen: Seen, candidate: str) -> AnalysisStatus | None:
    before = seen.before
    return before.analysis if before is not None and before.candidate == candidate else None


def _status(seen: Seen, found: Look, candidate: str, said: tuple[Outcome, str, Standings]) -> AnalysisStatus:
    """What is said of it: the numbers of a look, which stay until the next one unless the outcome changes."""
    record, before = found.record, _before(seen, candidate)
    outcome, sentence, checks = said
    since = rfc3339(datetime.fromtimestamp(record.since or record.looked, UTC))
    trouble = None
    if record.broken:
        when = "as it did before it" if record.broken_before else "since it has traffic"
        trouble = clipped(f"beside {candidate}, {when}: {record.broken}")
    counts, checked = _counts(found), checks.status
    same = before is not None and before.outcome == outcome.value and before.since == since
    if before is not None and same and (not found.telling or _told(before) == (counts, checked)):
        kept = before.model_copy(update={"inconclusive_since": None, "halted_since": None})
        return kept if before.stable_broken == trouble else kept.model_copy(update={"stable_broken": trouble})
    return AnalysisStatus(
        outcome=outcome.value,
        sentence=sentence,
        stable_broken=trouble,
        objectives=counts,
        checks=checked,
        since=since,
    )


def _told(before: AnalysisStatus) -> tuple[list[ObjectiveCounts], list[CheckStatus] | None]:
    return list(before.objectives or ()), before.checks


def _counts(found: Look) -> list[ObjectiveCounts]:
    analysis = found.analysis
    counts = []
    compared = {**analysis.comparisons, **analysis.unnamed}
    for objective in {**compared, **analysis.alone}:
        mine, other = compared.get(objective, Comparison()).whole.seen
        mine = mine.plus(analysis.alone.get(objective, Watch()).capital.seen.candidate)
        counts.append(
            ObjectiveCounts(
                objective=objective.value,
                candidate_judged=mine.judged,
                candidate_bad=mine.bad,
                stable_judged=other.judged,
                stable_bad=other.bad,
            )
        )
    return counts
