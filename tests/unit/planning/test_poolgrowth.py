"""What a pool's plan makes of hot adapters: copies, marks, events, and what the adapter's status says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import Situation, at, child_of, demand, pod
from tests.unit.planning.basemodels import kinds
from tests.unit.planning.test_poolplan import NAMES, changed, marks, passed, places, rested, spread, the_plan, without
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.reasons import Reason
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.children import ANNOTATION_GROWN
from tuneyard.planning.growth import LOOK_AGAIN, SHRINK_AFTER
from tuneyard.planning.loraadapter import plan_loraadapter


def status_of(situation: Situation, name: str) -> LoRAAdapterStatus:
    status = plan_loraadapter(situation.adapter(name)).status
    assert isinstance(status, LoRAAdapterStatus)
    return status


def grown(situation: Situation) -> dict[str, int | None]:
    return {a.name: a.copies for a in the_plan(situation).adapters if a.copies}


@pytest.fixture(scope="module")
def calm() -> Situation:
    """Six adapters with one copy each over three pods that hold four."""
    return rested(spread())


def test_a_hot_adapter_gets_copies_at_once_and_the_others_stay_where_they_are(calm: Situation) -> None:
    hot = passed(replace(calm, demand=demand({"v1": 9.0})))
    assert grown(hot) == {"v1": 3}
    assert places(hot)["v1"] == ["a", "b", "c"]
    assert {n: places(hot)[n] for n in NAMES[1:]} == {n: places(calm)[n] for n in NAMES[1:]}
    assert marks(hot, ANNOTATION_GROWN) == {"v1": "3"}
    assert kinds(plan_basemodel(hot.base_model())) == []


def test_an_event_says_so_once(calm: Situation) -> None:
    hot = replace(calm, demand=demand({"v1": 5.0}))
    (event,) = plan_basemodel(hot.base_model()).events
    assert (event.reason, event.message) == (Reason.ADAPTER_SPREAD, "gets 2 of 3 pods for 5 requests under way")
    assert (event.about.kind, event.about.name) == ("LoRAAdapter", "v1")
    assert plan_basemodel(passed(hot).base_model()).events == ()


def test_status_counts_the_copies_and_an_adapter_stays_ready_while_they_come(calm: Situation) -> None:
    before = plan_basemodel(replace(calm, demand=demand({"v1": 9.0})).base_model())
    (config_map,) = [a.object for a in before.actions]  # type: ignore[union-attr]
    others = tuple(c for c in calm.children if c.kind != "ConfigMap")
    coming = replace(calm, children=(*others, child_of(config_map)))
    ready = {c.type: c.status for c in status_of(coming, "v1").conditions}
    assert (status_of(coming, "v1").loaded, ready["Ready"], ready["Loaded"]) == ("1/3", "True", "True")
    there = passed(replace(calm, demand=demand({"v1": 9.0})))
    assert status_of(there, "v1").loaded == "3/3"
    assert status_of(there, "v2").loaded == "1/1"


def test_growth_takes_free_room_and_gives_it_back_to_who_needs_it() -> None:
    hot = passed(replace(rested(spread(places=3)), demand=demand({"v1": 50.0, "v2": 50.0, "v3": 50.0, "v4": 50.0})))
    held = [a for a in the_plan(hot).adapters for _ in a.pods or ()]
    assert len(held) == 9, "three pods of three places"
    assert all(places(hot)[n] for n in NAMES)
    smaller = passed(without(hot, "c"))
    for _ in range(4):
        smaller = passed(smaller)
    assert all(places(smaller)[n] for n in NAMES)


def test_it_shrinks_step_by_step_and_looks_again_by_itself(calm: Situation) -> None:
    hot = passed(replace(calm, demand=demand({"v1": 9.0})))
    cold = passed(replace(hot, demand=demand({"v1": 0.0}), now=at(100)))
    assert grown(cold) == {"v1": 3}
    assert (plan_basemodel(cold.base_model()).requeue_after or 0) <= LOOK_AGAIN
    cold = passed(replace(cold, now=at(100 + SHRINK_AFTER / 60)))
    assert (grown(cold), len(places(cold)["v1"] or ())) == ({"v1": 2}, 2)
    cold = rested(replace(cold, now=at(100 + 2 * SHRINK_AFTER / 60)))
    assert (grown(cold), places(cold), marks(cold, ANNOTATION_GROWN)) == ({}, places(calm), {})


def test_an_operator_that_begins_anew_and_one_that_hears_no_gateway_leave_copies_as_they_are(calm: Situation) -> None:
    hot = passed(replace(calm, demand=demand({"v1": 9.0})))
    unheard = passed(replace(hot, demand=demand({}, expected=2), now=at(10_000)))
    assert (grown(unheard), places(unheard)) == ({"v1": 3}, places(hot))
    unheard = passed(replace(hot, demand=replace(demand({}), reports=()), now=at(20_000)))
    assert grown(unheard) == {"v1": 3}


def test_only_pods_that_serve_get_copies(calm: Situation) -> None:
    name = next(n for n in NAMES if places(calm)[n] != ["c"])
    lost = passed(changed(calm, "c", ready=False, report=None))
    hot = passed(replace(lost, demand=demand({name: 9.0}), now=at(60)))
    assert places(hot)[name] == ["a", "b"]
    back = passed(replace(hot, pods=tuple(p if p.name != "c" else pod("c") for p in hot.pods)))
    assert places(back)[name] == ["a", "b", "c"]


def test_max_copies_of_one_turns_growth_off(calm: Situation) -> None:
    (base,) = calm.bases
    serving = base.spec.serving
    assert serving is not None and serving.lora is not None
    lora = serving.lora.model_copy(update={"max_copies": 1})
    spec = base.spec.model_copy(update={"serving": serving.model_copy(update={"lora": lora})})
    still: tuple[BaseModelResource, ...] = (base.model_copy(update={"spec": spec}),)
    assert grown(passed(replace(calm, bases=still, demand=demand({"v1": 90.0})))) == {}


def test_where_every_pod_has_every_adapter_there_is_nothing_to_grow() -> None:
    everywhere = rested(spread(copies=None, places=6))
    assert kinds(plan_basemodel(replace(everywhere, demand=demand({"v1": 90.0})).base_model())) == []
