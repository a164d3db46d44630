"""Drift: whether stable answers worse than in its first days, as one condition.

Rules:
- it is a word and never a deed: no weight, no verdict and no other condition follows from it. So whoever waits for an
  object (kstatus, Argo CD) sees one that is ready;
- it is there while spec.rollout.drift asks for it. A revision that becomes stable has a baseline of its own;
- each of evaluation (driftruns.py) and feedback (feedbackdrift.py) says in one sentence what it has found;
- begin and end are told once, by events;
- while nobody knows the contents of stable (its adapter object is missing) all stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from tuneyard.api import names
from tuneyard.api.conditions import Finding, find, is_true
from tuneyard.api.drift import DriftStatus, FeedbackDriftStatus
from tuneyard.api.evidence import EvidenceRecord
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.driftruns import plan_runs
from tuneyard.planning.feedbackdrift import day_of, feedback_drift
from tuneyard.planning.gateobservations import GateObservation
from tuneyard.planning.plan import Action, Event, ObjectReference
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutseen import Seen

DRIFTING = "Drifting"
_AFTER_MIDNIGHT = 600
"""Seconds over which looks of many deployments at a new day are spread."""


@dataclass(frozen=True)
class Drift:
    """What is known, and what should be done for it."""

    status: DriftStatus | None = None
    findings: tuple[Finding, ...] = ()
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    look_again: float | None = None


def plan_drift(
    seen: Seen, looked: GateObservation | None, rollout: RolloutStatus, evidence: EvidenceRecord | None
) -> Drift:
    """The drift of the revision that `rollout` names stable; `evidence`: with what this pass has taken in."""
    stored = seen.deployment.status.drift
    if stored is not None and _contents_unknown(seen, rollout):
        return Drift(stored, (found(stored),))
    runs = plan_runs(seen, looked, rollout)
    feedback = _feedback(seen, rollout, evidence)
    if runs.status is None and feedback is None:
        return Drift(actions=runs.actions)
    status = DriftStatus(evaluation=runs.status, feedback=feedback)
    finding = found(status)
    waits = [runs.look_again] if runs.look_again is not None else []
    if feedback is not None:
        waits.append(_until_tomorrow(seen))
    return Drift(status, (finding,), _told(seen, finding), runs.actions, min(waits, default=None))


def found(status: DriftStatus) -> Finding:
    """The condition."""
    evaluation, feedback = status.evaluation, status.feedback
    parts = [p for p in (evaluation, feedback) if p is not None]
    drifting = [p.message for p in parts if p.drifting]
    words = drifting or [p.message for p in parts if p.message]
    trouble = evaluation.trouble if evaluation is not None else None
    if trouble:
        words = [*words, f"the evaluation cannot run: {trouble}"]
    elif evaluation is not None and evaluation.state == "Waiting" and evaluation.next_at is None:
        words = [*words, "the evaluation is run again when no rollout is under way"]
    reason = Reason.DRIFTING if drifting else Reason.DRIFT_UNMEASURED if trouble else Reason.STEADY
    message = clipped("; ".join(words) or Reason.STEADY.doc)
    return Finding(type=DRIFTING, status="True" if drifting else "False", reason=reason, message=message)


def _contents_unknown(seen: Seen, rollout: RolloutStatus) -> bool:
    """Whether drift is asked for of contents that nobody knows now."""
    asked = seen.spec.progressive and seen.rollout.drift is not None
    return asked and rollout.stable is not None and seen.hashes.get(rollout.stable) is None


def _feedback(seen: Seen, rollout: RolloutStatus, evidence: EvidenceRecord | None) -> FeedbackDriftStatus | None:
    drift = seen.rollout.drift if seen.spec.progressive else None
    if drift is None or drift.feedback is None or rollout.stable is None:
        return None
    content = seen.hashes.get(rollout.stable)
    kept = next((k for k in (evidence.feedback if evidence else ()) if k.content_hash == content), None)
    return feedback_drift(kept, drift.feedback, rollout.stable, day_of(seen.now))


def _until_tomorrow(seen: Seen) -> float:
    """Seconds until another day can be looked at."""
    midnight = datetime.combine(day_of(seen.now) + timedelta(days=1), time(), UTC)
    own = int(names.short_hash(*seen.deployment.metadata.key), 16) % _AFTER_MIDNIGHT
    return (midnight - seen.now).total_seconds() + own


def _told(seen: Seen, finding: Finding) -> tuple[Event, ...]:
    meta, before = seen.deployment.metadata, seen.deployment.status.conditions
    about = ObjectReference(names.API_VERSION, "ModelDeployment", meta.namespace, meta.name, meta.uid)
    was, now, known = is_true(before, DRIFTING), finding.status == "True", find(before, DRIFTING)
    if now and not was:
        return (Event("Warning", Reason.DRIFTING, finding.message, about),)
    if was and not now:
        return (Event("Normal", Reason.DRIFT_ENDED, finding.message, about),)
    unmeasured = Reason.DRIFT_UNMEASURED.value
    if finding.reason == unmeasured and (known is None or known.reason != unmeasured):
        return (Event("Warning", Reason.DRIFT_UNMEASURED, finding.message, about),)
    return ()
