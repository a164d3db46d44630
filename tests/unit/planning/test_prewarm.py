"""Filling nodes' caches beforehand: what is made, for how long, and what is said of it; a base is as ready without."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    BASE,
    SETTINGS,
    Situation,
    adapter,
    child_of,
    deployment,
    digest,
    pod,
    prewarmed_base,
    revision,
    stamp,
)
from tests.unit.planning.basemodels import applied_to, conditions, kinds, settled
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.documents import PLAN_KEY, BaseReport, KeepReport, PodReport, PrewarmPlan, Transfer
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ServingSpec
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.observations import PodObservation, Problem, pod_observation
from tuneyard.planning.plan import Apply, Delete, Plan

NAME = f"{BASE}-prewarm"
MADE = [(kind, NAME) for kind in ("ConfigMap", "Role", "RoleBinding", "DaemonSet")]
BUCKET = Source(s3=S3Source(uri="s3://models/v1/"))


def before_a_rollout(**fields: Any) -> Situation:
    """A base that nothing refers to."""
    return replace(Situation(bases=(prewarmed_base(),)), **fields)


def planned(plan: Plan) -> PrewarmPlan:
    (found,) = [
        a.object["data"][PLAN_KEY]
        for a in plan.actions
        if isinstance(a, Apply) and (a.object["kind"], a.object["metadata"]["name"]) == ("ConfigMap", NAME)
    ]
    return PrewarmPlan.model_validate_json(found)


def keeping(name: str = "k1", **fields: Any) -> PodObservation:
    """A pod that keeps a node's cache."""
    return replace(pod(name, pool=""), **{"prewarms": True, "report": None, "base_report": None, **fields})


def told(situation: Situation) -> tuple[str | None, str | None]:
    status = plan_basemodel(situation.base_model()).status
    assert isinstance(status, BaseModelStatus)
    return status.prewarmed, status.prewarm_progress


def counted(situation: Situation, ready: int, chosen: int) -> Situation:
    """The situation after its plan was executed and the DaemonSet's controller has counted."""
    after = settled(situation)
    children = [c for c in after.children if c.kind != "DaemonSet"]
    (daemon_set,) = [
        a.object
        for a in plan_basemodel(situation.base_model()).actions
        if isinstance(a, Apply) and a.object["kind"] == "DaemonSet"
    ]
    found = child_of(daemon_set, desiredNumberScheduled=chosen, numberReady=ready)
    return replace(after, children=(*children, found))


def test_a_base_is_fetched_beforehand_while_nothing_refers_to_it():
    plan = plan_basemodel(before_a_rollout().base_model())
    assert [k for k in kinds(plan) if k[0] in dict(MADE) and k[1] == NAME] == MADE
    assert kinds(plan)[-4:] == MADE, "after everything else"
    assert planned(plan) == PrewarmPlan(base_model=BASE, source=Source(s3=prewarmed_base().spec.source.s3))
    assert conditions(plan)["Ready"] == ("True", Reason.NOT_USED)
    assert plan_basemodel(settled(before_a_rollout()).base_model()).actions == ()


def test_with_the_remote_adapters_of_the_shared_pool_and_the_digests_that_are_pinned():
    adapters = (adapter("v1", source=BUCKET, digest=digest("v1")), adapter("v2"))
    both = deployment(revisions=[revision("v1", "v1"), revision("v2", "v2")])
    situation = before_a_rollout(deployments=(both,), adapters=adapters)
    plan = planned(plan_basemodel(situation.base_model()))
    assert [(a.name, a.digest) for a in plan.adapters] == [("v1", digest("v1"))]
    assert plan.digest is None
    known = replace(applied_to(situation), pods=(pod("a"),))
    later = applied_to(known)
    assert planned(plan_basemodel(later.base_model())).digest == digest(BASE)
    own = before_a_rollout(deployments=(deployment(serving=ServingSpec(replicas=2)),), adapters=adapters)
    assert planned(plan_basemodel(own.base_model())).adapters == [], "another pool's"


