"""Conditions, after kstatus: `Ready`, `Reconciling` and `Stalled` on every kind, and the kind's own.

Rules: `lastTransitionTime` moves only when `status` changes; a condition that says the same is the same object, so
that a status is written only when it differs; `Reconciling` and `Stalled` are present only while true.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.reasons import Reason

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    """One condition of an object's status."""

    type: Annotated[str, Field(max_length=63)]
    status: ConditionStatus
    reason: Annotated[str, Field(max_length=63)]
    message: Annotated[str, Field(max_length=4096)] = ""
    last_transition_time: Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
    observed_generation: int | None = None


class Finding(ApiModel):
    """What a plan says of one condition, before it has a time."""

    type: str
    status: ConditionStatus
    reason: Reason
    message: str = ""


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of that type is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status == "True"


def merged(
    before: Iterable[Condition], findings: Iterable[Finding], now: str, generation: int | None
) -> tuple[Condition, ...]:
    """Conditions for the findings, in their order; times are kept where the status did not change.

    `now` is RFC 3339 in UTC. Conditions that no finding names are dropped.
    """
    old = {c.type: c for c in before}
    result = []
    for finding in findings:
        known = old.get(finding.type)
        since = known.last_transition_time if known and known.status == finding.status else now
        result.append(
            Condition(
                type=finding.type,
                status=finding.status,
                reason=finding.reason.value,
                message=finding.message[:4096],
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return tuple(result)
