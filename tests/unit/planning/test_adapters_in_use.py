"""An edit that would take the adapters from a pool that serves them: it goes on as it was, and says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import VOLUME, Situation, base_model, deployment, loaded, pinned, pod, revision
from tests.unit.planning.basemodels import applied_to, settled
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.conditions import find
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.plan import Apply
from tuneyard.planning.pools import plan_of

ADAPTERS = ("v1", "v2")
WITHOUT = ServingSpec(replicas=2, artifact_volumes=[VOLUME], lora=LoRASettings(enabled=False))
SGLANG = ServingSpec(engine="sglang", image="registry.example/sglang:1", replicas=2, artifact_volumes=[VOLUME])
LORAS = VOLUME.model_copy(update={"name": "loras"})


def serving(volume: str = "models") -> Situation:
    """Two pods of a shared pool with two adapters."""
    reports = {name: loaded(name) for name in ADAPTERS}
    situation = Situation(
        bases=(base_model(serving=ServingSpec(replicas=2, artifact_volumes=[VOLUME, LORAS])),),
        adapters=tuple(pinned(name, volume=volume) for name in ADAPTERS),
        deployments=(deployment(revisions=[revision(name, name) for name in ADAPTERS]),),
        pods=(pod("a", reports=reports), pod("b", reports=reports)),
    )
    return settled(situation)


def edited(situation: Situation, block: ServingSpec) -> Situation:
    (base,) = situation.bases
    return replace(situation, bases=(base.model_copy(update={"spec": base_model(serving=block).spec}),))


@pytest.mark.parametrize("block", [WITHOUT, SGLANG])
def test_a_pool_goes_on_as_it_was_where_an_edit_would_take_its_adapters(block: ServingSpec) -> None:
    after = edited(serving(), block)
    plan = plan_basemodel(after.base_model())
    assert plan.actions == (), "neither its Deployment nor the plan that its pods read"
    assert isinstance(plan.status, BaseModelStatus)
    ready = find(plan.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", Reason.ADAPTERS_NOT_SERVED)
    assert "serves v1, v2 for chat: take these out of the revisions first" in (ready.message or "")
    for name in ADAPTERS:
        told = plan_loraadapter(applied_to(after).adapter(name)).status
        assert isinstance(told, LoRAAdapterStatus)
        condition = find(told.conditions, "Loaded")
        assert condition is not None
        assert condition.status == "True", "they are"


def test_so_it_does_where_their_volume_would_go() -> None:
    without = ServingSpec(replicas=2, artifact_volumes=[VOLUME])
    plan = plan_basemodel(edited(serving("loras"), without).base_model())
    assert plan.actions == ()
    assert isinstance(plan.status, BaseModelStatus)
    ready = find(plan.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", Reason.VOLUME_NOT_DECLARED)
    changed = {
        a.object["kind"]
        for a in plan_basemodel(edited(serving(), without).base_model()).actions
        if isinstance(a, Apply)
    }
    assert changed == {"Deployment"}, "whose adapters are elsewhere"


def test_the_edit_is_made_once_nobody_names_them() -> None:
    waiting = applied_to(edited(serving(), WITHOUT))
    without = replace(waiting, deployments=(deployment(revisions=[revision("base", None)], traffic={"base": 100}),))
    kinds = {a.object["kind"] for a in plan_basemodel(without.base_model()).actions if isinstance(a, Apply)}
    assert "Deployment" in kinds


def test_a_pool_that_never_had_them_is_made_without_them() -> None:
    fresh = replace(edited(serving(), WITHOUT), children=(), pods=())
    made = applied_to(fresh)
    (config,) = [c for c in made.children if c.kind == "ConfigMap"]
    plan = plan_of(config)
    assert plan is not None
    assert plan.adapters == []
    told = plan_loraadapter(made.adapter("v1")).status
    assert isinstance(told, LoRAAdapterStatus)
    condition = find(told.conditions, "Loaded")
    assert condition is not None
    assert condition.reason == Reason.ADAPTERS_NOT_SERVED
