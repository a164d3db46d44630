"""Stable over days, with a running operator and a real API server. Its clock is the tests': days pass in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import Cluster, Object, OperatorProcess, eventually, operating
from tests.contract.test_operator_gates import begun, ends, jobs, kept, report_of
from tests.contract.test_operator_rollout import QUICK, Scene, events
from tests.toyworld.drifting import FIRST, OTHER, scored
from tests.toyworld.gates import QUALITY, SPEED
from tuneyard.api.gatereports import GateReport
from tuneyard.planning.timestamps import parsed_time

pytestmark = pytest.mark.apiserver

EVALUATED: Object = {**QUICK, "gates": [QUALITY], "drift": {"evaluation": {"gate": "quality", "maxDrop": 0.1}}}
RATED: Object = {
    **QUICK,
    "analysis": {"slo": {"feedback": "50%"}, "minRequests": 1},
    "drift": {"feedback": {"days": 1, "minAnswers": 10}},
}
LATER = """
import datetime as _dates, pathlib as _paths
import tuneyard.runtime.reconcile as _reconcile
class _Later(_dates.datetime):
    @classmethod
    def now(cls, tz=None):
        return _dates.datetime.now(tz) + _dates.timedelta(seconds=float(_paths.Path({file!r}).read_text()))
_reconcile.datetime = _Later
"""


@dataclass
class DaysScene(Scene):
    """A deployment whose operator's clock is moved."""

    clock: Path = field(default_factory=Path)
    said: int = 1000

    def later(self, moment: datetime) -> None:
        """It is this moment now, and the operator looks."""
        new = self.clock.with_suffix(".new")
        new.write_text(str((moment - datetime.now(UTC)).total_seconds()))
        # at once: the operator reads it all the time
        new.replace(self.clock)
        self.nudge()

    def nudge(self) -> None:
        """The gateway says something new, so that the operator looks: its timers do not know of the tests' clock."""
        self.follow()
        stored = self.cluster.get("ModelDeployment", "m")
        self.said += 1
        metadata = {**stored["metadata"], "generation": self.said}
        self.gateway.applied({**stored, "metadata": metadata}, self.weights[-1])

    @property
    def evaluation(self) -> Object:
        found: Object = (self.cluster.status("ModelDeployment", "m").get("drift") or {}).get("evaluation") or {}
        return found

    def due(self) -> None:
        """The next run begins: it is as late as the status says that one has to be."""

        def begins() -> bool:
            now = datetime.now(UTC) + timedelta(seconds=float(self.clock.read_text()))
            known = self.evaluation
            moment = parsed_time(known.get("nextAt"))
            if known.get("state") == "Waiting" and moment is not None and moment > now:
                self.later(moment + timedelta(seconds=1))
            return bool(jobs(self))

        eventually(begins, lambda: f"a run begins: {self.evaluation}")

    def runs(self, report: GateReport | str) -> Object:
        """The next run begins and finds this; its Job."""
        self.due()
        job = begun(self)
        ends(self, job, report)
        eventually(lambda: jobs(self) == [], lambda: f"its Job goes: {self.evaluation}")
        return job

    def drifts(self, status: str, reason: str) -> None:
        condition = lambda: self.cluster.condition("ModelDeployment", "m", "Drifting")  # noqa: E731
        eventually(lambda: condition() == (status, reason), lambda: f"{condition()} {self.evaluation}")

    def results(self) -> list[float]:
        found = self.cluster.child("configmaps/m-reports") or {"data": {"reports.json": '{"drift": []}'}}
        return [r["scores"]["exactMatch"] for r in json.loads(found["data"]["reports.json"])["drift"]]


@pytest.fixture(scope="module")
def running(
    operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGateway, OperatorProcess, Path]]:
    folder = tmp_path_factory.mktemp("operator")
    clock = folder / "clock"
    clock.write_text("0")
    with operating(operator_apiserver, folder, prelude=LATER.format(file=str(clock))) as running:
        yield *running, clock


@pytest.fixture
def scene(
    operator_apiserver: ApiServer,
    running: tuple[FakeGateway, OperatorProcess, Path],
    request: pytest.FixtureRequest,
) -> Iterator[DaysScene]:
    gateway, operator, clock = running
    scene = DaysScene(Cluster.of(operator_apiserver, request), gateway, operator, weights=[], clock=clock)
    scene.begin(QUICK)
    yield scene
    scene.cluster.delete("ModelDeployment", "m")


def test_an_evaluation_that_falls_is_a_drift_until_it_is_better_and_changes_nothing_else(scene: DaysScene) -> None:
    scene.apply({"v1": 100}, EVALUATED)
    scene.drifts("False", "Steady")
    job = scene.runs(scored(0.9))
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    scene.drifts("False", "Steady")
    scene.runs(scored(0.7))
    scene.drifts("True", "Drifting")
    assert scene.cluster.condition("ModelDeployment", "m", "Ready") == ("True", "Ready")
    assert scene.cluster.condition("ModelDeployment", "m", "Stalled") == ("", "")
    assert scene.follow()["phase"] == "Completed"
    assert scene.weights[-1] == {"v1": 100}
    eventually(lambda: "Drifting" in events(scene), "an event")
    assert scene.operator.metric("tuneyard_drifting") == 1
    scene.runs(scored(0.89))
    scene.drifts("False", "Steady")
    eventually(lambda: "DriftEnded" in events(scene), "an event")
    assert scene.results() == [0.9, 0.7, 0.89]
    shown = report_of(scene)
    assert "exactMatch 0.7" in shown
    assert "Stable over days  does not drift" in shown


