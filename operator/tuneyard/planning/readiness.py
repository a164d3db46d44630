"""Ready, Reconciling and Stalled, the same way on every kind (kstatus), and the event that tells of a new obstacle.

Rules:
- a problem: Ready=False and Stalled=True with its reason. Everything is still tried again; Stalled says that it will
  not get better by waiting alone, and goes as soon as the problem does;
- work under way: Ready=False and Reconciling=True;
- neither: Ready=True, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.conditions import Condition, Finding, find, merged
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Event, ObjectReference
from tuneyard.planning.remedies import with_remedy
from tuneyard.planning.timestamps import rfc3339

READY, RECONCILING, STALLED = "Ready", "Reconciling", "Stalled"

Status = TypeVar("Status", BaseModelStatus, LoRAAdapterStatus, ModelDeploymentStatus)


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


def stalled_by(status: Status, problem: Problem, before: Iterable[Condition], generation: int, now: datetime) -> Status:
    """The status with a problem that no plan could see: an object that cannot be read, an action that was refused.

    `status` is the planned one, or the stored one where nothing could be planned; `before` are the stored conditions.
    """
    told: tuple[Condition, ...] = merged(before, readiness(problem, None, problem), rfc3339(now), generation or None)
    others: list[Condition] = [c for c in status.conditions if c.type not in (READY, RECONCILING, STALLED)]
    return status.model_copy(update={"conditions": [*told, *others], "observed_generation": generation})
