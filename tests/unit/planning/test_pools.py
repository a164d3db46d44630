"""Which pools there are, how they serve, and who gets a place in them."""

from __future__ import annotations

import pytest

from tests.builders import BASE, VOLUME, adapter, base_model, deployment, pinned, revision, stamp
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings, Resources, ServingSpec
from tuneyard.planning import pools
from tuneyard.planning.pools import capacity, placement, pools_of
from tuneyard.planning.pools import copies as copies_of
from tuneyard.planning.resolvedserving import resolved_serving

OWN = ServingSpec(replicas=3)


def test_defaults_are_those_of_the_api_page():
    found = resolved_serving(None)
    assert (found.engine, found.tensor_parallel_size, found.replicas, found.update) == ("vllm", 1, 1, "Surge")
    assert (found.drain_timeout, found.startup_timeout) == (600, 1800)
    assert (found.lora.max_loras, found.lora.max_rank, found.lora.max_cpu_loras) == (8, 16, 64)
    assert found.resources.limits == {"nvidia.com/gpu": 1}


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        (ServingSpec(tensor_parallel_size=4), {"nvidia.com/gpu": 4}),
        (ServingSpec(tensor_parallel_size=4, resources=Resources()), None),
        (ServingSpec(resources=Resources(limits={"memory": "3Gi"})), {"memory": "3Gi"}),
    ],
)
def test_gpus_are_asked_for_unless_resources_are_given(spec, limits):
    assert resolved_serving(spec).resources.limits == limits


def test_the_uppermost_block_wins_field_by_field():
    base = ServingSpec(replicas=1, max_model_len=64, lora=LoRASettings(max_rank=8), drain_timeout="30s")
    found = resolved_serving(ServingSpec(max_model_len=256), ServingSpec(replicas=0, max_model_len=128), base)
    assert (found.max_model_len, found.replicas, found.lora.max_rank, found.drain_timeout) == (256, 0, 8, 30)


def test_pools_are_shared_until_serving_is_overridden():
    shared = deployment("a", revisions=[revision("v1"), revision("v2", "x")])
    second = deployment("b", revisions=[revision("v1", "y")])
    own = deployment("c", serving=OWN, revisions=[revision("v1", "z"), revision("v2", serving=ServingSpec(replicas=5))])
    pools = pools_of(base_model(), [own, second, shared, deployment("d", revisions=[revision("v1", base="other")])])
    by_name = {p.name: p for p in pools}
    assert set(by_name) == {BASE, names.pool_name(BASE, "c"), names.pool_name(BASE, "c", "v2")}
    assert pools[0].name == BASE
    assert (pools[0].used_by, pools[0].adapter_names, pools[0].deployment) == (("a", "b"), frozenset("xy"), None)
    of_deployment, of_revision = by_name[names.pool_name(BASE, "c")], by_name[names.pool_name(BASE, "c", "v2")]
    assert (of_deployment.serving.replicas, of_deployment.adapter_names, of_deployment.deployment) == (
        3,
        frozenset("z"),
        "c",
    )
    assert (of_revision.serving.replicas, of_revision.adapter_names) == (5, frozenset())
    assert of_revision.serving.artifact_volumes == (VOLUME,)


def test_deployments_of_other_namespaces_and_going_ones_do_not_count():
    elsewhere, going = deployment("a", namespace="other"), deployment("b", deletion_timestamp=stamp(1))
    assert pools_of(base_model(), [elsewhere, going]) == ()


def test_all_revisions_adapters_are_wanted_also_at_weight_0():
    listed = [revision("v1", "v1"), revision("v2", "v2"), revision("v3", "missing")]
    (pool,) = pools_of(base_model(), [deployment(revisions=listed, traffic={"v1": 100})])
    placed = placement(pool, [adapter("v2"), adapter("v1"), adapter("v4")], ())
    assert [a.metadata.name for a in placed.planned] == ["v1", "v2"]
    assert placed.refused == {}