def test_neither_a_restart_nor_a_lost_status_nor_another_object_loses_the_baseline(scene: DaysScene) -> None:
    scene.apply({"v1": 100}, EVALUATED)
    scene.runs(scored(0.9))
    scene.runs(scored(0.6))
    scene.drifts("True", "Drifting")
    scene.operator.kill()
    assert scene.lose_status()
    scene.operator.start()
    scene.drifts("True", "Drifting")
    scene.cluster.delete("ModelDeployment", "m")
    scene.apply({"v1": 100}, EVALUATED)
    scene.until(lambda r: r.get("phase") == "Completed", "v1 is stable")
    scene.drifts("True", "Drifting")
    assert jobs(scene) == []
    scene.runs(scored(0.61))
    assert scene.results() == [0.9, 0.6, 0.61]


def test_other_prompts_are_another_baseline_and_a_run_that_cannot_run_is_none(scene: DaysScene) -> None:
    scene.apply({"v1": 100}, EVALUATED)
    scene.runs(scored(0.9))
    scene.runs(scored(0.3, OTHER))
    scene.drifts("False", "Steady")
    scene.due()
    ends(scene, begun(scene), GateReport(cannot_run="ConfigMap evals, key prompts.jsonl does not exist"))
    scene.drifts("False", "DriftUnmeasured")
    assert (scene.evaluation["state"], scene.evaluation["attempt"]) == ("CannotRun", 2)
    moment = parsed_time(scene.evaluation["nextAt"])
    assert moment is not None
    scene.later(moment + timedelta(seconds=1))
    ends(scene, begun(scene, attempt=2), scored(0.88, FIRST))
    scene.drifts("False", "Steady")
    assert scene.results() == [0.9, 0.3, 0.88]


def test_a_rollout_ends_a_run_and_what_its_gate_found_is_the_next_baseline(scene: DaysScene) -> None:
    # gates go by when the API server made their Jobs, which knows nothing of the tests' clock
    patient = {**EVALUATED, "gates": [{**QUALITY, "timeout": "9000h"}]}
    scene.apply({"v1": 100}, patient)
    scene.runs(scored(0.9))
    scene.due()
    run = begun(scene)
    scene.apply({"v1": 0, "v2": 100}, patient)
    eventually(lambda: run["metadata"]["name"] not in [j["metadata"]["name"] for j in jobs(scene)], "the run ends")
    gate = begun(scene)
    ends(scene, gate, scored(0.95))
    scene.until(lambda r: r.get("stable") == "v2" and r.get("phase") == "Completed", "v2 takes over")
    scene.runs(scored(0.7))
    scene.drifts("True", "Drifting")
    assert scene.results() == [0.9, 0.95, 0.7]
    assert kept(scene) == [("quality", "Passed")]


def _days_heard(heard: Callable[[], list[list[int]]], number: int) -> Callable[[], bool]:
    return lambda: len(heard()) == number


def test_feedback_that_becomes_worse_is_a_drift(scene: DaysScene) -> None:
    scene.apply({"v1": 100}, RATED)
    scene.drifts("False", "Steady")
    key, day = f"{scene.cluster.namespace}/m", datetime.now(UTC) + timedelta(days=40)
    scene.gateway.judges(scene.cluster.get("ModelDeployment", "m"))

    def record() -> Object:
        scene.nudge()
        found = scene.cluster.child("configmaps/m-evidence") or {"data": {"record.json": "{}"}}
        kept: Object = json.loads(found["data"]["record.json"])
        return kept

    def heard() -> list[list[int]]:
        feedback = record().get("feedback") or [{"days": {}}]
        return list(feedback[-1]["days"].values())

    # the first look at a gateway only says where it is: what it counted before is nobody's
    scene.later(day)
    eventually(lambda: record().get("seen"), "a first look")
    for number, bad in enumerate((2, 30), 1):
        scene.later(day + timedelta(days=number))
        scene.gateway.counted_at_once([(key, "v1", 40, bad)], objective="feedback")
        eventually(_days_heard(heard, number), "the feedback of the day")
    assert [counts[:2] for counts in heard()] == [[40, 2], [40, 30]]
    scene.later(day + timedelta(days=3))
    scene.drifts("True", "Drifting")
    assert "30 of 40 bad" in report_of(scene)


def test_the_api_server_refuses_a_watch_that_makes_no_sense(scene: DaysScene) -> None:
    evaluation = {"evaluation": {"gate": "quality"}}
    for rollout, words in (
        ({"drift": evaluation}, "rollout.drift.evaluation.gate must be the name of an entry of rollout.gates"),
        (
            {"gates": [{**SPEED, "name": "quality"}], "drift": evaluation},
            "must be the name of an entry of rollout.gates",
        ),
        ({"drift": {"feedback": {}}}, "rollout.drift.feedback needs rollout.analysis.slo.feedback"),
        ({"drift": {}}, "rollout.drift must name what is watched"),
        (
            {"gates": [QUALITY], "drift": {"evaluation": {"gate": "quality", "every": "5m"}}},
            "drift.evaluation.every must be 10m or longer",
        ),
        ({"gates": [QUALITY], "drift": {"evaluation": {"gate": "quality", "every": "1d"}}}, "every"),
        ({"mode": "Manual", "steps": None, "gates": [QUALITY], "drift": evaluation}, "needs rollout.mode Progressive"),
    ):
        wanted = {k: v for k, v in {**QUICK, **rollout}.items() if v is not None}
        with pytest.raises(Exception, match=words):
            scene.apply({"v1": 100}, wanted)