def test_what_changes_while_pods_run_does_not_roll_them():
    def template(situation: Situation) -> Any:
        actions = plan_basemodel(situation.base_model()).actions
        (found,) = [a.object for a in actions if isinstance(a, Apply) and a.object["kind"] == "DaemonSet"]
        return found["spec"]["template"]

    used = before_a_rollout(deployments=(deployment(),), adapters=(adapter("v1", source=BUCKET),))
    pinned = before_a_rollout(bases=(prewarmed_base(status=BaseModelStatus(digest=digest(BASE))),))
    assert template(before_a_rollout()) == template(used) == template(pinned)


@pytest.mark.parametrize(
    ("pools", "chosen", "wanted"),
    [
        (None, None, None),
        ({"pool": "gpu"}, None, {"pool": "gpu"}),
        ({"pool": "gpu"}, {"rollout": "first"}, {"rollout": "first"}),
        ({"pool": "gpu"}, {}, None),
    ],
)
def test_nodes_are_the_pools_unless_others_are_chosen(pools, chosen, wanted):
    base = prewarmed_base(selector=chosen, serving=ServingSpec(node_selector=pools))
    plan = plan_basemodel(before_a_rollout(bases=(base,)).base_model())
    (found,) = [a.object for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "DaemonSet"]
    assert found["spec"]["template"]["spec"].get("nodeSelector") == wanted


def test_without_the_field_all_of_it_goes_the_pods_first():
    situation = settled(before_a_rollout(deployments=(deployment(),)))
    base = situation.bases[0].model_copy(
        update={"spec": situation.bases[0].spec.model_copy(update={"serving": ServingSpec()})}
    )
    plan = plan_basemodel(replace(situation, bases=(base,)).base_model())
    gone = [(a.kind, a.name) for a in plan.actions if isinstance(a, Delete)]
    assert gone == [(kind, NAME) for kind in ("DaemonSet", "ConfigMap", "RoleBinding", "Role")]
    assert told(replace(situation, bases=(base,))) == (None, None)
    dying = tuple(replace(c, deleted=c.name == NAME) for c in situation.children)
    again = plan_basemodel(replace(situation, bases=(base,), children=dying).base_model())
    assert not any(isinstance(a, Delete) for a in again.actions)


@pytest.mark.parametrize(
    ("base", "settings", "reason"),
    [
        (prewarmed_base(), SETTINGS.model_copy(update={"allowed_cache_host_paths": []}), "HostPathNotAllowed"),
        (prewarmed_base(selector={"pool": "not a label"}), SETTINGS, "InvalidSpec"),
        (prewarmed_base(selector={"not a key": "x"}), SETTINGS, "InvalidSpec"),
        (prewarmed_base(selector={"a/b/c": "x"}), SETTINGS, "InvalidSpec"),
    ],
)
def test_what_cannot_be_made_is_said_and_what_is_there_stays(base, settings, reason):
    there = settled(before_a_rollout())
    situation = replace(there, bases=(base,), settings=settings)
    plan = plan_basemodel(situation.base_model())
    assert plan.actions == ()
    progress = told(situation)[1]
    assert progress is not None
    assert progress.startswith(f"{reason}: ")
    assert conditions(plan)["Ready"] == ("True", Reason.NOT_USED)


def test_a_bad_selector_of_these_nodes_leaves_the_pool_alone():
    bad = before_a_rollout(bases=(prewarmed_base(selector={"a": "not a label"}),), deployments=(deployment(),))
    assert ("Deployment", f"{BASE}-pool") in kinds(plan_basemodel(bad.base_model()))


HALF = Transfer(done_bytes=1 << 29, total_bytes=1 << 30)
LATE = PodReport(
    address="10.0.0.1:8080",
    engine="Starting",
    base_model=BASE,
    base_transfer=Transfer(done_bytes=1 << 28, total_bytes=1 << 30),
)
DENIED = Problem(Reason.ACCESS_DENIED, "adapter v1: the key of Secret s3 is refused")


