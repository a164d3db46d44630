"""Rollouts that are judged by answers, with a running operator and a real API server; gateways count what a test says.

Gateways serve what the shared function gives for the stored object, and count a hundred answers for every look at it,
by these weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import Cluster, Object, OperatorProcess, eventually
from tests.contract.test_operator_rollout import QUICK, SLOW, Scene, answered
from tuneyard.api.evidence import EvidenceRecord
from tuneyard.planning.analysisrecord import restored
from tuneyard.planning.evidence import Objective
from tuneyard.systems.kube import objects

pytestmark = pytest.mark.apiserver

ANALYSIS = {"slo": {"errorRate": "1%"}, "minRequests": 200, "warmUp": "1s"}
JUDGED_QUICK = {**QUICK, "analysis": ANALYSIS}
JUDGED_SLOW = {**SLOW, "analysis": ANALYSIS}


@dataclass
class JudgedScene(Scene):
    """One deployment whose answers are judged."""

    other: FakeGateway | None = None
    """A second gateway."""
    asked: bool = True
    """There is traffic."""
    bad: dict[str, float] = field(default_factory=dict)
    """The share of bad answers, by revision; none: 1 in 200."""
    _owed: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.cluster.namespace}/m"

    @property
    def gateways(self) -> list[FakeGateway]:
        return [g for g in (self.gateway, self.other) if g is not None]

    def follow(self) -> Object:
        rollout = super().follow()
        stored = self.cluster.get("ModelDeployment", "m")
        served = self.gateway.deployments[self.key]["weights"]
        for gateway in self.gateways:
            if gateway is not self.gateway and gateway.deployments.get(self.key) != self.gateway.deployments[self.key]:
                gateway.applied(stored, served)
            if "analysis" in (stored["spec"].get("rollout") or {}):
                gateway.judges(stored)
                self._count(gateway, served)
        return rollout

    def _count(self, gateway: FakeGateway, weights: dict[str, int]) -> None:
        for revision, weight in weights.items():
            if weight and self.asked:
                self._owed[revision] = self._owed.get(revision, 0.0) + weight * self.bad.get(revision, 0.005)
                bad = min(int(self._owed[revision]), weight)
                self._owed[revision] -= bad
                gateway.counted(self.key, revision, weight, bad)

    def counted(self, revision: str) -> int:
        """Answers of a revision, as all gateways have counted them."""
        told = (g.evidence[self.key]["counts"].get(revision, {}).get("errorRate", {}) for g in self.gateways)
        return sum(series.get("0", [0])[0] for series in told)

    def known(self) -> int:
        """Answers of the candidate that the status speaks of."""
        analysis = self.follow().get("analysis") or {}
        return sum(o["candidateJudged"] for o in analysis.get("objectives") or ())

    def missed(self, revision: str) -> int:
        """Nobody asks any more and all is read: how many answers of the candidate are not in its evidence."""
        self.asked = False
        told = self.counted(revision)

        def read() -> bool:
            found = self.cluster.child("configmaps/m-evidence") or {"data": {"record.json": "{}"}}
            record = EvidenceRecord.from_dict(json.loads(found["data"]["record.json"]))
            seen = sum(s.get(revision, {}).get("errorRate", {}).get(0, [0])[0] for s in record.seen.values())
            analysis = restored(json.dumps(record.analysis))
            assert analysis is not None
            stored = analysis.comparisons[Objective.ERROR_RATE].whole.seen.candidate.judged
            return seen == told and self.known() == stored

        eventually(read, lambda: f"{self.known()} of {told} answers are in the evidence", 40)
        return told - self.known()


@pytest.fixture(scope="module")
def running(
    operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGateway, FakeGateway, OperatorProcess]]:
    with FakeGateway("g1") as one, FakeGateway("g2") as two:
        folder, entries = tmp_path_factory.mktemp("operator"), f"{one.entry},{two.entry}"
        with OperatorProcess(operator_apiserver, folder, gateways=entries) as process:
            yield one, two, process


@pytest.fixture
def scene(
    operator_apiserver: ApiServer,
    running: tuple[FakeGateway, FakeGateway, OperatorProcess],
    request: pytest.FixtureRequest,
) -> Iterator[JudgedScene]:
    cluster, (one, two, process) = Cluster.of(operator_apiserver, request), running
    scene = JudgedScene(cluster, one, process, weights=[], other=two)
    scene.begin(JUDGED_SLOW)
    yield scene
    for gateway in (one, two):
        gateway.judge(True)
    cluster.delete("ModelDeployment", "m")


def told(scene: JudgedScene, reason: str) -> list[str]:
    found = objects.listed(scene.cluster.api, "events.k8s.io/v1", "Event", scene.cluster.namespace)
    return [str(e["note"]) for e in found if e["reason"] == reason]


def test_a_good_candidate_takes_over_and_every_step_says_for_what(scene: JudgedScene) -> None:
    scene.apply({"v1": 0, "v2": 100}, JUDGED_QUICK)
    scene.until(lambda r: r.get("stable") == "v2", "v2 takes over", within=60)
    climbed = [w.get("v2", 0) for w in scene.weights]
    assert [w for n, w in enumerate(climbed) if w and w != climbed[n - 1]] == [5, 50, 100]
    steps = eventually(lambda: told(scene, "StepCompleted"), "an event of each step")
    assert all("errorRate: " in words and "is tolerated" in words for words in steps)


def test_a_bad_candidate_is_rolled_back_long_before_its_hold_is_over(scene: JudgedScene) -> None:
    scene.bad["v2"] = 0.3
    scene.apply({"v1": 0, "v2": 100}, JUDGED_SLOW)
    rollout = scene.until(scene.rejects("v2"), "v2 is rejected", within=30)
    (verdict,) = rollout["verdicts"]
    assert verdict["reason"] == "AnalysisFailed"
    assert "of the answers of v2 were bad" in verdict["evidence"]
    assert max(w.get("v2", 0) for w in scene.weights) == 5
    assert eventually(lambda: told(scene, "RolledBack"), "an event")
    scene.until(lambda _: scene.weights[-1].get("v2", 0) == 0, "no more traffic")


def test_an_outage_of_the_metrics_holds_and_neither_rejects_nor_promotes(scene: JudgedScene) -> None:
    scene.bad["v2"] = 0.0
    assert scene.other is not None
    scene.other.judge(False)
    analysis: Object = {**ANALYSIS, "onInconclusive": "Rollback", "inconclusiveDeadline": "1s"}
    rollout = {**QUICK, "analysis": analysis}
    scene.apply({"v1": 0, "v2": 100}, rollout)
    scene.until(lambda r: r.get("phase") == "Inconclusive", "the hold is over")
    assert scene.cluster.condition("ModelDeployment", "m", "Ready") == ("False", "MetricsUnavailable")
    before = scene.counted("v2")
    scene.until(lambda _: scene.counted("v2") > before + 1000, "many more answers, and more than the deadline")
    held = scene.follow()
    assert (held["weight"], held["phase"], held.get("verdicts")) == (5, "Inconclusive", None)
    scene.other.judge(True)
    scene.until(lambda r: r.get("weight") == 50, "and goes on when they are told again")


def test_no_answer_is_lost_or_counted_twice_though_the_operator_is_killed_and_the_status_wiped(
    scene: JudgedScene,
) -> None:
    scene.apply({"v1": 0, "v2": 100}, JUDGED_SLOW)
    scene.until(lambda _: scene.known() > 200, "evidence")
    before = scene.missed("v2")
    scene.asked = True
    for _ in range(20):
        scene.follow()
    scene.operator.kill()
    for _ in range(20):
        scene.follow()
    scene.operator.start()
    scene.until(lambda _: scene.known() > 500, "it goes on", within=60)
    eventually(scene.lose_status, "the status is lost, and nobody wrote meanwhile")
    scene.until(lambda r: r.get("weight") == 5, "at the first step again")
    assert scene.missed("v2") == before


def test_what_was_counted_while_no_operator_ran_rejects_a_bad_candidate(scene: JudgedScene) -> None:
    scene.apply({"v1": 0, "v2": 100}, JUDGED_SLOW)
    scene.until(lambda _: scene.known() > 50, "evidence")
    scene.operator.kill()
    scene.bad["v2"] = 0.3
    for _ in range(10):
        scene.follow()
    scene.asked = False
    scene.operator.start()
    scene.until(scene.rejects("v2"), "v2 is rejected", within=60)


def test_the_command_line_shows_the_evidence(scene: JudgedScene) -> None:
    scene.apply({"v1": 0, "v2": 100}, JUDGED_SLOW)
    scene.until(lambda _: scene.known() > 200, "evidence")
    code, text = answered(scene, "rollout", "status", "m")
    assert code == 0
    assert "Evidence" in text and "errorRate" in text and "v2" in text


def test_the_record_goes_with_the_analysis(scene: JudgedScene) -> None:
    eventually(lambda: scene.follow() is not None and scene.cluster.child("configmaps/m-evidence"), "the record")
    owners = (scene.cluster.child("configmaps/m-evidence") or {})["metadata"]["ownerReferences"]
    assert [o["kind"] for o in owners] == ["ModelDeployment"]
    scene.apply({"v1": 100}, SLOW)
    eventually(lambda: scene.cluster.child("configmaps/m-evidence") is None, "it is removed")