def test_the_earliest_created_keep_their_place():
    block = ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(max_cpu_loras=2))
    (pool,) = pools_of(
        base_model(serving=block), [deployment(revisions=[revision(n, n) for n in ("a", "b", "c", "d")])]
    )
    known = [
        adapter("a", created=3),
        adapter("b", created=1),
        adapter("c", created=2),
        adapter("d", volume="elsewhere"),
    ]
    placed = placement(pool, known, ())
    assert [a.metadata.name for a in placed.planned] == ["b", "c"]
    assert {n: p.reason for n, p in placed.refused.items()} == {
        "a": Reason.POOL_FULL,
        "d": Reason.VOLUME_NOT_DECLARED,
    }
    assert "holds 2 adapters (serving.lora.maxCpuLoras), 4 are wanted" in placed.refused["a"].message


def test_who_has_a_place_keeps_it_whatever_its_age():
    block = ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(max_cpu_loras=2))
    (pool,) = pools_of(base_model(serving=block), [deployment(revisions=[revision(n, n) for n in "abc"])])
    known = [adapter("a", created=1), adapter("b", created=2), adapter("c", created=3)]
    placed = placement(pool, known, ["c", "gone"])
    assert [a.metadata.name for a in placed.planned] == ["c", "a"]
    assert set(placed.refused) == {"b"}
    # a place is kept for who wants it, not for who was in the plan once
    (alone,) = pools_of(base_model(serving=block), [deployment(revisions=[revision(n, n) for n in "ab"])])
    assert [a.metadata.name for a in placement(alone, known, ["c"]).planned] == ["a", "b"]


@pytest.mark.parametrize(
    ("pods", "room", "copies", "held"),
    [
        (1, 64, None, 64),
        (2, 64, None, 128),
        (10, 64, None, 640),
        (10, 64, 2, 320),
        (3, 5, 2, 7),
        (2, 64, 9, 64),
        (0, 8, 2, 8),
    ],
)
def test_a_pool_holds_what_its_pods_hold_together(pods, room, copies, held):
    block = ServingSpec(replicas=pods, lora=LoRASettings(max_cpu_loras=room, copies=copies))
    assert capacity(resolved_serving(block)) == held


@pytest.mark.parametrize(
    ("pods", "copies", "adapters", "before", "expected"),
    [
        (10, None, 64, None, None),  # every pod has room for all
        (10, None, 65, None, 8),  # as many as fit with one pod away
        (10, None, 500, None, 1),
        (10, None, 640, None, 1),
        (2, None, 65, None, 1),
        (10, None, 64, 8, 8),  # one more only with a tenth to spare
        (10, None, 57, 8, None),
        (10, None, 190, 2, 2),
        (10, None, 160, 2, 3),
        (10, None, 300, 3, 1),  # one less as soon as it must be
        (10, 2, 10, None, 2),  # what is asked for
        (10, 10, 10, None, None),
        (1, 2, 10, None, None),
        (0, None, 0, None, None),
    ],
)
def test_copies_are_as_many_as_fit_and_do_not_waver(pods, copies, adapters, before, expected):
    block = ServingSpec(replicas=pods, lora=LoRASettings(max_cpu_loras=64, copies=copies))
    known = PoolPlan(pool="p", base_model=BASE, copies=before) if before else None
    found = copies_of(resolved_serving(block), adapters, known)
    assert found == expected
    again = PoolPlan(pool="p", base_model=BASE, copies=found)
    assert copies_of(resolved_serving(block), adapters, again) == found


def test_adapters_that_do_not_fit_into_a_plan_are_refused(monkeypatch):
    monkeypatch.setattr(pools, "PLAN_BYTES", 900)
    (pool,) = pools_of(base_model(), [deployment(revisions=[revision(n, n) for n in "abcdefghijkl"])])
    placed = placement(pool, [adapter(n, created=number) for number, n in enumerate("abcdefghijkl")], ["l"])
    names_of = [a.metadata.name for a in placed.planned]
    assert names_of == ["l", *"abcdefghijk"[: len(names_of) - 1]]
    assert set(placed.refused) == set("abcdefghijkl") - set(names_of) != set()
    problem = placed.refused["k"]
    assert problem.reason is Reason.POOL_FULL
    assert f"has no room for more than {len(names_of)} adapters" in problem.message


def test_adapters_of_another_base_namespace_or_past_are_never_placed():
    (pool,) = pools_of(base_model(), [deployment(revisions=[revision("v1", "v1")])])
    for wrong in (
        pinned("v1", base="other"),
        pinned("v1", namespace="other"),
        pinned("v1", deletion_timestamp=stamp(0)),
    ):
        assert placement(pool, [wrong], ()).planned == ()
