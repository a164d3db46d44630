"""What a pool plans of adapters that nobody asks for, and what they say."""

from __future__ import annotations

from typing import Any

from tests.builders import VOLUME, Situation, adapter, base_model, child_of, deployment, pinned, pod, revision, stamp
from tests.unit.planning.sleepers import TIMEOUT, base, condition, conditions, plan_map, quiet_one
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning import children
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.poolplan import wanted_plan
from tuneyard.planning.pools import places, pools_of


def placed(*deployments: ModelDeploymentResource, bases: BaseModelResource, holders: tuple[str, ...] = ()) -> set[str]:
    """The adapters of the plan after one that had `holders`."""
    situation = Situation(bases=(bases,), adapters=tuple(pinned(n) for n in ("a", "b", "c")), deployments=deployments)
    (pool,) = pools_of(bases, deployments)
    before = plan_map(bases, deployments, *holders)
    wanted = children.pool_deployment(pool, bases, situation.settings)
    return {a.name for a in wanted_plan(situation.base_model(), pool, before, wanted).plan.adapters}


def test_idle_adapters_leave_the_plan_at_once_and_take_no_room() -> None:
    idle = quiet_one("a", idle_since=stamp(0))
    others = (quiet_one("b"), quiet_one("c"))
    assert placed(idle, *others, bases=base(), holders=("a", "b")) == {"b", "c"}
    assert placed(idle, *others, bases=base(places=2), holders=("a", "b")) == {"b", "c"}
    also = deployment("also", revisions=[revision("v1", "a")])
    assert placed(idle, also, bases=base(), holders=("a",)) == {"a"}, "another deployment still wants it"
    assert placed(also, bases=base(), holders=("a", "b")) == {"a", "b"}, "nothing refers to b: it has its grace"


def test_copies_do_not_follow_who_sleeps() -> None:
    """A pool grows copies only into room that those that sleep do not need: else each of them that wakes moves all."""
    names = [f"a{number:02}" for number in range(12)]
    lora = LoRASettings(max_cpu_loras=10, idle_timeout=TIMEOUT)
    bases = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], lora=lora, replicas=4))
    found: list[int | None] = []
    for awake in (12, 9, 12):
        deployments = tuple(quiet_one(n, idle_since=stamp(0) if i >= awake else None) for i, n in enumerate(names))
        (pool,) = pools_of(bases, deployments)
        before = PoolPlan(pool=pool.name, base_model=bases.metadata.name, copies=found[-1] if found else 2)
        config_map = child_of(children.pool_plan(pool, bases, before, {}, None))
        situation = Situation(bases=(bases,), adapters=tuple(pinned(n) for n in names), deployments=deployments)
        wanted = children.pool_deployment(pool, bases, situation.settings)
        plan = wanted_plan(situation.base_model(), pool, config_map, wanted).plan
        (told,) = places(bases, deployments, situation.adapters, [config_map])
        assert told.copies == plan.copies, "adapters are told the same"
        found.append(plan.copies)
    assert found == [2, 2, 2]


def test_a_place_goes_to_whom_requests_wait_for() -> None:
    """Though it was created last."""
    waking = quiet_one("c", waking_since=stamp(0))
    assert placed(quiet_one("a"), quiet_one("b"), waking, bases=base(places=2), holders=("b",)) == {"b", "c"}


def test_what_an_idle_adapter_says() -> None:
    told = LoRAAdapterStatus(
        digest=pinned("a").status.digest, rank=8, conditions=[condition("Compatible", "True", "Compatible")]
    )
    situation = Situation(
        bases=(base(),),
        adapters=(adapter("a", status=told),),
        deployments=(quiet_one("a", idle_since=stamp(0)),),
        pods=(pod("p"),),
    )
    status: Any = plan_loraadapter(situation.adapter("a")).status
    assert conditions(status) == {
        "Ready": ("True", "Idle"),
        "Resolved": ("True", "Resolved"),
        "Compatible": ("True", "Compatible"),
        "Loaded": ("False", "Idle"),
    }
    assert (status.loaded, status.rank, status.used_by) == ("0/0", 8, ["a"])
