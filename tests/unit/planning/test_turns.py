"""Which pod's engine begins anew for adapters: one at a time, and no pod that does not come keeps the others back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import BASE, T0, VOLUME, Situation, at, base_model, deployment, loaded, pinned, pod, revision, stamp
from tests.unit.planning.basemodels import applied_to
from tuneyard.api.conditions import find
from tuneyard.api.documents import AdapterReport, PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.pools import plan_of
from tuneyard.planning.turns import longest_turn, turns


def asking(name: str) -> PodObservation:
    """A pod that serves, and has files of an adapter for which its engine has to begin anew."""
    found = pod(name, reports={"v1": loaded("v1").model_copy(update={"state": "Loading"})})
    assert found.report is not None
    return replace(found, report=found.report.model_copy(update={"asks_for_turn": True}))


def hearing(name: str) -> PodObservation:
    """A pod whose engine has begun anew and runs, and has not answered with its adapter yet."""
    told = {"state": "Loading", "reason": Reason.LOADING}
    return pod(name, reports={"v1": loaded("v1").model_copy(update=told)})


def waiting(name: str) -> AdapterReport:
    """Of an adapter whose files lie ready while those of another come."""
    return loaded(name).model_copy(update={"state": "Loading", "reason": Reason.ENGINE_NOT_READY})


def pending(name: str) -> PodObservation:
    return pod(name, report=None, ready=False)


def before(*names: str) -> PoolPlan:
    return PoolPlan(pool=BASE, base_model=BASE, turns=list(names))


LONG = longest_turn(600)
"""Of a pool with the default drainTimeout."""
JUST = {"lost": stamp(-1)}
LONG_AGO = {"lost": stamp(-LONG / 60)}


@pytest.mark.parametrize(
    ("pods", "plan", "seen", "expected"),
    [
        ([pod("a"), pod("b")], None, {}, None),
        ([asking("a"), asking("b")], None, {}, ["a"]),
        ([asking("a"), asking("b")], before("b"), {}, ["b"]),
        ([pod("a"), asking("b")], before("a"), {}, ["b"]),
        ([asking("a")], None, {}, ["a"]),
        ([pod("a"), pod("b")], before("a"), {}, None),
        ([asking("b")], before("gone"), {}, ["b"]),
        # who has the turn keeps it until it serves, and for so long nobody else is away
        ([pod("lost", engine="Draining"), asking("b"), asking("c")], before("lost"), JUST, ["lost"]),
        ([pod("lost", engine="Starting"), asking("b"), asking("c")], before("lost"), JUST, ["lost"]),
        ([pod("lost", engine="Starting"), asking("b"), asking("c")], before("lost"), LONG_AGO, ["b"]),
        # gateways send it nothing for an adapter that has not answered yet: whoever else has it is not taken away
        ([hearing("a"), asking("b")], before("a"), {}, ["a"]),
        ([hearing("a"), asking("b")], None, {}, []),
        # nor does one that waits for files: it serves all that it has
        ([pod("a", reports={"v1": waiting("v1")}), asking("b")], None, {}, ["b"]),
        ([hearing("a"), asking("b"), asking("c")], None, {}, ["b"]),
        ([replace(hearing("lost"), ready=False), asking("b"), asking("c")], before("lost"), JUST, ["lost"]),
        ([replace(hearing("lost"), ready=False), asking("b"), asking("c")], before("lost"), LONG_AGO, ["b"]),
        # a pod that was lost is waited for, not for ever
        ([pod("lost", engine="Starting"), asking("b"), asking("c")], None, JUST, []),
        ([pod("lost", engine="Starting"), asking("b"), asking("c")], None, LONG_AGO, ["b"]),
        # its report outlives a pod's node
        ([pod("lost", ready=False), asking("b"), asking("c")], None, JUST, []),
        ([pod("lost", ready=False), asking("b")], None, LONG_AGO, []),
        # a pod that never served keeps nobody waiting, unless nobody else serves
        ([pending("a"), asking("b"), asking("c")], None, {}, ["b"]),
        ([pod("a", engine="Starting"), asking("b"), asking("c")], None, {}, ["b"]),
        ([pod("a", engine="Starting"), asking("b")], None, {}, []),
        ([pending("a"), asking("b")], None, {}, []),
        # a new pod is ready only with its adapters, for which it needs its turn
        ([replace(asking("a"), ready=False), pod("b")], None, {}, ["a"]),
    ],
)
def test_one_pod_at_a_time_begins_anew(
    pods: list[PodObservation], plan: PoolPlan | None, seen: dict[str, str], expected: list[str] | None
) -> None:
    assert turns(pods, plan, seen, T0, LONG)[0] == expected


def test_a_lost_pod_has_the_plan_looked_at_again_when_nobody_waits_for_it_any_more() -> None:
    pods = [pod("lost", engine="Starting"), asking("b"), asking("c")]
    assert turns(pods, None, JUST, T0, LONG)[1] == [LONG - 60]
    assert turns(pods, None, LONG_AGO, T0, LONG)[1] == []


def test_a_pod_that_ends_its_answers_first_is_waited_for_as_long_as_it_may_take() -> None:
    pods = [pod("lost", engine="Draining", ready=False), asking("b"), asking("c")]
    after_16_minutes = {"lost": stamp(-16)}
    assert turns(pods, before("lost"), after_16_minutes, T0, longest_turn(1800))[0] == ["lost"]
    assert turns(pods, before("lost"), after_16_minutes, T0, longest_turn(60))[0] == ["b"]


def situation(*pods: PodObservation) -> Situation:
    """A new adapter on a pool of three pods of llama.cpp."""
    return Situation(
        bases=(base_model(serving=ServingSpec(engine="llamaCpp", replicas=3, artifact_volumes=[VOLUME])),),
        adapters=(pinned("v1"),),
        deployments=(deployment(revisions=[revision("v1", "v1")]),),
        pods=pods,
    )


def turn(found: Situation) -> list[str] | None:
    (config,) = [c for c in found.children if c.kind == "ConfigMap"]
    plan = plan_of(config)
    assert plan is not None
    return plan.turns


def test_a_plan_remembers_which_pods_served() -> None:
    calm = applied_to(situation(pod("a"), pod("b"), pod("c")))
    lost = replace(calm, pods=(pod("a", engine="Starting"), asking("b"), asking("c")))
    waiting = applied_to(lost)
    assert turn(waiting) == []
    assert (plan_basemodel(waiting.base_model()).requeue_after or LONG + 1) <= LONG
    assert turn(applied_to(replace(waiting, now=at(LONG / 60)))) == ["b"]
    assert turn(applied_to(situation(pending("a"), asking("b"), asking("c")))) == ["b"]


def test_the_adapters_status_says_whom_it_waits_for() -> None:
    def said(*pods: PodObservation) -> str:
        status = plan_loraadapter(applied_to(situation(*pods)).adapter("v1")).status
        assert isinstance(status, LoRAAdapterStatus)
        condition = find(status.conditions, "Loaded")
        assert condition is not None
        return condition.message or ""

    assert said(asking("a"), asking("b"), pod("c")) == (
        "0 of 3 pods have loaded it; engines begin anew for it one after the other"
    )
    assert "one after the other, while others serve; not serving: c" in said(
        asking("a"), asking("b"), pod("c", engine="Starting")
    )
    assert "one after the other" not in said(pod("a"), pod("b"), pod("c"))
