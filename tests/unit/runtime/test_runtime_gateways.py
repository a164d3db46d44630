"""What the operator hears from gateways: who counts, who is unreachable, and who is woken by what."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.contract.fakegateway import MASTER, FakeGateway
from tests.contract.operator_process import eventually
from tuneyard.api import names
from tuneyard.api.analysis import Slo
from tuneyard.api.documents import AppliedDeployment, DeploymentDemand, EvidenceReport
from tuneyard.planning.answers import Heard
from tuneyard.planning.demand import DemandView
from tuneyard.planning.evidence import Tally
from tuneyard.runtime.gateways import Gateways, begun_to_wait, changed_deployments, gateway_addresses, other_answers
from tuneyard.runtime.keys import BASE_MODEL, MODEL_DEPLOYMENT, Key

pytestmark = pytest.mark.lasting


def pod(name: str, address: str | None, ready: str = "True", **metadata: Any) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready}], **({"podIP": address} if address else {})}
    return {"metadata": {"name": name, **metadata}, "status": status}


def test_gateways_that_take_traffic_are_asked() -> None:
    pods = [
        pod("a", "10.0.0.1"),
        pod("b", "fd00::1"),
        pod("starting", "10.0.0.2", ready="False"),
        pod("leaving", "10.0.0.3", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("pending", None),
    ]
    assert gateway_addresses(pods) == {"a": "10.0.0.1:9443", "b": "[fd00::1]:9443"}


def test_only_deployments_of_which_something_else_is_said_are_woken() -> None:
    def said(weight: int) -> AppliedDeployment:
        return AppliedDeployment(uid="u", generation=1, weights={"v1": weight})

    before = {"a/same": said(1), "a/changed": said(1), "a/gone": said(1)}
    now = {"a/same": said(1), "a/changed": said(2), "a/new": said(1), "nonsense": said(1)}
    assert changed_deployments(before, now) == [Key(MODEL_DEPLOYMENT, "a", n) for n in ("changed", "gone", "new")]


class Woken:
    def __init__(self) -> None:
        self.all = 0
        self.keys: set[Key] = set()
        self._lock = threading.Lock()

    def __call__(self, keys: list[Key] | None) -> None:
        with self._lock:
            if keys is None:
                self.all += 1
            else:
                self.keys.update(keys)


def stored(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}", "generation": 1}}


def test_reports_arrive_at_once_and_wake_whom_they_concern() -> None:
    woken = Woken()
    with FakeGateway("one") as gateway:
        gateways = Gateways(names.observe_token(MASTER), woken)
        gateways.follow(dict([gateway.entry.split("=")]))
        try:
            eventually(gateways.answered, "the first answer", 5)
            gateway.applied(stored("m"), {"v1": 100})
            eventually(lambda: woken.keys == {Key(MODEL_DEPLOYMENT, "team", "m")}, "the deployment is woken", 5)
            view = gateways.view()
            assert (view.expected, view.unreachable) == (1, ())
            assert view.applied[0].deployments["team/m"].weights == {"v1": 100}
            assert gateway.unauthorized == 0
        finally:
            gateways.stop()


def test_a_gateway_that_does_not_answer_is_unreachable_and_its_word_no_longer_counts() -> None:
    woken = Woken()
    with FakeGateway("one") as gateway:
        gateways = Gateways(names.observe_token(MASTER), woken)
        gateways.follow({**dict([gateway.entry.split("=")]), "gone": "127.0.0.1:1"})
        try:
            eventually(gateways.answered, "an answer or a failure of each", 5)
            assert gateways.view().unreachable == ("gone",)
            assert [r.gateway for r in gateways.view().applied] == ["one"]
            assert gateways.view().expected == 2
            before = woken.all
            gateways.follow(dict([gateway.entry.split("=")]))
            assert gateways.view().unreachable == ()
            assert woken.all == before + 1
        finally:
            gateways.stop()


def test_a_wrong_token_is_not_taken_for_an_answer() -> None:
    with FakeGateway("one") as gateway:
        gateways = Gateways("guessed", Woken())
        gateways.follow(dict([gateway.entry.split("=")]))
        try:
            eventually(gateways.answered, "a refusal", 5)
            assert gateways.view().unreachable == ("one",)
        finally:
            gateways.stop()


def test_a_deployment_is_woken_when_requests_begin_to_wait_for_it() -> None:
    def waiting(number: int) -> DeploymentDemand:
        return DeploymentDemand(waiting=number)

    before = {"a/begins": waiting(0), "a/goes-on": waiting(1), "a/ends": waiting(2)}
    now = {"a/begins": waiting(1), "a/goes-on": waiting(5), "a/ends": waiting(0), "a/new": waiting(1)}
    assert begun_to_wait(before, now) == [Key(MODEL_DEPLOYMENT, "a", n) for n in ("begins", "new")]


def test_what_is_asked_arrives_at_once_and_wakes_only_whom_it_concerns() -> None:
    woken, base = Woken(), Key(BASE_MODEL, "team", "base")
    seen: list[DemandView] = []

    def demanded(view: DemandView) -> list[Key]:
        seen.append(view)
        return [base] if view.in_flight("team", "m", "v1") > 10 else []

    with FakeGateway("one") as gateway:
        gateways = Gateways(names.observe_token(MASTER), woken, demanded)
        gateways.follow(dict([gateway.entry.split("=")]))
        try:
            eventually(lambda: gateways.answered() and gateways.view().demand.known, "the first answer", 5)
            gateway.demanded("team/m", v1=3.0)
            eventually(lambda: seen[-1].in_flight("team", "m", "v1") == 3.0, "it is heard", 5)
            assert woken.keys == set()
            gateway.demanded("team/m", v1=30.0)
            eventually(lambda: woken.keys == {base}, "the base is woken", 5)
            gateway.demanded("team/cold", waiting=1)
            eventually(lambda: Key(MODEL_DEPLOYMENT, "team", "cold") in woken.keys, "the deployment is woken", 5)
            assert gateways.view().demand.waiting("team", "cold") == 1
        finally:
            gateways.stop()


def test_while_a_gateway_does_not_say_what_is_asked_of_it_nothing_is_known_of_idleness() -> None:
    with FakeGateway("one") as gateway:
        gateway.demanded("team/m", idle=60, v1=2.0)
        gateways = Gateways(names.observe_token(MASTER), Woken())
        gateways.follow({**dict([gateway.entry.split("=")]), "gone": "127.0.0.1:1"})
        try:
            eventually(gateways.answered, "an answer or a failure of each", 5)
            demand = gateways.view().demand
            assert (demand.known, demand.expected) == (False, 2)
            assert demand.idle_seconds("team", "m") is None
            assert demand.in_flight("team", "m", "v1") == 2.0
            gateways.follow(dict([gateway.entry.split("=")]))
            assert gateways.view().demand.idle_seconds("team", "m") == 60
        finally:
            gateways.stop()


def judging(name: str) -> dict[str, Any]:
    return {**stored(name), "spec": {"rollout": {"analysis": {"slo": {"errorRate": "1%"}}}}}


def test_what_became_of_answers_arrives_at_once_and_tells_whom_it_concerns() -> None:
    told: list[Key] = []
    key = Key(MODEL_DEPLOYMENT, "team", "m")
    slo = Slo(error_rate="1%")
    with FakeGateway("one") as gateway:
        gateways = Gateways(names.observe_token(MASTER), Woken(), answered_by=told.extend)
        gateways.follow(dict([gateway.entry.split("=")]))
        try:
            eventually(gateways.answered, "the first answer", 5)
            gateway.judges(judging("m"))
            gateway.counted("team/m", "v1", 10, 2)
            eventually(lambda: gateways.view().answers.of(("team", "m"), "uid-m", slo, {}).readings, "it is heard", 5)
            eventually(
                lambda: [t.judged for r in gateways.view().answers.heard for t in counts(r)] == [10], "its counts", 5
            )
            assert set(told) == {key}
            found = gateways.view().answers.of(("team", "m"), "uid-m", slo, {})
            assert (found.expected, found.answered) == (1, 1)
            assert abs(time.time() - gateway_age(gateway) - found.readings[0].started) < 2
            gateway.judge(False)
            eventually(
                lambda: not gateways.view().answers.of(("team", "m"), "uid-m", slo, {}).answered, "not judging", 5
            )
            for uid, other in (("another", slo), ("uid-m", Slo(error_rate="2%"))):
                assert gateways.view().answers.of(("team", "m"), uid, other, {}).readings == ()
        finally:
            gateways.stop()


def counts(heard: Heard) -> list[Tally]:
    return [
        Tally(*numbers)
        for told in heard.report.deployments.values()
        for objectives in told.counts.values()
        for lengths in objectives.values()
        for numbers in lengths.values()
    ]


def gateway_age(gateway: FakeGateway) -> float:
    return time.monotonic() - gateway.began


def test_of_two_reports_those_are_told_of_which_they_tell_other_answers() -> None:
    def report(**fields: Any) -> EvidenceReport:
        counts = {"v1": {"errorRate": {0: (1, 0, 0, 0)}}}
        same, other = ({"uid": "u", "slo": {"errorRate": "1%"}, "counts": c} for c in (counts, {}))
        told = {"a/same": same, "a/changes": other if fields.pop("changes", False) else same}
        found = {"gateway": "g", "process": "g-1", "ageSeconds": 1, "version": 1, "deployments": told, **fields}
        return EvidenceReport.from_dict(found)

    both = [Key(MODEL_DEPLOYMENT, "a", n) for n in ("changes", "same")]
    assert other_answers(report(), report(ageSeconds=9)) == []
    assert other_answers(report(), report(changes=True)) == both[:1]
    assert other_answers(report(), report(judging=False)) == both
    assert other_answers(report(), report(process="g-2")) == both
    assert other_answers(None, report()) == []
