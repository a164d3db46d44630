"""Since when a revision is stable, and when what it serves was promoted: once, by whom, and again after a loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import Situation, adapter, at, base_model, deployment, pinned, pod, revision, stamp
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.lineage import Lineage
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.promotion import Promotion, promotion

REVISIONS = [revision("v1", "one"), revision("v2", "two")]


def chat(traffic: dict[str, int], name: str = "chat", **rollout: Any) -> ModelDeploymentResource:
    status = ModelDeploymentStatus(rollout=RolloutStatus(**rollout)) if rollout else None
    return deployment(name, revisions=REVISIONS, traffic=traffic, status=status, model_name=name)


def situation(known: ModelDeploymentResource, **fields: Any) -> Situation:
    whole = Situation(
        bases=(base_model(),),
        adapters=(pinned("one"), pinned("two")),
        deployments=(known,),
        pods=(pod("a", "one", "two"),),
    )
    return replace(whole, **fields)


def planned(world: Situation, minutes: float) -> Situation:
    """The situation after every object's status was written, at that minute."""
    world = replace(world, now=at(minutes))
    (known,) = world.deployments
    status = plan_modeldeployment(world.deployment()).status
    assert isinstance(status, ModelDeploymentStatus)
    world = replace(world, deployments=(known.model_copy(update={"status": status}),))
    statuses = {a.metadata.name: plan_loraadapter(world.adapter(a.metadata.name)).status for a in world.adapters}
    adapters = tuple(a.model_copy(update={"status": statuses[a.metadata.name]}) for a in world.adapters)
    return replace(world, adapters=adapters)


def edited(world: Situation, traffic: dict[str, int]) -> Situation:
    (known,) = world.deployments
    return replace(world, deployments=(known.model_copy(update={"spec": chat(traffic).spec}),))


def since(world: Situation) -> str | None:
    rollout = world.deployments[0].status.rollout
    return rollout.stable_since if rollout else None


def promoted(world: Situation) -> dict[str, tuple[str | None, str | None]]:
    return {a.metadata.name: (a.status.promoted_at, a.status.promoted_by) for a in world.adapters}


NEVER = (None, None)


def test_a_rollout_and_a_rollback_are_recorded_once():
    world = planned(situation(chat({"v1": 100})), 0)
    assert since(world) == stamp(0)
    assert promoted(world) == {"one": (stamp(0), "chat/v1"), "two": NEVER}
    world = planned(edited(world, {"v1": 90, "v2": 10}), 10)
    assert since(world) == stamp(0), "a canary beside it changes nothing"
    assert promoted(world) == {"one": (stamp(0), "chat/v1"), "two": NEVER}
    world = planned(edited(world, {"v2": 100}), 20)
    assert since(world) == stamp(20)
    assert promoted(world) == {"one": (stamp(0), "chat/v1"), "two": (stamp(20), "chat/v2")}
    world = planned(edited(world, {"v1": 100}), 30)
    assert since(world) == stamp(30), "stable again, since the rollback"
    assert promoted(world) == {"one": (stamp(0), "chat/v1"), "two": (stamp(20), "chat/v2")}
    assert planned(world, 99) == replace(world, now=at(99)), "nothing is written again"


def test_a_first_revision_that_never_had_all_traffic_is_not_promoted():
    world = planned(situation(chat({"v1": 90, "v2": 10})), 0)
    assert since(world) is None
    assert promoted(world) == {"one": NEVER, "two": NEVER}


def test_all_of_the_spec_is_not_all_of_the_traffic():
    world = planned(situation(chat({"v1": 100}), pods=()), 0)
    assert since(world) is None
    world = planned(replace(world, pods=(pod("a", "one", "two"),)), 5)
    assert since(world) == stamp(5)
    world = planned(replace(world, pods=()), 10)
    assert since(world) == stamp(5), "a lost pod changes nothing"


def test_a_name_that_is_taken_keeps_the_record():
    world = planned(situation(chat({"v1": 100})), 0)
    older = deployment("older", model_name="chat", created=-9)
    obs = replace(world, now=at(9)).deployment()
    status = plan_modeldeployment(replace(obs, claims=(*world.deployments, older))).status
    assert isinstance(status, ModelDeploymentStatus)
    assert status.rollout is not None
    assert status.rollout.model_copy(update={"contents": None}) == RolloutStatus(
        phase="Idle", stable="v1", stable_since=stamp(0)
    )


def test_either_lost_status_comes_back_from_the_other():
    world = planned(edited(planned(situation(chat({"v1": 100})), 0), {"v2": 100}), 20)
    whole = promoted(world)
    blank = tuple(a.model_copy(update={"status": LoRAAdapterStatus()}) for a in world.adapters)
    restored = planned(replace(world, adapters=blank), 60)
    assert promoted(restored) == {**whole, "one": NEVER}, "only of what is stable now something tells"
    (known,) = world.deployments
    stripped = (known.model_copy(update={"status": ModelDeploymentStatus()}),)
    again = planned(replace(world, deployments=stripped), 60)
    assert since(again) == stamp(20)
    assert promoted(again) == whole


def test_a_recreated_deployment_that_serves_another_is_not_given_its_date():
    world = planned(situation(chat({"v1": 100})), 0)
    other = planned(replace(world, deployments=(chat({"v2": 100}),)), 30)
    assert since(other) == stamp(30)