@pytest.mark.parametrize(
    ("ready", "chosen", "pods", "progress"),
    [
        (3, 3, (keeping(),), None),
        (0, 0, (), "no node fits serving.cache.prewarm.nodeSelector and the tolerations"),
        (0, 3, (), f"no pod yet: see kubectl describe daemonset {NAME}"),
        (2, 3, (keeping(),), "2 of 3 nodes are ready"),
        (2, 3, (keeping(kept=KeepReport(kept=1, wanted=2, transfer=HALF)),), "fetching: 50 % of 1.0 GiB"),
        (
            1,
            3,
            (keeping(kept=KeepReport(kept=1, wanted=2, transfer=HALF)), keeping("k2", report=LATE)),
            "fetching: 25 % of 1.0 GiB",
        ),
        (
            2,
            3,
            (keeping(problem=DENIED),),
            "AccessDenied: pod k1: adapter v1: the key of Secret s3 is refused",
        ),
        (2, 3, (keeping(problem=DENIED, deleted=True), keeping("k2")), "2 of 3 nodes are ready"),
    ],
)
def test_what_is_said(ready, chosen, pods, progress):
    situation = replace(counted(before_a_rollout(), ready, chosen), pods=pods)
    assert told(situation) == (f"{ready}/{chosen}", progress)
    assert conditions(plan_basemodel(situation.base_model()))["Ready"] == ("True", Reason.NOT_USED)


def test_before_anybody_has_counted():
    assert told(before_a_rollout()) == (None, "starting")
    unseen = replace(counted(before_a_rollout(), 0, 0))
    children = tuple(replace(c, observed=c.kind != "DaemonSet") for c in unseen.children)
    assert told(replace(unseen, children=children)) == (None, "starting")


def test_problems_of_these_pods_do_not_make_a_base_that_serves_less_ready():
    sick = keeping(problem=DENIED, base_report=BaseReport(ok=True, digest=digest("other bytes")))
    used = before_a_rollout(deployments=(deployment(),), adapters=(adapter("v1", source=BUCKET, digest=digest("v1")),))
    serving = settled(replace(used, pods=(pod("a", "v1"), sick)))
    plan = plan_basemodel(serving.base_model())
    assert conditions(plan)["Ready"] == ("True", Reason.READY)
    assert conditions(plan)["Resolved"] == ("True", Reason.RESOLVED)


def test_what_the_first_of_them_reads_is_pinned():
    first = keeping(base_report=BaseReport(ok=True, digest=digest(BASE), size_bytes=5, architecture="Toy"))
    status = plan_basemodel(before_a_rollout(pods=(first,)).base_model()).status
    assert isinstance(status, BaseModelStatus)
    assert (status.digest, status.size_bytes, status.architecture) == (digest(BASE), 5, "Toy")
    again = plan_basemodel(before_a_rollout(pods=(first,)).base_model()).requeue_after
    assert again == 0.0, "so that the others hear of it, though nothing else changes"


def test_a_pod_s_own_word_is_read():
    report = KeepReport(kept=1, wanted=2, reason="DiskFull", message="adapter v1: 3 GiB are needed, 1 GiB is free")
    labels = {names.LABEL_COMPONENT: "prewarm", names.LABEL_BASE_MODEL: BASE, "controller-revision-hash": "abc"}
    metadata = {"name": "k", "labels": labels, "creationTimestamp": stamp(0)}
    metadata["annotations"] = {names.ANNOTATION_ADAPTERS: json.dumps(report.to_dict())}
    found = pod_observation({"metadata": metadata, "status": {"phase": "Running"}})
    assert (found.prewarms, found.kept, found.report, found.pool, found.template) == (True, report, None, "", "abc")
    assert found.problem == Problem(Reason.DISK_FULL, "adapter v1: 3 GiB are needed, 1 GiB is free")
    labels[names.LABEL_COMPONENT] = "pool"
    assert pod_observation({"metadata": metadata, "status": {}}).kept is None


def test_pods_wear_no_label_that_gateways_look_for():
    plan = plan_basemodel(before_a_rollout().base_model())
    for action in plan.actions:
        if isinstance(action, Apply) and action.object["metadata"]["name"] == NAME:
            assert names.LABEL_POOL not in json.dumps(action.object)
