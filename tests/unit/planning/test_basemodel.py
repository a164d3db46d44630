"""The plan of a BaseModel while it is used, in every situation that its page of the design names, as whole plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import BASE, NAMESPACE, VOLUME, Situation, at, base_model, deployment, digest, pod, revision, stamp
from tests.unit.planning.basemodels import DEPLOYMENT, applied_to, conditions, kinds, planned, settled, started
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.documents import BaseReport
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply, ObjectReference, Plan

ABOUT = ObjectReference(names.API_VERSION, "BaseModel", NAMESPACE, BASE, f"uid-{BASE}")
ACCESS = [
    ("ServiceAccount", "tuneyard-agent"),
    ("Role", "tuneyard-agent"),
    ("RoleBinding", "tuneyard-agent"),
    ("Role", "tuneyard-gateway"),
    ("RoleBinding", "tuneyard-gateway"),
]


def edited(situation: Situation, serving: ServingSpec) -> Situation:
    base = situation.bases[0]
    return replace(
        situation, bases=(base.model_copy(update={"spec": base.spec.model_copy(update={"serving": serving})}),)
    )


def test_a_base_that_is_gone_or_going_is_left_to_garbage_collection():
    assert plan_basemodel(Situation().base_model()) == Plan()
    going = settled(started(bases=(base_model(deletion_timestamp=stamp(0)),)))
    assert plan_basemodel(going.base_model()) == Plan()


def test_a_base_that_nothing_refers_to_runs_nothing():
    plan = plan_basemodel(Situation(bases=(base_model(),)).base_model())
    assert kinds(plan) == ACCESS, "gateways watch this namespace as soon as somebody refers to a base"
    assert (plan.events, plan.requeue_after) == ((), None)
    assert conditions(plan) == {
        "Ready": ("True", "NotUsed"),
        "Resolved": ("Unknown", "NotUsed"),
        "Available": ("False", "NotUsed"),
    }
    assert isinstance(plan.status, BaseModelStatus)
    assert (plan.status.replicas, plan.status.progress, plan.status.used_by) == ("0/0", "not used", None)


def test_the_first_reference_makes_a_pool_with_its_deployment_last():
    plan = plan_basemodel(started(pods=()).base_model())
    assert kinds(plan) == [
        *ACCESS,
        ("ConfigMap", f"{BASE}-plan"),
        ("Secret", f"{BASE}-engine-key"),
        ("Role", f"{BASE}-plan"),
        ("RoleBinding", f"{BASE}-plan"),
        ("NetworkPolicy", f"{BASE}-pool"),
        ("Service", f"{BASE}-pool"),
        ("PodDisruptionBudget", f"{BASE}-pool"),
        DEPLOYMENT,
    ]
    assert planned(plan) == ["v1"]
    assert [(e.type, e.reason, e.about) for e in plan.events] == [("Normal", Reason.POOL_CREATED, ABOUT)]
    assert conditions(plan) == {
        "Ready": ("False", "Resolving"),
        "Reconciling": ("True", "Resolving"),
        "Resolved": ("Unknown", "Resolving"),
        "Available": ("False", "Starting"),
    }


def test_the_converged_plan_is_empty():
    situation = settled(started())
    plan = plan_basemodel(replace(situation, now=at(90)).base_model())
    assert plan == Plan((), situation.bases[0].status, (), None)
    assert conditions(plan) == {
        "Ready": ("True", "Ready"),
        "Resolved": ("True", "Resolved"),
        "Available": ("True", "Available"),
    }
    status = situation.bases[0].status
    assert (status.digest, status.architecture, status.size_bytes) == (digest(BASE), "LlamaForCausalLM", 269_000_000)
    assert (status.replicas, status.progress, status.used_by) == ("1/1", "serving", ["chat"])


def test_a_digest_is_pinned_in_the_status_before_pods_are_told():
    first = plan_basemodel(started().base_model())
    assert isinstance(first.status, BaseModelStatus)
    assert first.status.digest == digest(BASE)
    assert Reason.DIGEST_PINNED in [e.reason for e in first.events]
    data = [a.object["data"] for a in first.actions if isinstance(a, Apply) and a.object["kind"] == "ConfigMap"]
    assert data[0]["base-digest"] == ""
    second = plan_basemodel(applied_to(started()).base_model())
    assert kinds(second) == [("ConfigMap", f"{BASE}-plan")]
    assert second.events == ()


def test_the_oldest_pod_pins_and_never_again():
    other = BaseReport(ok=True, digest=digest("other"))
    older, younger = pod("b", created=stamp(0)), pod("a", created=stamp(1), base_report=other)
    plan = plan_basemodel(started(pods=(younger, older)).base_model())
    assert isinstance(plan.status, BaseModelStatus)
    assert plan.status.digest == digest(BASE)
    assert conditions(plan)["Resolved"] == ("False", "DigestMismatch")
    later = plan_basemodel(replace(settled(started()), pods=(younger,)).base_model())
    assert isinstance(later.status, BaseModelStatus)
    assert later.status.digest == digest(BASE)
    assert digest("other") in later.status.conditions[0].message
    assert digest(BASE) in later.status.conditions[0].message


def test_a_given_digest_is_the_one_from_the_start():
    given = base_model(digest=digest("given"))
    plan = plan_basemodel(started(bases=(given,), pods=()).base_model())
    data = [a.object["data"] for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "ConfigMap"]
    assert data[0]["base-digest"] == digest("given")
    assert Reason.DIGEST_PINNED not in [e.reason for e in plan.events]


PODS_PROBLEMS = [
    (Reason.UNSCHEDULABLE, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"),
    (Reason.IMAGE_PULL_FAILED, "image x of engine: not found"),
    (Reason.ENGINE_CRASHED, "engine ended with exit code 1 after 3 restarts"),
    (Reason.TENSOR_PARALLEL_MISMATCH, "2 does not divide 9"),
]


@pytest.mark.parametrize(("reason", "message"), PODS_PROBLEMS)
def test_reasons_are_taken_from_the_pod(reason, message):
    sick = pod("a", report=None, base_report=None, problem=Problem(reason, message))
    plan = plan_basemodel(applied_to(started(pods=(sick,))).base_model())
    found = conditions(plan)
    assert (found["Ready"], found["Stalled"], found["Available"]) == (
        ("False", reason.value),
        ("True", reason.value),
        ("False", reason.value),
    )
    assert "Reconciling" not in found
    assert isinstance(plan.status, BaseModelStatus)
    assert message in (plan.status.progress or "")


def test_a_new_obstacle_is_told_once():
    sick = pod("a", report=None, problem=Problem(Reason.ENGINE_CRASHED, "engine ended"))
    situation = settled(started())
    first = plan_basemodel(replace(situation, pods=(sick,)).base_model())
    assert [(e.type, e.reason) for e in first.events] == [("Warning", Reason.ENGINE_CRASHED)]
    again = plan_basemodel(applied_to(replace(situation, pods=(sick,))).base_model())
    assert again.events == ()


def test_what_serves_keeps_serving_while_a_change_fails():
    old, new = pod("old", "v1"), pod("new", report=None, problem=Problem(Reason.ENGINE_CRASHED, "engine ended"))
    changed = edited(settled(started()), ServingSpec(artifact_volumes=[VOLUME], extra_args=["--nonsense"]))
    situation = replace(applied_to(changed), pods=(old, new))
    situation = replace(
        situation,
        children=tuple(replace(c, updated_replicas=0) if c.kind == "Deployment" else c for c in situation.children),
    )
    found = conditions(plan_basemodel(situation.base_model()))
    assert found["Available"] == ("True", "Available")
    assert found["Ready"] == ("False", "EngineCrashed")


def test_a_serving_block_that_is_not_allowed_is_not_applied():
    foreign = VOLUME.model_copy(update={"host_path": VOLUME.host_path.model_copy(update={"path": "/etc"})})  # type: ignore[union-attr]
    situation = edited(settled(started()), ServingSpec(artifact_volumes=[foreign]))
    plan = plan_basemodel(situation.base_model())
    assert plan.actions == ()
    assert conditions(plan)["Available"] == ("True", "Available")
    assert conditions(plan)["Stalled"] == ("True", "HostPathNotAllowed")
    assert isinstance(plan.status, BaseModelStatus)
    assert (plan.status.progress or "").endswith("; the pods go on as they were")
    fresh = plan_basemodel(edited(started(pods=()), ServingSpec(artifact_volumes=[foreign])).base_model())
    assert not [k for k in kinds(fresh) if k[0] in ("Deployment", "ConfigMap", "Secret")]
    assert conditions(fresh)["Available"] == ("False", "HostPathNotAllowed")


def test_a_serving_change_rolls_the_deployment_alone():
    situation = edited(settled(started()), ServingSpec(artifact_volumes=[VOLUME], max_model_len=64))
    plan = plan_basemodel(situation.base_model())
    assert kinds(plan) == [DEPLOYMENT]
    assert conditions(plan)["Reconciling"] == ("True", "Starting")
    assert conditions(plan)["Available"] == ("True", "Available")
    assert plan.events == ()


@pytest.mark.parametrize(
    "counts", [{"updated_replicas": 0}, {"old_replicas": 1}, {"observed": False}, {"deleted": True}]
)
def test_a_rollout_is_not_complete_while_only_old_pods_serve(counts):
    situation = settled(started())
    stale = tuple(replace(c, **counts) if c.kind == "Deployment" else c for c in situation.children)
    plan = plan_basemodel(replace(situation, children=stale).base_model())
    assert isinstance(plan.status, BaseModelStatus)
    assert plan.status.progress == "1 of 1 pods serve, rolling out"
    assert conditions(plan)["Ready"] == ("False", "Starting")


def test_a_child_that_was_deleted_or_changed_is_put_back():
    situation = settled(started())
    lost = tuple(c for c in situation.children if c.kind != "NetworkPolicy")
    assert kinds(plan_basemodel(replace(situation, children=lost).base_model())) == [("NetworkPolicy", f"{BASE}-pool")]
    dying = tuple(replace(c, deleted=True) if c.kind == "Service" else c for c in situation.children)
    assert plan_basemodel(replace(situation, children=dying).base_model()).actions == ()
    other = tuple(replace(c, content_hash=None) if c.kind == "Secret" else c for c in situation.children)
    assert kinds(plan_basemodel(replace(situation, children=other).base_model())) == [("Secret", f"{BASE}-engine-key")]


def test_pods_that_may_not_be_created_are_the_deployments_word():
    situation = applied_to(started(pods=()))
    quota = Problem(Reason.UNSCHEDULABLE, "pods cannot be created: exceeded quota")
    refused = tuple(replace(c, problem=quota) if c.kind == "Deployment" else c for c in situation.children)
    plan = plan_basemodel(replace(situation, children=refused).base_model())
    assert conditions(plan)["Stalled"] == ("True", "Unschedulable")


def test_scaled_to_nothing_is_what_was_asked_for():
    plan = plan_basemodel(
        settled(edited(started(pods=()), ServingSpec(artifact_volumes=[VOLUME], replicas=0))).base_model()
    )
    assert conditions(plan)["Ready"] == ("True", "Ready")
    assert conditions(plan)["Available"] == ("False", "NoReadyEndpoint")
    assert isinstance(plan.status, BaseModelStatus)
    assert plan.status.progress == "scaled to 0"


def test_own_pools_are_told_apart_in_the_status():
    own = deployment("own", serving=ServingSpec(replicas=2), revisions=[revision("v1")])
    pool = names.pool_name(BASE, "own")
    situation = started(deployments=(deployment(), own), pods=(pod("a", "v1"), pod("b", pool=pool)))
    plan = plan_basemodel(applied_to(situation).base_model())
    assert isinstance(plan.status, BaseModelStatus)
    assert [(p.name, p.deployment, p.replicas, p.ready_replicas) for p in plan.status.pools or []] == [
        (BASE, None, 1, 1),
        (pool, "own", 2, 1),
    ]
    assert plan.status.replicas == "2/3"
    assert plan.status.progress == "1 of 2 pods serve"


def test_many_users_are_listed_up_to_a_number():
    many = tuple(deployment(f"d{n:03}") for n in range(60))
    plan = plan_basemodel(started(deployments=many).base_model())
    assert isinstance(plan.status, BaseModelStatus)
    assert plan.status.used_by is not None
    assert (len(plan.status.used_by), plan.status.used_by[-1]) == (51, "and 10 more")


def test_settings_that_nobody_can_check_are_a_warning_beside_the_rest():
    block = ServingSpec(artifact_volumes=[VOLUME], image="acme/served:1.4.0", kv_cache_dtype="fp8")
    plan = plan_basemodel(edited(settled(started()), block).base_model())
    assert conditions(plan)["SettingsKnown"] == ("False", "UnknownEngineVersion")
    assert DEPLOYMENT in kinds(plan), "it is made all the same"
    told = plan_basemodel(edited(settled(started()), block.model_copy(update={"engine_version": "0.32"})).base_model())
    assert "SettingsKnown" not in conditions(told)


def test_a_setting_that_the_engine_lacks_is_not_applied():
    block = ServingSpec(artifact_volumes=[VOLUME], quantization="gguf")
    plan = plan_basemodel(edited(settled(started()), block).base_model())
    assert kinds(plan) == []
    assert conditions(plan)["Ready"] == ("False", "UnsupportedSetting")
    assert conditions(plan)["Available"] == ("True", "Available"), "the pods go on as they were"