@pytest.mark.parametrize(
    ("deployments", "found"),
    [
        ([], None),
        ([chat({"v1": 100}, stable="v1")], None),
        ([chat({"v2": 100}, stable="v2", stable_since=stamp(1))], None),
        (
            [
                chat({"v1": 100}, "late", stable="v1", stable_since=stamp(9)),
                chat({"v1": 100}, "early", stable="v1", stable_since=stamp(1)),
            ],
            Promotion(stamp(1), "early/v1"),
        ),
        ([chat({"v1": 100}, stable="gone", stable_since=stamp(1))], None),
    ],
)
def test_who_promotes_an_adapter(deployments, found):
    assert promotion(pinned("one"), deployments) == found


def test_a_deployment_of_another_namespace_promotes_nobody():
    foreign = chat({"v1": 100}, stable="v1", stable_since=stamp(1))
    elsewhere = foreign.model_copy(update={"metadata": foreign.metadata.model_copy(update={"namespace": "other"})})
    assert promotion(pinned("one"), [elsewhere]) is None
    assert promotion(pinned("one"), [elsewhere, foreign]) == Promotion(stamp(1), "chat/v1")


def test_what_is_recorded_is_kept_whatever_is_observed():
    known = LoRAAdapterStatus(promoted_at=stamp(5), promoted_by="old/v1")
    earlier = chat({"v1": 100}, stable="v1", stable_since=stamp(1))
    assert promotion(adapter("one", status=known), [earlier]) == Promotion(stamp(5), "old/v1")


# a base that is served itself


def plain(traffic: dict[str, int], **rollout: Any) -> ModelDeploymentResource:
    """A merged fine-tune beside an adapter of its base."""
    status = ModelDeploymentStatus(rollout=RolloutStatus(**rollout)) if rollout else None
    return deployment("chat", revisions=[revision("v1", "one"), revision("merged")], traffic=traffic, status=status)


def planned_base(world: Situation, minutes: float) -> Situation:
    world = planned(world, minutes)
    status = plan_basemodel(world.base_model()).status
    assert isinstance(status, BaseModelStatus)
    return replace(world, bases=tuple(b.model_copy(update={"status": status}) for b in world.bases))


def base_promoted(world: Situation) -> tuple[str | None, str | None]:
    return world.bases[0].status.promoted_at, world.bases[0].status.promoted_by


def test_a_base_that_is_served_itself_is_promoted_and_its_adapters_base_is_not():
    world = planned_base(situation(plain({"v1": 100})), 0)
    assert (base_promoted(world), promoted(world)["one"]) == (NEVER, (stamp(0), "chat/v1"))
    world = planned_base(replace(world, deployments=(_given(world, {"merged": 100}),)), 10)
    assert base_promoted(world) == (stamp(10), "chat/merged")
    world = planned_base(replace(world, deployments=(_given(world, {"v1": 100}),)), 20)
    assert base_promoted(world) == (stamp(10), "chat/merged"), "what was, stays"
    assert planned_base(world, 99) == replace(world, now=at(99)), "nothing is written again"


def test_a_base_and_its_deployment_restore_each_other():
    world = planned_base(situation(plain({"merged": 100})), 0)
    blank = tuple(b.model_copy(update={"status": BaseModelStatus()}) for b in world.bases)
    assert base_promoted(planned_base(replace(world, bases=blank), 60)) == (stamp(0), "chat/merged")
    stripped = tuple(d.model_copy(update={"status": ModelDeploymentStatus()}) for d in world.deployments)
    assert since(planned_base(replace(world, deployments=stripped), 60)) == stamp(0)


def _given(world: Situation, traffic: dict[str, int]) -> ModelDeploymentResource:
    return world.deployments[0].model_copy(update={"spec": plain(traffic).spec})


# the parent


def child(parent: str) -> LoRAAdapterResource:
    made = pinned("two")
    return made.model_copy(update={"spec": made.spec.model_copy(update={"lineage": Lineage(parent=parent)})})


def warning(world: Situation) -> list[tuple[str, str, str]]:
    status = plan_loraadapter(world.adapter("two")).status
    assert isinstance(status, LoRAAdapterStatus)
    assert [c.status for c in status.conditions if c.type == "Ready"] == ["True"], "it hinders nothing"
    return [(c.status, c.reason, c.message) for c in status.conditions if c.type == "TrainedFromBase"]


WARNED = (
    "False",
    "ParentIsAdapter",
    "it was trained from LoRAAdapter one; train again from the base model, with the data of both",
)


@pytest.mark.parametrize(
    ("parent", "warnings"),
    [("one", [WARNED]), ("another", []), ("meta-llama/Llama-3.1-8B-Instruct", []), ("../one", [])],
)
def test_a_parent_that_is_an_adapter_is_warned_of(parent, warnings):
    assert warning(situation(chat({"v2": 100}), adapters=(pinned("one"), child(parent)))) == warnings


def test_the_warning_stays_when_the_parent_is_deleted():
    world = planned(situation(chat({"v2": 100}), adapters=(pinned("one"), child("one"))), 0)
    kept = tuple(a for a in world.adapters if a.metadata.name == "two")
    assert warning(replace(world, adapters=kept)) == [WARNED]
