"""Rollouts that are judged by answers, over random histories: traffic, silence, restarts, edits, crashes, lost status.

Whatever happens: nobody is rejected for silence, no step is taken without evidence, no answer is counted twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toyworld.rollouts import GATEWAYS, PROGRESSIVE, WHOLE, RolloutWorld
from tuneyard.planning.evidence import Tally

EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "15"))
MIN = 100
ANALYSIS = {"slo": {"errorRate": "1%"}, "minRequests": MIN}


@dataclass
class Judged:
    """A world in which v2, later v3, is to take over, and all answers that gateways have counted."""

    bad: bool = False
    """Every third answer of a candidate is bad."""
    world: RolloutWorld = field(default_factory=lambda: RolloutWorld(rollout={**PROGRESSIVE, "analysis": ANALYSIS}))
    counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.world.ready |= {"v2": True, "v3": True}
        self.world.spec(WHOLE)
        self.world.settle()

    def ask(self, requests: int) -> None:
        """So many requests through both gateways, by the weights that each serves."""
        for name, view in self.world.views.items():
            for revision, weight in view.weights.items():
                judged = requests * weight // 100
                bad = judged // 3 if self.bad and revision != "v1" else 0
                if judged:
                    self.world.counting[name].count(revision, Tally(judged, bad, bad))
                    self.counted[revision] += judged


@dataclass(frozen=True)
class Step:
    """What happens next."""

    words: str
    run: Callable[[Judged], object] = field(repr=False)


def _silence(name: str, silent: bool, judging: bool) -> Callable[[Judged], None]:
    def run(judged: Judged) -> None:
        judged.world.counting[name].silent, judged.world.counting[name].judging = silent, judging

    return run


gateways = st.sampled_from(GATEWAYS)
asks = st.sampled_from([20, 400, 3000, 3000]).map(lambda n: Step(f"{n} requests", lambda j: j.ask(n)))
waits = st.sampled_from([0.02, 0.1, 1, 5, 11, 61]).map(lambda m: Step(f"{m} min", lambda j: j.world.wait(m)))
passes = st.booleans().map(lambda c: Step("a pass" + " that crashes" * c, lambda j: j.world.reconcile(crash=c)))
calm = st.just(Step("calm", lambda j: j.world.settle()))
silences = st.tuples(gateways, st.booleans(), st.booleans()).map(
    lambda s: Step(f"{s[0]} silent {s[1]}, judging {s[2]}", _silence(*s))
)
heard = gateways.map(lambda g: Step(f"{g} tells again", _silence(g, False, True)))
restarts = gateways.map(lambda g: Step(f"{g} restarts", lambda j: j.world.counting[g].restart(j.world.clock)))
losses = st.sampled_from(
    [
        Step("status lost", lambda j: j.world.lose_status()),
        Step("deleted and created again", lambda j: j.world.recreate()),
        Step("evidence lost", lambda j: setattr(j.world, "evidence", None)),
    ]
)
pods = st.tuples(st.sampled_from(["v1", "v2", "v3"]), st.booleans()).map(
    lambda p: Step(f"{p[0]} ready {p[1]}", lambda j: j.world.ready.update({p[0]: p[1]}))
)
edits = st.sampled_from(
    [WHOLE, {"v1": 50, "v2": 50}, {"v1": 100}, {"v1": 0, "v2": 0, "v3": 100}, {"v1": 0, "v2": 40, "v3": 60}]
).map(lambda t: Step(f"traffic {t}", lambda j: j.world.spec(t)))


def _slo(error_rate: str) -> Callable[[Judged], None]:
    def run(judged: Judged) -> None:
        judged.world.spec(judged.world.traffic, analysis={**ANALYSIS, "slo": {"errorRate": error_rate}})

    return run


objectives = st.sampled_from(["1%", "3%"]).map(lambda e: Step(f"errorRate {e}", _slo(e)))
anything: Any = st.one_of(
    asks, asks, asks, waits, waits, waits, passes, calm, calm, calm, silences, heard, heard, restarts, losses, pods,
    edits, objectives,
)  # fmt: skip


def rules_hold(judged: Judged, before: dict[str, int]) -> None:
    world = judged.world
    status, analysis = world.status, world.status.analysis
    told = all(not g.silent and g.judging for g in world.counting.values())
    stable = {o.revision for o in status.history or () if o.outcome == "Stable"}
    for revision, limit in (status.allowed or {}).items():
        if revision in stable or limit <= max(5, before.get(revision, 0)):
            continue
        assert told, f"{revision} rises while a gateway does not tell"
        assert judged.counted[revision] >= MIN, f"{revision} rises without evidence"
    for counts in (analysis.objectives or ()) if analysis else ():
        candidate = status.candidate or ""
        assert counts.candidate_judged <= judged.counted[candidate], "an answer was counted twice"
        assert counts.stable_judged <= judged.counted[status.stable or ""], "an answer of stable was counted twice"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(anything, max_size=50), st.booleans())
def test_silence_says_nothing_and_every_answer_counts_once(history: list[Step], bad: bool) -> None:
    judged = Judged(bad)
    for step in history:
        before = dict(judged.world.status.allowed or {})
        step.run(judged)
        rules_hold(judged, before)
        reasons = {v.reason for v in judged.world.status.verdicts or ()}
        assert bad or "AnalysisFailed" not in reasons, "somebody good was rejected"
        assert "Inconclusive" not in reasons
    judged.world.settle()
    for _ in range(40):
        if judged.world.plan.requeue_after is None:
            break
        judged.world.wait(judged.world.plan.requeue_after / 60)
        judged.world.settle()
    assert judged.world.plan.requeue_after is None, "time goes on asking for passes"
    assert judged.world.reconcile().actions == ()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(asks, waits, passes, calm, silences, heard, restarts, losses), max_size=25), st.booleans())
def test_in_the_end_the_good_take_over_and_the_bad_are_rejected(history: list[Step], bad: bool) -> None:
    judged = Judged(bad)
    world = judged.world
    for step in history:
        step.run(judged)
    for gateway in world.counting.values():
        gateway.silent, gateway.judging = False, True
    for _ in range(14):
        world.settle()
        judged.ask(3000)
        world.wait(2.1)
    world.settle()
    if bad:
        assert [v.revision for v in world.status.verdicts or ()] == ["v2"] and world.status.stable == "v1"
    else:
        assert world.status.stable == "v2" and not world.status.verdicts
