"""Pools that are not used any more: marked, kept for a while, deleted in order, or adopted again."""

from __future__ import annotations

from dataclasses import replace

from tests.builders import BASE, NAMESPACE, Situation, at, stamp
from tests.unit.planning.basemodels import DEPLOYMENT, applied_to, kinds, settled, started, without_v1
from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.plan import Annotate, Delete


def unused(now: float, situation: Situation) -> Situation:
    return replace(situation, deployments=(), now=at(now))


def test_an_unused_pool_is_marked_kept_and_then_deleted_deployment_first():
    situation = settled(started())
    first = plan_basemodel(unused(1, situation).base_model())
    mark = Annotate(
        "apps/v1",
        *DEPLOYMENT[:1],
        NAMESPACE,
        DEPLOYMENT[1],
        f"uid-Deployment-{BASE}-pool",
        {names.ANNOTATION_UNUSED_SINCE: stamp(1)},
    )
    assert (first.actions, first.requeue_after) == ((mark,), 60)
    marked = replace(
        situation,
        children=tuple(
            replace(c, annotations={**c.annotations, names.ANNOTATION_UNUSED_SINCE: stamp(1)}, resource_version="9")
            if c.kind == "Deployment"
            else c
            for c in situation.children
        ),
    )
    waiting = plan_basemodel(unused(1.5, marked).base_model())
    assert (waiting.actions, waiting.requeue_after) == ((), 30)
    over = plan_basemodel(unused(2, marked).base_model())
    assert over.actions == (Delete("apps/v1", *DEPLOYMENT[:1], NAMESPACE, DEPLOYMENT[1], mark.uid, "9"),)
    assert [e.reason for e in over.events] == [Reason.POOL_DELETED]
    draining = replace(marked, children=tuple(c for c in marked.children if c.kind != "Deployment"))
    assert plan_basemodel(unused(2, draining).base_model()).actions == (), "pods that drain need their key and policy"
    rest = plan_basemodel(replace(unused(2, draining), pods=()).base_model())
    assert {a.kind for a in rest.actions if isinstance(a, Delete)} == {
        "ConfigMap",
        "Secret",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
        "Service",
        "PodDisruptionBudget",
    }
    shared = replace(unused(3, draining), pods=(), children=tuple(c for c in draining.children if not c.pool))
    assert plan_basemodel(shared.base_model()).actions == (), "gateways watch this namespace for other deployments"


def test_a_deployment_that_comes_back_adopts_its_pool():
    situation = settled(started())
    marked = tuple(
        replace(c, annotations={**c.annotations, names.ANNOTATION_UNUSED_SINCE: stamp(1)})
        if c.kind == "Deployment"
        else c
        for c in situation.children
    )
    plan = plan_basemodel(replace(situation, children=marked, now=at(1.5)).base_model())
    (unmark,) = plan.actions
    assert isinstance(unmark, Annotate)
    assert unmark.annotations == {names.ANNOTATION_UNUSED_SINCE: None}
    assert plan.status == situation.bases[0].status


def test_a_mark_of_the_future_counts_from_now():
    situation = settled(started())
    skewed = tuple(
        replace(c, annotations={**c.annotations, names.ANNOTATION_UNUSED_SINCE: stamp(500)})
        if c.kind == "Deployment"
        else c
        for c in situation.children
    )
    plan = plan_basemodel(unused(1, replace(situation, children=skewed)).base_model())
    assert (plan.actions, plan.requeue_after) == ((), 60)


def test_nothing_is_taken_away_while_a_deployment_cannot_be_read():
    situation = replace(settled(started()), unreadable=("chat",))
    plan = plan_basemodel(unused(100, situation).base_model())
    assert plan.actions == ()
    lingering = plan_basemodel(
        replace(applied_to(without_v1(1, settled(started()))), unreadable=("chat",), now=at(9)).base_model()
    )
    assert all(not isinstance(a, Delete) for a in lingering.actions)
    assert kinds(lingering) == []
