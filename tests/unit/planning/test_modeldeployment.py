"""The plan of a ModelDeployment: what is served, whether every gateway does, and in words why it is not the spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    BASE,
    NAMESPACE,
    VOLUME,
    Situation,
    adapter,
    applied,
    at,
    base_model,
    deployment,
    failed,
    pinned,
    pod,
    revision,
    stamp,
)
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelStatus, PoolStatus
from tuneyard.api.conditions import Condition
from tuneyard.api.documents import AdapterReport, AppliedReport
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.contents import hash_of
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Event, ObjectReference, Plan

ABOUT = ObjectReference(names.API_VERSION, "ModelDeployment", NAMESPACE, "chat", "uid-chat")
REVISIONS = [revision("v1", "v1"), revision("v2", "v2")]
CONTENTS = {r.name: hash_of(r, base_model(), pinned(r.name), None) for r in REVISIONS}
CANARY = {"v1": 90, "v2": 10}


def chat(traffic: dict[str, int] | None = None, **fields: object) -> ModelDeploymentResource:
    return deployment(revisions=REVISIONS, traffic=traffic or CANARY, **fields)  # type: ignore[arg-type]


def both(known: ModelDeploymentResource, weights: dict[str, int]) -> tuple[AppliedReport, ...]:
    return applied("g1", known, weights), applied("g2", known, weights)


def started(known: ModelDeploymentResource | None = None, **fields: object) -> Situation:
    """Two adapters on two pods, a canary at 10, and gateways that serve just that."""
    known = known or chat()
    weights = {t.revision: t.weight for t in known.spec.traffic}
    situation = Situation(
        bases=(base_model(),),
        adapters=(pinned("v1"), pinned("v2")),
        deployments=(known,),
        pods=(pod("a", "v1", "v2"), pod("b", "v1", "v2")),
        applied=both(known, {"v1": weights.get("v1", 0), "v2": weights.get("v2", 0)}),
    )
    return replace(situation, **fields)  # type: ignore[arg-type]


def planned(situation: Situation) -> tuple[Plan, ModelDeploymentStatus]:
    plan = plan_modeldeployment(situation.deployment())
    assert plan.actions == ()
    assert isinstance(plan.status, ModelDeploymentStatus)
    return plan, plan.status


def conditions(status: ModelDeploymentStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


def traffic(status: ModelDeploymentStatus) -> dict[str, tuple[int, int, bool]]:
    return {t.revision: (t.spec_weight, t.weight, t.verified) for t in status.traffic}


def withheld(status: ModelDeploymentStatus, name: str) -> str:
    return next(t.withheld or "" for t in status.traffic if t.revision == name)


def after(situation: Situation, **edits: object) -> Situation:
    """The situation with the planned status stored, and then with another spec or other surroundings."""
    _, status = planned(situation)
    (known,) = situation.deployments
    return replace(situation, deployments=(known.model_copy(update={"status": status}),), **edits)  # type: ignore[arg-type]


def edited(situation: Situation, weights: dict[str, int], **edits: object) -> Situation:
    (known,) = situation.deployments
    spec = chat(weights).spec
    return replace(situation, deployments=(known.model_copy(update={"spec": spec}),), **edits)  # type: ignore[arg-type]


GOOD = {
    "Ready": ("True", "Ready"),
    "Accepted": ("True", "Accepted"),
    "Available": ("True", "Available"),
    "TrafficApplied": ("True", "Applied"),
}


def test_a_deployment_that_is_gone_or_going_has_no_plan():
    assert plan_modeldeployment(Situation().deployment()) == Plan()
    assert plan_modeldeployment(started(chat(deletion_timestamp=stamp(0))).deployment()) == Plan()


def test_everything_about_a_canary_that_is_served():
    plan, status = planned(started())
    assert conditions(status) == GOOD
    assert (status.model_name, status.url, status.reason) == (
        "chat",
        "http://tuneyard-gateway.tuneyard-system.svc/v1",
        None,
    )
    assert traffic(status) == {"v1": (90, 90, True), "v2": (10, 10, True)}
    assert [t.ready_endpoints for t in status.traffic] == [2, 2]
    assert status.rollout is not None
    assert status.rollout.to_dict() == {
        "phase": "Progressing",
        "stable": "v1",
        "candidate": "v2",
        "weight": 10,
        "target": 10,
        "contents": CONTENTS,
    }
    assert plan.events == (Event("Normal", Reason.WEIGHT_CHANGED, "v1 0 → 90 %, v2 0 → 10 %", ABOUT),)
    again = plan_modeldeployment(after(started(), now=at(5)).deployment())
    assert again == Plan((), status, (), None)


def test_before_anything_is_ready_the_rollout_is_idle_and_names_nobody_stable():
    plan, status = planned(started(pods=()))
    assert status.rollout is not None
    assert status.rollout.to_dict() == {"phase": "Idle"}
    assert traffic(status) == {"v1": (90, 0, False), "v2": (10, 0, False)}
    assert conditions(status)["Available"] == ("False", "Starting")
    assert conditions(status)["Reconciling"] == ("True", "Starting")
    assert (status.reason, plan.events) == ("Starting", ())


def test_a_revision_that_was_never_ready_is_not_remembered_as_stable():
    listed = [revision("v1", "v1"), revision("missing", "missing")]
    known = deployment(revisions=listed, traffic={"missing": 100})
    _, status = planned(started(known))
    assert status.rollout is not None
    assert (status.rollout.phase, status.rollout.stable) == ("Idle", None)


# rollback, promotion


def test_an_edit_moves_the_weights_and_is_applied_when_every_gateway_says_so():
    situation = edited(after(started()), {"v1": 50, "v2": 50})
    plan, status = planned(situation)
    assert traffic(status) == {"v1": (50, 50, False), "v2": (50, 50, False)}
    assert conditions(status)["TrafficApplied"] == ("False", "Applying")
    assert conditions(status)["Reconciling"] == ("True", "Applying")
    assert [e.message for e in plan.events] == ["v1 90 → 50 %, v2 10 → 50 %"]
    (known,) = situation.deployments
    one = replace(situation, applied=(applied("g1", known, {"v1": 50, "v2": 50}), applied("g2", known, CANARY)))
    assert conditions(planned(one)[1])["TrafficApplied"] == ("False", "Applying")
    _, done = planned(after(situation, applied=both(known, {"v1": 50, "v2": 50})))
    assert conditions(done) == GOOD


def test_all_for_the_candidate_promotes_it():
    plan, status = planned(edited(after(started()), {"v2": 100}))
    assert status.rollout is not None
    known = {"contents": {"v2": CONTENTS["v2"]}}
    assert status.rollout.to_dict() == {"phase": "Completed", "stable": "v2", "stableSince": stamp(0), **known}
    assert [(e.reason, e.message) for e in plan.events] == [
        (Reason.WEIGHT_CHANGED, "v1 90 → 0 %, v2 10 → 100 %"),
        (Reason.PROMOTED, "v2 serves all traffic and is stable, after v1"),
    ]


def test_a_rollback_is_an_edit_and_tells_no_promotion():
    plan, status = planned(edited(after(started()), {"v1": 100}))
    assert status.rollout is not None
    known = {"contents": {"v1": CONTENTS["v1"]}}
    assert status.rollout.to_dict() == {"phase": "Completed", "stable": "v1", "stableSince": stamp(0), **known}
    assert [e.reason for e in plan.events] == [Reason.WEIGHT_CHANGED]


def test_a_revision_that_leaves_the_list_is_told_down_to_nothing():
    situation = after(started())
    alone = deployment(revisions=[revision("v1", "v1")], status=situation.deployments[0].status)
    plan, _ = planned(replace(situation, deployments=(alone,)))
    assert [e.message for e in plan.events] == ["v1 90 → 100 %, v2 10 → 0 %"]


# a revision that no pod serves


def test_every_pod_of_a_candidate_gone_gives_its_weight_to_stable_and_back():
    lost = (pod("a", "v1"), pod("b", "v1"))
    situation = after(started(), pods=lost)
    plan, status = planned(situation)
    assert traffic(status) == {"v1": (90, 100, False), "v2": (10, 0, False)}
    assert [e.message for e in plan.events] == ["v1 90 → 100 %, v2 10 → 0 %"]
    assert status.rollout is not None
    assert (status.rollout.weight, status.rollout.target) == (0, 10)
    assert conditions(status)["Available"] == ("True", "Available")
    assert conditions(status)["Ready"][0] == "False"
    _, back = planned(after(situation, pods=started().pods))
    assert traffic(back)["v2"][1] == 10


def test_a_candidate_does_not_inherit_what_a_broken_stable_leaves():
    _, status = planned(after(started(), pods=(pod("a", "v2"),)))
    assert traffic(status) == {"v1": (90, 0, False), "v2": (10, 10, True)}
    assert conditions(status)["Available"] == ("False", "StableNotReady")
    told = next(c for c in status.conditions if c.type == "Available")
    assert "90 % of the requests are answered by nobody: stable revision v1 has no pod" in told.message


def test_manual_mode_sets_gateways_no_ceiling_but_the_spec():
    _, status = planned(started())
    assert status.rollout is not None
    assert status.rollout.allowed is None


SICK = Problem(Reason.UNSCHEDULABLE, "0/1 nodes: gpu")
CAUSES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"pods": (pod("a", "v1", reports={"v2": failed("RankTooHigh", "rank 64, the pool allows 16")}),)},
        "RankTooHigh",
        "pod a: rank 64",
    ),
    ({"pods": (pod("a", "v1", reports={"v2": AdapterReport(state="Loading")}),)}, "Loading", "loading v2"),
    ({"pods": (pod("a", "v1", reports={"v2": failed("Odd", "x")}),)}, "LoadRefused", "pod a: Odd: x"),
    ({"adapters": (pinned("v1"),)}, "AdapterNotFound", "create it in this namespace"),
    ({"adapters": (pinned("v1"), pinned("v2", base="other"))}, "BaseModelMismatch", "was trained for BaseModel other"),
    (
        {"adapters": (pinned("v1"), pinned("v2", volume="elsewhere")), "pods": (pod("a", "v1"),)},
        "VolumeNotDeclared",
        "add it to serving.artifactVolumes",
    ),
]


@pytest.mark.parametrize(("fields", "reason", "words"), CAUSES)
def test_a_candidate_is_withheld_with_reason_and_remedy_while_others_serve(fields, reason, words):
    _, status = planned(started(**fields))
    assert traffic(status)["v1"][1] == 100
    assert traffic(status)["v2"][1] == 0
    assert withheld(status, "v2").startswith(f"NoReadyEndpoint ({reason}): ")
    assert words in withheld(status, "v2")
    assert status.reason == reason
    assert conditions(status)["Available"] == ("True", "Available")
    stalled = "Stalled" in conditions(status)
    assert stalled == (reason != "Loading")


@pytest.mark.parametrize("reason", ["AdapterNotFound", "BaseModelMismatch"])
def test_wrong_references_are_not_accepted(reason):
    fields = {c[1]: c[0] for c in CAUSES}[reason]
    _, status = planned(started(**fields))
    assert conditions(status)["Accepted"] == ("False", reason)


def test_a_wrong_reference_at_weight_0_is_said_and_withholds_nothing():
    _, status = planned(started(chat({"v1": 100}), adapters=(pinned("v1"),)))
    assert conditions(status)["Accepted"] == ("False", "AdapterNotFound")
    assert traffic(status)["v1"] == (100, 100, True)
    assert withheld(status, "v2") == ""


def test_a_missing_base_is_said():
    _, status = planned(started(bases=()))
    assert conditions(status)["Accepted"] == ("False", "BaseModelNotFound")
    assert conditions(status)["Available"] == ("False", "BaseModelNotFound")


def test_reasons_of_pods_reach_the_column():
    _, status = planned(started(pods=(pod("a", report=None, problem=SICK),)))
    assert status.reason == "Unschedulable"
    assert conditions(status)["Available"] == ("False", "Unschedulable")
    assert "add nodes that fit" in withheld(status, "v1")


def test_a_pool_that_cannot_be_made_is_the_bases_word():
    progress = (
        "Unschedulable: pods cannot be created: exceeded quota; add nodes that fit, or lower serving.resources, "
        "tensorParallelSize or replicas"
    )
    stuck = base_model(status=BaseModelStatus(pools=[PoolStatus(name=BASE, progress=progress)]))
    _, status = planned(started(bases=(stuck,), pods=()))
    assert status.reason == "Unschedulable"
    assert withheld(status, "v1").count("add nodes") == 1


def test_a_pool_that_is_not_allowed_is_said():
    own = ServingSpec(
        artifact_volumes=[VOLUME.model_copy(update={"host_path": None})], node_selector={"a": "not a label"}
    )
    _, status = planned(started(deployment(revisions=REVISIONS, traffic=CANARY, serving=own), pods=()))
    assert status.reason == "InvalidSpec"


def test_a_pool_of_no_pods_says_what_to_raise():
    none = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], replicas=0))
    _, status = planned(started(bases=(none,), pods=()))
    assert withheld(status, "v1") == f"NoReadyEndpoint: pool {BASE} has 0 replicas: raise serving.replicas"


def test_a_full_pool_is_the_adapters_word():
    full = Condition(
        type="Loaded", status="False", reason="PoolFull", message="pool x holds 1", last_transition_time=stamp(0)
    )
    known = adapter("v2", status=LoRAAdapterStatus(conditions=[full]))
    _, status = planned(started(adapters=(pinned("v1"), known), pods=(pod("a", "v1"),)))
    assert withheld(status, "v2").startswith(
        "NoReadyEndpoint (PoolFull): pool x holds 1; raise serving.lora.maxCpuLoras"
    )


# gateways


def test_gateways_that_do_not_answer_are_named_and_stall_nothing():
    situation = started()
    _, status = planned(replace(situation, applied=situation.applied[:1], unreachable=("g2",)))
    assert conditions(status)["TrafficApplied"] == ("False", "GatewayUnreachable")
    assert conditions(status)["Reconciling"] == ("True", "GatewayUnreachable")
    assert "Stalled" not in conditions(status)
    assert not any(t.verified for t in status.traffic)
    assert "g2" in status.conditions[0].message


def test_fewer_answers_than_gateways_verify_nothing():
    situation = started()
    _, status = planned(replace(situation, gateways_expected=3))
    assert not any(t.verified for t in status.traffic)


def test_no_gateway_at_all_is_said():
    _, status = planned(started(applied=(), gateways_expected=0))
    assert conditions(status)["TrafficApplied"] == ("False", "GatewayUnreachable")


def test_the_word_on_an_object_of_the_same_name_does_not_count():
    known = chat()
    old = (applied("g1", known, CANARY), applied("g2", known, CANARY, uid="uid-of-before"))
    _, status = planned(started(applied=old))
    assert conditions(status)["TrafficApplied"] == ("False", "Applying")


def test_a_gateway_that_says_nothing_of_it_has_not_applied_it():
    known = chat()
    silent = AppliedReport(gateway="g2", version=1)
    _, status = planned(started(applied=(applied("g1", known, CANARY), silent)))
    assert not any(t.verified for t in status.traffic)


# names


def test_the_younger_of_two_with_one_name_is_served_by_nobody():
    mine = chat(model_name="shared", created=5)
    older = deployment("older", model_name="shared", namespace="elsewhere", created=1)
    situation = started(mine, deployments=(mine, older))
    _, status = planned(situation)
    assert conditions(status)["Accepted"] == ("False", "ModelNameTaken")
    assert conditions(status)["Available"] == ("False", "ModelNameTaken")
    assert conditions(status)["TrafficApplied"] == ("False", "ModelNameTaken")
    assert traffic(status)["v1"][1] == traffic(status)["v2"][1] == 0
    assert "elsewhere/older" in withheld(status, "v1")
    assert status.rollout is not None
    assert status.rollout.phase == "Idle"
    _, freed = planned(replace(situation, deployments=(mine,)))
    assert conditions(freed)["Accepted"] == ("True", "Accepted")


def test_the_older_one_keeps_the_name():
    mine = chat(model_name="shared", created=1)
    younger = deployment("younger", model_name="shared", created=5)
    _, status = planned(started(mine, deployments=(mine, younger)))
    assert conditions(status) == GOOD


# restored, re-created


def test_a_lost_status_comes_back_without_moving_traffic():
    situation = after(started())
    (known,) = situation.deployments
    stripped = known.model_copy(update={"status": ModelDeploymentStatus()})
    _, status = planned(replace(situation, deployments=(stripped,)))
    assert traffic(status) == {"v1": (90, 90, True), "v2": (10, 10, True)}
    assert status.rollout is not None
    assert status.rollout.stable == "v1"


def test_a_revision_without_adapter_is_served_by_every_pod_of_the_base():
    plain = deployment(revisions=[revision("plain")])
    situation = started(plain, applied=both(plain, {"plain": 100}), pods=(pod("a"), pod("b", engine="Draining")))
    _, status = planned(situation)
    assert [(t.revision, t.weight, t.ready_endpoints) for t in status.traffic] == [("plain", 100, 1)]
    assert conditions(status) == GOOD


def test_a_new_obstacle_is_told_once():
    situation = after(started(), adapters=(pinned("v1"),))
    plan, _ = planned(situation)
    assert (plan.events[-1].type, plan.events[-1].reason) == ("Warning", Reason.ADAPTER_NOT_FOUND)
    assert planned(after(situation))[0].events == ()
