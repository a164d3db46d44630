"""Rollouts with checks of Prometheus, with a running operator, a real API server and a small server for the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import Cluster, Object, OperatorProcess, deployment_spec, operating
from tests.contract.test_operator_analysis import ANALYSIS, JudgedScene
from tests.contract.test_operator_rollout import QUICK, SLOW, answered
from tests.fakes.prometheus import FakePrometheus, number, refused
from tuneyard.systems.kube.client import ApiError

pytestmark = pytest.mark.apiserver

TOKEN = "a-token-that-stands-nowhere"
QUERY = 'drift{namespace="$namespace",deployment="$deployment",revision="$candidate"}'
CHECK = {"name": "drift", "query": QUERY, "max": 0.2, "failures": 2, "interval": "5s"}
CHECKED = {**ANALYSIS, "prometheus": [CHECK]}
CHECKED_QUICK, CHECKED_SLOW = {**QUICK, "analysis": CHECKED}, {**SLOW, "analysis": CHECKED}


def slow(**check: int) -> Object:
    """A rollout that stays at its first step, with the check changed."""
    return {**SLOW, "analysis": {**ANALYSIS, "prometheus": [{**CHECK, **check}]}}


@pytest.fixture(scope="module")
def prometheus() -> Iterator[FakePrometheus]:
    with FakePrometheus() as server:
        server.token = TOKEN
        yield server


@pytest.fixture(scope="module")
def running(
    operator_apiserver: ApiServer, prometheus: FakePrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGateway, OperatorProcess]]:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "token").write_text(TOKEN)
    settings: Object = {"prometheus": {"url": prometheus.url, "tokenFile": str(folder / "token")}}
    with operating(operator_apiserver, folder, settings=settings) as running:
        yield running


@pytest.fixture
def scene(
    operator_apiserver: ApiServer,
    running: tuple[FakeGateway, OperatorProcess],
    prometheus: FakePrometheus,
    request: pytest.FixtureRequest,
) -> Iterator[JudgedScene]:
    prometheus.asked.clear()
    cluster = Cluster.of(operator_apiserver, request)
    scene = JudgedScene(cluster, *running, weights=[])
    scene.begin(CHECKED_SLOW)
    yield scene
    cluster.delete("ModelDeployment", "m")


def drift(rollout: Object) -> Object:
    found: list[Object] = (rollout.get("analysis") or {}).get("checks") or [{}]
    return found[0]


def test_within_bounds_it_takes_over_and_the_query_has_its_names(
    scene: JudgedScene, prometheus: FakePrometheus
) -> None:
    prometheus.otherwise = number(0.125)
    scene.apply({"v1": 0, "v2": 100}, CHECKED_QUICK)
    rollout = scene.until(lambda r: drift(r).get("value"), "a number")
    assert drift(rollout) == {
        "name": "drift",
        "value": "0.125",
        "limit": "max 0.2",
        "failures": 0,
        "message": "0.125 is within max 0.2",
    }
    scene.until(lambda r: r.get("stable") == "v2", "v2 takes over", within=60)
    sent = QUERY.replace("$namespace", scene.cluster.namespace).replace("$deployment", "m").replace("$candidate", "v2")
    assert set(prometheus.asked) == {sent}
    assert next(w for w in scene.weights if w.get("v2")) == {"v1": 95, "v2": 5}


def test_out_of_bounds_so_often_in_a_row_rolls_back_and_says_so(scene: JudgedScene, prometheus: FakePrometheus) -> None:
    prometheus.otherwise = number(0.25)
    scene.apply({"v1": 0, "v2": 100}, slow(failures=3))
    rollout = scene.until(lambda r: drift(r).get("failures"), "it is told")
    assert re.fullmatch("0.25 is above max 0.2, [12] of 3 times in a row", drift(rollout)["message"])
    rollout = scene.until(scene.rejects("v2"), "v2 is rejected", within=30)
    (verdict,) = rollout["verdicts"]
    assert verdict["reason"] == "AnalysisFailed"
    assert verdict["evidence"] == "check drift: 0.25 is above max 0.2, 3 times in a row"
    asked = len(prometheus.asked)
    scene.until(lambda _: scene.weights[-1].get("v2", 0) == 0, "no more traffic")
    assert len(prometheus.asked) == asked == 4, "what was asked first is of before the end of warm-up"


def test_a_row_goes_on_after_the_operator_s_end_and_nothing_counts_twice(
    scene: JudgedScene, prometheus: FakePrometheus
) -> None:
    prometheus.otherwise = number(0.25)
    scene.apply({"v1": 0, "v2": 100}, slow(failures=4))
    scene.until(lambda r: drift(r).get("failures"), "a row has begun")
    scene.operator.kill()
    before = len(prometheus.asked)
    scene.operator.start()
    rollout = scene.until(scene.rejects("v2"), "v2 is rejected", within=60)
    assert rollout["verdicts"][0]["evidence"] == "check drift: 0.25 is above max 0.2, 4 times in a row"
    assert before < 4 <= len(prometheus.asked)


def test_an_outage_holds_and_neither_rejects_nor_promotes(scene: JudgedScene, prometheus: FakePrometheus) -> None:
    prometheus.otherwise = refused(503, "unavailable", "words of the server")
    analysis: Object = {**CHECKED, "onInconclusive": "Rollback", "inconclusiveDeadline": "1s"}
    scene.apply({"v1": 0, "v2": 100}, {**QUICK, "analysis": analysis})
    scene.until(lambda r: r.get("phase") == "Inconclusive", "the hold is over", within=40)
    scene.until(lambda r: "status 503" in r["analysis"]["sentence"], "warm-up is over", within=40)
    asked = len(prometheus.asked)
    scene.until(lambda _: len(prometheus.asked) >= asked + 1, "it is asked again and again", within=40)
    held = scene.follow()
    assert (held["weight"], held["phase"], held.get("verdicts")) == (5, "Inconclusive", None)
    assert scene.cluster.condition("ModelDeployment", "m", "Ready") == ("False", "MetricsUnavailable")
    assert "HTTP status 503 (unavailable)" in held["analysis"]["sentence"]
    code, text = answered(scene, "rollout", "status", "m")
    assert code == 0
    assert "Checks of Prometheus" in text and "max 0.2" in text
    prometheus.otherwise = number(0.1)
    scene.until(lambda r: r.get("weight") == 50, "and goes on when there is a number", within=40)
    assert TOKEN not in scene.operator.said() and "words of the server" not in scene.operator.said()


def test_the_api_server_refuses_what_makes_no_sense(operator_apiserver: ApiServer) -> None:
    cluster = Cluster(operator_apiserver, "checks-refused")

    def apply(*checks: Object, slo: Object | None = None) -> None:
        analysis: Object = {"slo": {"errorRate": "1%"} if slo is None else slo, "prometheus": list(checks)}
        spec = deployment_spec("base", {"v1": 100}, {"v1": "one"})
        cluster.apply("ModelDeployment", "m", {**spec, "rollout": {**SLOW, "analysis": analysis}})

    refusals: list[tuple[Object, str]] = [
        ({"max": None}, "needs a limit: set max or min"),
        ({"min": 0.3}, "min of a check of analysis.prometheus must not be above its max"),
        ({"interval": "4s"}, "must be 5s to 1h"),
        ({"interval": "61m"}, "must be 5s to 1h"),
        ({"failures": 0}, "failures"),
        ({"query": ""}, "query"),
        ({"name": "A"}, "name"),
    ]
    for change, words in refusals:
        with pytest.raises(ApiError, match=words):
            apply({k: v for k, v in {**CHECK, **change}.items() if v is not None})
    with pytest.raises(ApiError, match="comes beside objectives"):
        apply(CHECK, slo={})
    with pytest.raises(ApiError, match="must have at most 8 items"):
        apply(*({**CHECK, "name": f"check-{n}"} for n in range(9)))
    apply(*({**CHECK, "name": f"check-{n}"} for n in range(8)))
    apply({**CHECK, "min": -1, "max": 1})
