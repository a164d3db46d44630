"""Times of conditions move only when the status does."""

from __future__ import annotations

from tuneyard.api.conditions import Finding, find, is_true, merged
from tuneyard.api.reasons import Reason

T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def ready(status, message=""):
    return Finding(type="Ready", status=status, reason=Reason.READY, message=message)


def test_time_stays_while_the_status_stays():
    first = merged([], [ready("False")], T0, 1)
    same = merged(first, [ready("False", "other words")], T1, 2)
    assert same[0].last_transition_time == T0
    assert same[0].message == "other words"
    flipped = merged(same, [ready("True")], T1, 2)
    assert flipped[0].last_transition_time == T1


def test_conditions_that_nobody_finds_are_dropped():
    first = merged([], [ready("True"), Finding(type="Stalled", status="True", reason=Reason.INVALID_SPEC)], T0, 1)
    assert is_true(first, "Stalled")
    assert find(merged(first, [ready("True")], T1, 1), "Stalled") is None
