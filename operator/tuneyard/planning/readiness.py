"""Ready, Reconciling and Stalled, the same way on every kind (kstatus), and the event that tells of a new obstacle.

Rules:
- a problem: Ready=False and Stalled=True with its reason. Everything is still tried again; Stalled says that it will
  not get better by waiting alone, and goes as soon as the problem does;
- work under way: Ready=False and Reconciling=True;
- neither: Ready=True, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneyard.api.conditions import Condition, Finding, find
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Event, ObjectReference
from tuneyard.planning.remedies import with_remedy

READY, RECONCILING, STALLED = "Ready", "Reconciling", "Stalled"


def readiness(problem: Problem | None, work: Problem | None, done: Problem) -> list[Finding]:
    """The three conditions; `done` is what Ready says when there is neither a problem nor work."""
    if problem:
        words = with_remedy(problem)
        return [
            Finding(type=READY, status="False", reason=problem.reason, message=words),
            Finding(type=STALLED, status="True", reason=problem.reason, message=words),
        ]
    if work:
        return [
            Finding(type=READY, status="False", reason=work.reason, message=work.message),
            Finding(type=RECONCILING, status="True", reason=work.reason, message=work.message),
        ]
    return [Finding(type=READY, status="True", reason=done.reason, message=done.message)]


def stalled_event(before: Iterable[Condition], problem: Problem | None, about: ObjectReference) -> tuple[Event, ...]:
    """A warning when there is a problem that was not there before, or another one."""
    known = find(before, STALLED)
    if problem is None or (known is not None and known.reason == problem.reason.value):
        return ()
    return (Event("Warning", problem.reason, with_remedy(problem), about),)
