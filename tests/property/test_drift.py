"""Stable's evaluation over random histories: time, results, failures, rollouts, crashes, lost status, other objects.

Whatever happens: no run begins while a rollout is under way or before it is due, no result is kept twice or lost that
was taken in, what is said follows from what is kept alone, and no weight follows from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toyworld.drifting import ASKED, FIRST, OTHER, scored
from tests.toyworld.rollouts import PROGRESSIVE, RolloutWorld
from tuneyard.api import names
from tuneyard.api.gatereports import DriftRun, GateReport, GateReports
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.planning.driftruns import compared_runs, settled
from tuneyard.planning.gateobservations import REPORTS_KEY, JobMark
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.timestamps import parsed_time

EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "15"))


@dataclass
class Watched:
    """A world in which stable is evaluated."""

    world: RolloutWorld = field(default_factory=lambda: RolloutWorld(rollout={**PROGRESSIVE, **ASKED, "gates": []}))
    begun: dict[str, JobMark] = field(default_factory=dict)
    """Every Job that was ever seen, by name."""

    def __post_init__(self) -> None:
        self.world.ready["v2"] = True
        self.world.spec({"v1": 100}, **ASKED)
        self.world.settle()

    def settle(self) -> None:
        self.world.settle()
        self._note()

    def _note(self) -> None:
        for name in self.world.gates.jobs:
            metadata = self.world.gates.objects["Job", name]["metadata"]
            mark = JobMark.model_validate_json(metadata["annotations"][names.ANNOTATION_GATE])
            if mark.drift is not None:
                self.begun.setdefault(name, mark)

    @property
    def kept(self) -> list[DriftRun]:
        found = self.world.gates.objects.get(("ConfigMap", names.gate_reports("chat")))
        return GateReports.model_validate_json(found["data"][REPORTS_KEY]).drift if found else []

    def hours(self, number: float) -> None:
        self.world.clock += timedelta(hours=number)
        self.settle()

    def _planned(self, asked: bool) -> ModelDeploymentStatus:
        """What a pass would say now; not `asked`: if the spec did not speak of drift."""
        seen = self.world.situation()
        (known,) = seen.deployments
        assert known.spec.rollout is not None
        drift = known.spec.rollout.drift if asked else None
        spec = known.spec.model_copy(update={"rollout": known.spec.rollout.model_copy(update={"drift": drift})})
        plan = plan_modeldeployment(replace(seen, deployments=(known.model_copy(update={"spec": spec}),)).deployment())
        assert isinstance(plan.status, ModelDeploymentStatus)
        return plan.status

    def check(self) -> None:
        world = self.world
        running = [n for n in world.gates.jobs if n in self.begun]
        assert len(running) <= 1
        assert settled(world.status) or not running, "none while a rollout is under way"
        kept = self.kept
        assert len({(r.key, r.at) for r in kept}) == len(kept), "none twice"
        with_it, without = (self._planned(asked) for asked in (True, False))
        assert (with_it.traffic, with_it.rollout) == (without.traffic, without.rollout), "it changes no traffic"
        told = {c.type: c for c in world.now.status.conditions}["Drifting"]
        drift = world.now.status.drift
        assert drift is not None and drift.evaluation is not None
        mine = [r for r in kept if r.key == drift.evaluation.key]
        if mine and settled(world.status) and drift.evaluation.state != "Waiting":
            assert told.status == str(compared_runs(mine, 0.1)[0]), "it follows from what is kept"


def _moment(mark: JobMark) -> datetime:
    found = parsed_time(mark.began)
    assert found is not None
    return found


@dataclass(frozen=True)
class Step:
    """What happens next."""

    words: str
    run: Callable[[Watched], object] = field(repr=False)


def _ends(report: GateReport | str) -> Callable[[Watched], None]:
    return lambda w: w.world.gates.end(report)


def _crash(watched: Watched) -> None:
    watched.world.reconcile(crash=True)
    watched._note()


STEPS = st.one_of(
    st.sampled_from([0.3, 1.1, 5, 24.5, 80]).map(lambda h: Step(f"{h} h", lambda w: w.hours(h))),
    st.sampled_from([0.9, 0.85, 0.7]).map(lambda s: Step(f"scored {s}", _ends(scored(s)))),
    st.sampled_from(
        [
            Step("other prompts", _ends(scored(0.5, OTHER))),
            Step("cannot run", _ends(GateReport(cannot_run="no"))),
            Step("broken", _ends("Traceback")),
            Step("Jobs lost", lambda w: w.world.gates.lose()),
            Step("status lost", lambda w: w.world.lose_status()),
            Step("another object", lambda w: w.world.recreate()),
            Step("crash", _crash),
            Step("v2", lambda w: w.world.spec({"v1": 0, "v2": 100})),
            Step("v1", lambda w: w.world.spec({"v1": 100, "v2": 0})),
            Step("abort", lambda w: w.world.command("abort", "v2", f"a{w.world.clock.timestamp()}")),
            Step("promote", lambda w: w.world.command("promote", "v2", f"p{w.world.clock.timestamp()}")),
            Step("no pod", lambda w: w.world.ready.update(v1=False)),
            Step("a pod", lambda w: w.world.ready.update(v1=True)),
        ]
    ),
)


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens(steps: list[Step]) -> None:
    watched = Watched()
    for step in steps:
        step.run(watched)
        watched.settle()
        watched.check()
    before = {c.type: (c.status, c.message) for c in watched.world.now.status.conditions}["Drifting"]
    running = bool(watched.world.gates.running)
    watched.world.lose_status()
    watched.settle()
    after = {c.type: (c.status, c.message) for c in watched.world.now.status.conditions}["Drifting"]
    drift = watched.world.now.status.drift
    assert drift is not None and drift.evaluation is not None
    if not running and settled(watched.world.status) and "cannot run" not in before[1] + after[1]:
        assert after[0] == before[0], "a lost status loses nothing"


@given(st.integers(0, 40), st.sampled_from([FIRST, OTHER]))
@settings(max_examples=max(1, EXAMPLES // 5), deadline=None)
def test_runs_come_no_sooner_than_asked(late: int, digest: str) -> None:
    watched = Watched()
    begun: list[datetime] = []
    for _ in range(60):
        watched.hours(1.01 + late / 100)
        if watched.world.gates.running:
            (name,) = watched.world.gates.running
            begun.append(_moment(watched.begun[name]))
            watched.world.gates.end(scored(0.9, digest))
            watched.settle()
    assert all(timedelta(hours=23) < b - a for a, b in pairwise(begun))
