"""Adapters in the plan of a BaseModel's pods: who comes in, who stays for a while, who gives way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.builders import BASE, VOLUME, adapter, at, base_model, deployment, digest, pinned, pod, revision, stamp
from tests.unit.planning.basemodels import applied_to, kinds, planned, settled, started, without_v1
from tuneyard.api.documents import PLAN_KEY
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.children import ANNOTATION_UNUSED_ADAPTERS, ANNOTATION_VANISHED_ADAPTERS
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.plan import Apply, Plan


def test_an_adapter_comes_into_the_plan_with_its_digest():
    situation = settled(started())
    more = replace(
        situation,
        adapters=(pinned("v1"), adapter("v2")),
        deployments=(deployment(revisions=[revision("v1", "v1"), revision("v2", "v2")], traffic={"v1": 100}),),
    )
    plan = plan_basemodel(more.base_model())
    assert kinds(plan) == [("ConfigMap", f"{BASE}-plan")]
    assert planned(plan) == ["v1", "v2"]
    (action,) = plan.actions
    assert isinstance(action, Apply)
    found = {a["name"]: a.get("digest") for a in json.loads(action.object["data"][PLAN_KEY])["adapters"]}
    assert found == {"v1": digest("v1"), "v2": None}


def test_an_adapter_stays_half_a_minute_after_its_last_reference():
    situation = settled(started())
    plan = plan_basemodel(without_v1(1, situation).base_model())
    assert planned(plan) == ["v1"]
    assert plan.requeue_after == 30
    marked = applied_to(without_v1(1, situation))
    (config,) = [c for c in marked.children if c.kind == "ConfigMap"]
    assert json.loads(config.annotations[ANNOTATION_UNUSED_ADAPTERS]) == {"v1": stamp(1)}
    waiting = plan_basemodel(without_v1(1.25, marked).base_model())
    assert (waiting.actions, waiting.requeue_after) == ((), 15)
    assert planned(plan_basemodel(without_v1(1.5, marked).base_model())) == []
    back = plan_basemodel(replace(marked, deployments=(deployment(),), now=at(2)).base_model())
    assert planned(back) == ["v1"]
    assert back.requeue_after is None


def test_an_unused_adapter_gives_way_to_one_that_is_wanted():
    block = ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(max_cpu_loras=1))
    situation = settled(started(bases=(base_model(serving=block),)))
    other = replace(
        situation,
        adapters=(pinned("v1"), pinned("v2")),
        deployments=(deployment(revisions=[revision("v2", "v2")]),),
    )
    assert planned(plan_basemodel(other.base_model())) == ["v2"]


def test_an_adapter_that_serves_is_not_put_out_by_an_older_one():
    block = ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(max_cpu_loras=1))
    situation = settled(started(bases=(base_model(serving=block),), adapters=(pinned("v1", created=5),)))
    neighbour = deployment("neighbour", revisions=[revision("old", "old")])
    asked = replace(
        situation,
        adapters=(pinned("v1", created=5), pinned("old", created=1)),
        deployments=(*situation.deployments, neighbour),
    )
    assert kinds(plan_basemodel(asked.base_model())) == [], "the plan stays as it is"
    for name, reason in (("v1", None), ("old", Reason.POOL_FULL)):
        told = plan_loraadapter(asked.adapter(name)).status
        assert isinstance(told, LoRAAdapterStatus)
        stalled = next((c.reason for c in told.conditions if c.type == "Stalled"), None)
        assert stalled == (reason and reason.value), "both plans agree on who has no place"
    # created again while its pods have it: younger than all, and still there
    again = replace(asked, adapters=(pinned("v1", created=9, uid="new"), pinned("old", created=1)))
    assert kinds(plan_basemodel(again.base_model())) == []
    freed = replace(asked, deployments=(neighbour,))
    assert planned(plan_basemodel(freed.base_model())) == ["old"]


def data(plan: Plan) -> list[dict[str, object]]:
    """The adapters of the plan that is applied."""
    (text,) = [a.object["data"] for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "ConfigMap"]
    return list(json.loads(text[PLAN_KEY])["adapters"])


def test_an_adapter_whose_object_is_gone_stays_half_a_minute_as_it_was_planned():
    situation = replace(settled(started()), adapters=(), now=at(1))
    before = plan_basemodel(replace(situation, adapters=(pinned("v1"), pinned("v2"))).base_model())
    assert "ConfigMap" not in {kind for kind, _ in kinds(before)}
    plan = plan_basemodel(situation.base_model())
    assert [(a["name"], a["digest"]) for a in data(plan)] == [("v1", digest("v1"))]
    assert plan.requeue_after == 30
    marked = applied_to(situation)
    (config,) = [c for c in marked.children if c.kind == "ConfigMap"]
    assert json.loads(config.annotations[ANNOTATION_VANISHED_ADAPTERS]) == {"v1": stamp(1)}
    waiting = plan_basemodel(replace(marked, now=at(1.25)).base_model())
    assert (waiting.actions, waiting.requeue_after) == ((), 15)
    assert planned(plan_basemodel(replace(marked, now=at(1.5)).base_model())) == []
    going = pinned("v1", deletion_timestamp=stamp(1))
    assert plan_basemodel(replace(marked, adapters=(going,), now=at(1.25)).base_model()).actions == ()


@pytest.mark.parametrize(
    ("again", "becomes"),
    [
        (pinned("v1"), digest("v1")),
        (adapter("v1", digest=digest("v1")), digest("v1")),
        (adapter("v1"), None),  # until a pod has said which it is; the files are the same ones
        (adapter("v1", digest=digest("others")), digest("others")),
    ],
)
def test_an_adapter_that_is_created_again_is_in_the_plan_all_along(again: LoRAAdapterResource, becomes: str | None):
    marked = applied_to(replace(settled(started()), adapters=(), now=at(1)))
    plan = plan_basemodel(replace(marked, adapters=(again,), now=at(1.2)).base_model())
    source = again.spec.source.to_dict()
    assert [(a["name"], a["source"], a.get("digest")) for a in data(plan)] == [("v1", source, becomes)]
    assert plan.requeue_after is None


def test_an_adapter_that_is_gone_and_that_nobody_names_goes_at_once():
    gone = replace(without_v1(1, settled(started())), adapters=())
    assert planned(plan_basemodel(gone.base_model())) == []


def test_others_get_no_more_copies_in_the_place_of_those_that_are_gone():
    block = ServingSpec(artifact_volumes=[VOLUME], replicas=2, lora=LoRASettings(max_cpu_loras=4))
    names = [f"v{n}" for n in range(1, 6)]
    situation = settled(
        started(
            bases=(base_model(serving=block),),
            adapters=tuple(pinned(n) for n in names),
            deployments=(deployment(revisions=[revision(n, n) for n in names], traffic={"v1": 100}),),
            pods=(pod("a", "v1", "v2", "v3"), pod("b", "v4", "v5")),
        )
    )
    whole = situation.adapter("v1").pools
    assert [p.copies for p in whole] == [1]
    gone = replace(situation, adapters=(pinned("v1"),), now=at(1))
    assert gone.adapter("v1").pools == whole
    assert [a["name"] for a in data(plan_basemodel(gone.base_model()))] == names


def test_marks_that_cannot_be_read_begin_anew():
    marked = applied_to(without_v1(1, settled(started())))
    for text in ("{", "[]", '{"v1": "yesterday"}'):
        broken = tuple(
            replace(c, annotations={**c.annotations, ANNOTATION_UNUSED_ADAPTERS: text}) if c.kind == "ConfigMap" else c
            for c in marked.children
        )
        plan = plan_basemodel(without_v1(2, replace(marked, children=broken)).base_model())
        assert plan.requeue_after == 30
