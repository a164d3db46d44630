"""What a pool's plan says where not every pod holds every adapter: who counts, who is lost, who gets which adapter."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    VOLUME,
    Situation,
    adapter,
    at,
    base_model,
    deployment,
    failed,
    pinned,
    pod,
    revision,
    stamp,
)
from tests.unit.planning.basemodels import applied_to, kinds
from tuneyard.api.documents import PlannedAdapter, PoolPlan, stored_plan
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.children import ANNOTATION_PODS_SEEN, ANNOTATION_UNUSED_ADAPTERS
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.placing import Host, Wish
from tuneyard.planning.placing import spread as spread_over
from tuneyard.planning.plan import Apply
from tuneyard.planning.poolplan import LOST_AFTER, staying_pods
from tuneyard.planning.pools import PLAN_BYTES, plan_of, stored_bytes
from tuneyard.planning.resolvedserving import resolved_serving

NAMES = [f"v{n}" for n in range(1, 7)]
PODS = ("a", "b", "c")


def spread(copies: int | None = 1, places: int = 4, replicas: int = 3, **fields: Any) -> Situation:
    """Six adapters over three pods that hold four each, before the first pass; the pods serve none yet."""
    block = ServingSpec(
        artifact_volumes=[VOLUME], replicas=replicas, lora=LoRASettings(max_cpu_loras=places, copies=copies)
    )
    situation = Situation(
        bases=(base_model(serving=block),),
        adapters=tuple(pinned(n) for n in NAMES),
        deployments=(deployment(revisions=[revision(n, n) for n in NAMES]),),
        pods=tuple(pod(p) for p in PODS),
    )
    return replace(situation, **fields)


def passed(situation: Situation) -> Situation:
    """After a pass, with pods that have loaded what the plan gives them."""
    after = applied_to(situation)
    plan = the_plan(after)
    pods = []
    for known in situation.pods:
        mine = [a.name for a in plan.share(known.name).adapters]
        serves = known.report is not None and known.report.engine == "Ready"
        pods.append(pod(known.name, *mine, ready=known.ready, template=known.template) if serves else known)
    return replace(after, pods=tuple(pods))


def rested(situation: Situation) -> Situation:
    for _ in range(6):
        situation = passed(situation)
    assert kinds(plan_basemodel(situation.base_model())) == []
    return situation


def the_plan(situation: Situation) -> PoolPlan:
    (config,) = [c for c in situation.children if c.kind == "ConfigMap"]
    plan = plan_of(config)
    assert plan is not None
    return plan


def places(situation: Situation) -> dict[str, list[str] | None]:
    return {a.name: a.pods for a in the_plan(situation).adapters}


def marks(situation: Situation, annotation: str = ANNOTATION_PODS_SEEN) -> Any:
    (config,) = [c for c in situation.children if c.kind == "ConfigMap"]
    return json.loads(config.annotations.get(annotation, "{}"))


def without(situation: Situation, *gone: str) -> Situation:
    return replace(situation, pods=tuple(p for p in situation.pods if p.name not in gone))


def changed(situation: Situation, name: str, **fields: Any) -> Situation:
    return replace(situation, pods=tuple(replace(p, **fields) if p.name == name else p for p in situation.pods))


def test_while_every_pod_has_room_for_all_the_plan_names_no_pod():
    situation = rested(spread(copies=None, places=6))
    assert set(places(situation).values()) == {None}
    assert (the_plan(situation).pods, the_plan(situation).copies, marks(situation)) == (None, None, {})
    assert kinds(plan_basemodel(without(situation, "a").base_model())) == [], "it does not change with its pods"


def test_else_every_adapter_has_its_copies_and_no_pod_more_than_it_holds():
    for copies, expected in ((1, 1), (2, 2), (None, 1)):
        situation = rested(spread(copies=copies))
        found = places(situation)
        assert {len(pods or ()) for pods in found.values()} == {expected}
        assert max(Counter(p for pods in found.values() for p in pods or ()).values()) <= 4
        assert (the_plan(situation).pods, the_plan(situation).copies) == (list(PODS), expected)
        told = plan_loraadapter(situation.adapter("v1")).status
        assert isinstance(told, LoRAAdapterStatus)
        assert told.loaded == f"{expected}/{expected}"


def test_a_lost_pods_adapters_go_to_others_and_nothing_else_moves():
    before = rested(spread())
    gone = next(pods for pods in places(before).values() if pods)[0]
    after = rested(without(before, gone))
    for name, pods in places(before).items():
        stays = gone not in (pods or ())
        assert (places(after)[name] == pods) == stays
        assert gone not in (places(after)[name] or ())


def test_a_plan_that_is_lost_or_read_late_moves_nothing():
    before = rested(spread(copies=2, places=5))
    lost = replace(before, children=tuple(c for c in before.children if c.kind != "ConfigMap"))
    assert places(applied_to(lost)) == places(before)
    name, held = next(iter(places(before).items()))
    (other,) = set(PODS) - set(held or ())
    late = [a.model_copy(update={"pods": [other]}) if a.name == name else a for a in the_plan(before).adapters]
    stored = stored_plan(the_plan(before).model_copy(update={"adapters": late}))["data"]
    children = tuple(
        replace(c, plan=stored["plan.json"], content_hash="of then") if c.kind == "ConfigMap" else c
        for c in before.children
    )
    assert places(applied_to(replace(before, children=children))) == places(before)


def test_a_copy_goes_only_when_another_serves():
    """From two copies to one: nothing goes while the one that is to stay is not loaded."""
    situation = rested(spread(copies=2))
    name, held = next(iter(places(situation).items()))
    assert held is not None
    fewer = spread(copies=1)
    situation = replace(situation, bases=fewer.bases)
    lacking = {
        p: replace(q, report=without_adapter(q.report, name)) for p in held for q in situation.pods if q.name == p
    }
    for lost in held:
        pods = tuple(lacking[p.name] if p.name == lost else p for p in situation.pods)
        (stays,) = set(held) - {lost}
        assert stays in (places(applied_to(replace(situation, pods=pods)))[name] or ())
    assert {len(pods or ()) for pods in places(applied_to(situation)).values()} == {1}


def without_adapter(report: Any, name: str) -> Any:
    return report.model_copy(update={"adapters": {n: a for n, a in report.adapters.items() if n != name}})


@pytest.mark.parametrize(
    "gone", [{"ready": False}, {"report": None}, {"ready": False, "report": pod("a", engine="Starting").report}]
)
def test_a_pod_that_is_not_ready_for_some_seconds_is_done_without(gone):
    before = rested(spread())
    assert marks(before) == dict.fromkeys(PODS, "Ready")
    name, (lost, *_) = next((n, pods) for n, pods in places(before).items() if pods)
    away = changed(before, lost, **gone)
    first = plan_basemodel(replace(away, now=at(1)).base_model())
    assert first.requeue_after == LOST_AFTER
    marked = applied_to(replace(away, now=at(1)))
    assert places(marked) == places(before), "it may be back at once"
    after = applied_to(replace(marked, now=at(1 + LOST_AFTER / 60)))
    assert len(places(after)[name] or ()) == 2
    assert lost in (places(after)[name] or ()), "it loads its share when it comes back"
    back = rested(replace(after, pods=before.pods, now=at(3)))
    assert {len(pods or ()) for pods in places(back).values()} == {1}
    assert marks(back) == dict.fromkeys(PODS, "Ready")


def test_a_new_pod_has_its_share_before_it_serves_and_takes_nothing_before_it_does():
    before = rested(spread(copies=1, places=6))
    more = replace(before, pods=(*before.pods, pod("d", report=None, ready=False)))
    started = passed(more)
    share = [a.name for a in the_plan(started).share("d").adapters]
    assert the_plan(started).pods == [*PODS, "d"]
    assert share, "it has something to load"
    for name, pods in places(before).items():
        assert set(pods or ()) <= set(places(started)[name] or ())
    up = rested(changed(started, "d", report=pod("d").report, ready=True))
    assert [a.name for a in the_plan(up).share("d").adapters] == share
    assert {len(pods or ()) for pods in places(up).values()} == {1}


def test_a_pod_that_a_plan_was_made_without_is_not_in_it():
    plan = the_plan(rested(spread()))
    assert plan.share("d").pods == []
    assert plan.share("a").pods == ["a"]


def test_while_pods_are_replaced_the_old_ones_serve_on():
    before = rested(spread(copies=2, places=6))
    new = replace(pod("d", report=None, ready=False), template="new", created="2026-01-01T13:00:00Z")
    rolling = passed(replace(before, pods=(*before.pods, new)))
    share = [a.name for a in the_plan(rolling).share("d").adapters]
    assert 0 < len(share) <= 4, "an even part of all copies, not all of them"
    for name, pods in places(before).items():
        assert set(pods or ()) <= set(places(rolling)[name] or ())


def test_an_old_pod_that_is_made_again_while_pods_are_replaced_is_still_an_old_one():
    old = [replace(pod(n), template="old", wanted_as="1") for n in ("a", "b")]
    new = replace(pod("c"), template="new", wanted_as="2", created=stamp(1))
    again = replace(pod("d"), template="old", wanted_as="1", created=stamp(2))
    assert staying_pods([*old, new, again], "2") == {"c"}
    assert staying_pods([*old, new, again], "1") == {"a", "b", "d"}, "taken back: the old ones stay"
    assert staying_pods(old, "2") == {"a", "b"}, "no new one is there yet"
    restarted = replace(pod("e"), template="restarted", wanted_as="1", created=stamp(3))
    assert staying_pods([*old, restarted], "1") == {"e"}
    assert staying_pods([], "1") == frozenset()


def test_a_full_pool_says_how_many_fit_and_who_has_a_place_keeps_it():
    before = rested(spread(copies=2, places=4))
    late = tuple(adapter(f"late-{n}", created=-5) for n in range(2))
    listed = [revision(n, n) for n in (*NAMES, "late-0", "late-1")]
    asked = replace(before, adapters=(*before.adapters, *late), deployments=(deployment(revisions=listed),))
    assert kinds(plan_basemodel(asked.base_model())) == []
    told = plan_loraadapter(asked.adapter("late-0")).status
    assert isinstance(told, LoRAAdapterStatus)
    stalled = next(c for c in told.conditions if c.type == "Stalled")
    assert stalled.reason == Reason.POOL_FULL.value
    assert "holds 6 adapters (3 pods of 4 places, serving.lora.maxCpuLoras, 2 copies each), 8 are" in stalled.message
    one_pod_less = without(asked, "a")
    assert set(places(applied_to(one_pod_less))) == set(NAMES), "nobody loses his place with a pod"


def test_more_copies_than_there_is_room_for_put_nobody_out():
    before = rested(spread(copies=1, places=2))
    after = replace(before, bases=spread(copies=2, places=2).bases)
    assert set(places(rested(after))) == set(NAMES)
    assert the_plan(rested(after)).copies == 1
    roomy = replace(before, bases=spread(copies=3, places=3).bases)
    assert the_plan(rested(roomy)).copies == 1, "nine places for six adapters"
    late = replace(
        after,
        adapters=(*after.adapters, pinned("late")),
        deployments=(deployment(revisions=[revision(n, n) for n in (*NAMES, "late")]),),
    )
    assert "late" not in places(rested(late))


def test_an_adapter_that_is_not_used_any_more_stays_where_it_is_and_gives_way():
    before = rested(spread(copies=1, places=3))
    fewer = replace(before, deployments=(deployment(revisions=[revision(n, n) for n in NAMES[1:]]),), now=at(1))
    after = applied_to(fewer)
    assert places(after) == places(before)
    assert set(marks(after, ANNOTATION_UNUSED_ADAPTERS)) == {"v1"}
    crowd = [f"w{n}" for n in range(4)]
    full = replace(
        after,
        adapters=(*after.adapters, *(pinned(n) for n in crowd)),
        deployments=(deployment(revisions=[revision(n, n) for n in (*NAMES[1:], *crowd)]),),
    )
    assert set(places(applied_to(full))) == {*NAMES[1:], *crowd}


def test_an_adapter_that_no_pod_can_load_does_not_take_more_and_more_places():
    situation = rested(spread())
    broken = {"v1": failed("NonFiniteValues")}
    pods = tuple(replace(p, report=pod(p.name, reports=broken).report) for p in situation.pods)
    after = applied_to(replace(situation, pods=pods))
    assert len(places(after)["v1"] or ()) == 1


@pytest.mark.lasting
def test_a_plan_of_five_thousand_adapters_on_fifty_pods_can_be_stored():
    """Names, addresses and digests that pack as badly as any."""
    chosen = random.Random(4)

    def text(alphabet: str, length: int) -> str:
        return "".join(chosen.choices(alphabet, k=length))

    pods = [f"llama-3-1-8b-pool-7d9f8c6b5d-{text(string.ascii_lowercase, 5)}" for _ in range(50)]
    serving = resolved_serving(ServingSpec(replicas=50, lora=LoRASettings(max_cpu_loras=256, copies=2)))
    known = []
    for number in range(5_000):
        uri = f"s3://models/{text(string.ascii_lowercase, 12)}/adapters/v{number}/"
        known.append(PlannedAdapter(name=f"{text(string.ascii_lowercase, 12)}-v{number}", source=s3(uri)))
    assert stored(known, pods, chosen) < PLAN_BYTES
    # and by the estimate that adapters are refused by, whatever their names and sources are
    long = [PlannedAdapter(name=text(LOW, 63), source=s3("s3://bucket/" + text(ANY, 200))) for _ in range(1_000)]
    estimate = sum(stored_bytes(serving, like(a)) for a in long)
    assert 0.6 * estimate < stored(long, pods, chosen) < estimate


@pytest.mark.slow
def test_thousands_that_nothing_refers_to_any_more_leave_a_plan_that_can_be_stored():
    """A ConfigMap over its limits is refused: the old plan would stay in force, and the thousands in it for ever."""
    names = [f"{n:05}-{'n' * 40}" for n in range(6_000)]
    block = ServingSpec(
        artifact_volumes=[VOLUME], replicas=10, lora=LoRASettings(max_cpu_loras=1000, copies=1, max_rank=8)
    )
    before = applied_to(
        Situation(
            bases=(base_model(serving=block),),
            adapters=tuple(pinned(n) for n in names),
            deployments=using(names),
            pods=tuple(pod(f"pod-{n}") for n in range(10)),
        )
    )
    held = len(places(before))
    assert held > 5_000
    another = tuple(pinned(n.replace("n", "m")) for n in names[:4_000])
    listed = using([a.metadata.name for a in another])
    replaced = replace(before, adapters=(*before.adapters, *another), deployments=listed, now=at(1))
    for after in (replace(before, deployments=using(names[:1])), replaced):
        (config,) = [
            a.object
            for a in plan_basemodel(after.base_model()).actions
            if isinstance(a, Apply) and a.object["kind"] == "ConfigMap"
        ]
        assert sum(map(len, config["metadata"]["annotations"].values())) < 256 << 10
        assert sum(len(v) * 3 // 4 for v in config["binaryData"].values()) < 1 << 20
        again = applied_to(after)
        assert kinds(plan_basemodel(again.base_model())) == [], "and it is at rest"


def using(names: list[str]) -> tuple[ModelDeploymentResource, ...]:
    """Deployments that refer to all of these adapters."""
    chunks = [names[at : at + 16] for at in range(0, len(names), 16)]
    return tuple(deployment(f"d{n}", revisions=[revision(c, c) for c in chunk]) for n, chunk in enumerate(chunks))


LOW = string.ascii_lowercase + string.digits + "-"
ANY = string.ascii_letters + string.digits + "-_"


def s3(uri: str) -> Source:
    return Source(s3=S3Source(uri=uri))


def like(planned: PlannedAdapter) -> Any:
    return adapter(planned.name).model_copy(
        update={"spec": adapter("x").spec.model_copy(update={"source": planned.source})}
    )


def stored(adapters: list[PlannedAdapter], pods: list[str], chosen: random.Random) -> int:
    """Bytes of the plan in a ConfigMap, with digests of their own and two pods for each."""
    entries = [
        a.model_copy(update={"digest": f"sha256:{chosen.randbytes(32).hex()}", "pods": sorted(chosen.sample(pods, 2))})
        for a in adapters
    ]
    plan = PoolPlan(pool="p", base_model="b", copies=2, pods=pods, adapters=entries)
    (text,) = stored_plan(plan)["binaryData"].values()
    return len(text) * 3 // 4


def test_pods_that_are_known_do_not_exchange_adapters_however_uneven_they_are():
    names = [f"a{n}" for n in range(40)]
    hosts = [Host("full", loaded=frozenset(names)), Host("empty")]
    held = dict.fromkeys(names, ("full",))
    assert spread_over(Wish(names, (), 1, 50, 2), hosts, held) == held
    fresh = [hosts[0], replace(hosts[1], fresh=True)]
    moving = spread_over(Wish(names, (), 1, 50, 2), fresh, held)
    assert 10 <= sum(places == ("empty", "full") for places in moving.values()) <= 25, "those of which it is the best"
    assert all("full" in places for places in moving.values()), "and they serve where they are until then"
