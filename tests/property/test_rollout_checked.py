"""Rollouts with a check of Prometheus, over random histories: numbers, outages, restarts, edits, crashes, lost status.

Whatever happens: nobody is rejected but for so many numbers out of bounds in a row, and no step is taken but with a
number within bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.test_rollout_judged import (
    ANALYSIS,
    EXAMPLES,
    Judged,
    asks,
    calm,
    heard,
    losses,
    passes,
    pods,
    restarts,
    silences,
    waits,
)
from tests.toyworld.rollouts import WHOLE

MOST, FAILURES = 1.0, 3
CHECK = {"name": "drift", "query": 'drift{revision="$candidate"}', "max": MOST, "failures": FAILURES}


@dataclass
class Checked(Judged):
    """The same world; the candidate's answers are good, so that only the check could reject it."""

    row: int = 0
    """Numbers out of bounds since the last one within, or since somebody else became the candidate."""
    longest: int = 0
    newest: float | str = "none yet"

    def __post_init__(self) -> None:
        self.world.rollout["analysis"] = {**ANALYSIS, "prometheus": [CHECK]}
        super().__post_init__()

    def evaluate(self, answer: float | str) -> None:
        self.world.asking.answers["drift"] = answer
        if not self.world.asking.evaluate(self.world.now, self.world.clock):
            return
        self.newest = answer
        if not isinstance(answer, str):
            self.row = self.row + 1 if answer > MOST else 0
            self.longest = max(self.longest, self.row)


@dataclass(frozen=True)
class Step:
    """What happens next."""

    words: str
    run: Callable[[Any], object] = field(repr=False)


def _evaluation(answer: float | str) -> Callable[[Checked], None]:
    def run(checked: Checked) -> None:
        checked.evaluate(answer)

    return run


within = st.just(Step("a number within", _evaluation(0.5)))
beyond = st.just(Step("a number beyond", _evaluation(2.0)))
outages = st.sampled_from(["timeout", "HTTP status 503"]).map(lambda a: Step(f"no number: {a}", _evaluation(a)))
ends = st.just(Step("the operator ends", lambda c: c.world.asking.restart()))
half_a_minute = st.just(Step("30 s", lambda c: c.world.wait(0.5)))
anything: Any = st.one_of(
    within, within, beyond, outages, outages, ends, half_a_minute, half_a_minute, half_a_minute,
    asks, asks, waits, passes, calm, calm, silences, heard, restarts, losses, pods,
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(anything, max_size=60))
def test_only_numbers_reject_and_only_numbers_let_a_step_be_taken(history: list[Any]) -> None:
    checked = Checked()
    world = checked.world
    for step in history:
        before = dict(world.status.allowed or {})
        step.run(checked)
        reasons = {v.reason for v in world.status.verdicts or ()}
        assert "Inconclusive" not in reasons
        if "AnalysisFailed" in reasons:
            assert checked.longest >= FAILURES, "rejected, and there were not so many numbers"
            break
        stable = {o.revision for o in world.status.history or () if o.outcome == "Stable"}
        for revision, limit in (world.status.allowed or {}).items():
            if revision not in stable and limit > max(5, before.get(revision, 0)):
                assert checked.newest == 0.5, f"{revision} rises though the check said {checked.newest}"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(outages, ends, half_a_minute, waits, asks, passes, calm, losses), max_size=40))
def test_an_outage_alone_neither_rejects_nor_promotes(history: list[Any]) -> None:
    checked = Checked()
    for step in history:
        step.run(checked)
        assert not checked.world.status.verdicts
        assert checked.world.status.stable in (None, "v1"), "none: the status was lost"
        assert (checked.world.status.allowed or {}).get("v2", 0) <= 5


@settings(max_examples=max(1, EXAMPLES // 4), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(within, outages, ends, half_a_minute, asks, passes, calm, losses), max_size=20), st.booleans()
)
def test_in_the_end_it_takes_over_within_bounds_and_is_rejected_beyond(history: list[Any], bad: bool) -> None:
    checked = Checked()
    world = checked.world
    for step in history:
        step.run(checked)
    if world.traffic != WHOLE:
        world.spec(WHOLE)
    for _ in range(16):
        world.wait(1.9)
        world.settle()
        checked.ask(3000)
        checked.evaluate(2.0 if bad else 0.5)
        world.wait(0.1)
        world.settle()
    if bad:
        assert [(v.revision, v.reason) for v in world.status.verdicts or ()] == [("v2", "AnalysisFailed")]
    else:
        assert world.status.stable == "v2" and not world.status.verdicts
