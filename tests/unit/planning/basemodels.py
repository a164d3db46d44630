"""Situations of a BaseModel, step by step, and what its plan says."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.builders import BASE, Situation, at, base_model, child_of, deployment, pinned, pod, revision
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.documents import PLAN_KEY
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.plan import Apply, Plan

DEPLOYMENT = ("Deployment", f"{BASE}-pool")


def applied_to(situation: Situation, name: str = BASE) -> Situation:
    """The situation after its plan was executed, with the Deployment's pods rolled out."""
    plan = plan_basemodel(situation.base_model(name))
    children = {(c.kind, c.name): c for c in situation.children}
    for action in plan.actions:
        if isinstance(action, Apply):
            replicas = action.object.get("spec", {}).get("replicas", 0)
            key = (action.object["kind"], action.object["metadata"]["name"])
            children[key] = child_of(action.object, updatedReplicas=replicas)
    bases = [b if b.metadata.name != name else b.model_copy(update={"status": plan.status}) for b in situation.bases]
    return replace(situation, children=tuple(children.values()), bases=tuple(bases))


def settled(situation: Situation) -> Situation:
    """After two passes: the second one brings the pinned digest to the pods' plan."""
    return applied_to(applied_to(situation))


def started(**fields: object) -> Situation:
    """One base, one adapter, one deployment, one pod that serves both."""
    situation = Situation(
        bases=(base_model(),), adapters=(pinned("v1"),), deployments=(deployment(),), pods=(pod("a", "v1"),)
    )
    return replace(situation, **fields)  # type: ignore[arg-type]


def conditions(plan: Plan) -> dict[str, tuple[str, str]]:
    assert isinstance(plan.status, BaseModelStatus)
    return {c.type: (c.status, c.reason) for c in plan.status.conditions}


def kinds(plan: Plan) -> list[tuple[str, str]]:
    """(kind, name) of what is applied, in order."""
    return [(a.object["kind"], a.object["metadata"]["name"]) for a in plan.actions if isinstance(a, Apply)]


def planned(plan: Plan) -> list[str]:
    """Adapters of the plan that is applied."""
    (data,) = [a.object["data"] for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "ConfigMap"]
    return [a["name"] for a in json.loads(data[PLAN_KEY])["adapters"]]


def without_v1(now: float, situation: Situation) -> Situation:
    return replace(situation, deployments=(deployment(revisions=[revision("plain")]),), now=at(now))
