"""A pod that is told to drain goes on offering what the plan keeps for it, and not for ever."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.agent.states import after, planned
from tests.unit.agent.test_switches import FakeFront
from tests.unit.agent.waiting import until
from tuneyard.agent import draining
from tuneyard.agent.draining import Drain
from tuneyard.agent.knowledge import Knowledge
from tuneyard.api.documents import PoolPlan
from tuneyard.planning.agentstate import BaseProven, EnginePoisoned, EngineSeen, Event, PlanChanged

UP: tuple[Event, ...] = (EngineSeen(frozenset({"base"})), BaseProven())


def share(*names: str, pods: list[str] | None = None) -> PlanChanged:
    return PlanChanged(PoolPlan(pool="p", base_model="base", pods=pods, adapters=[planned(n) for n in names]))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "QUIET_SECONDS", 0.01)


def drain_of(knowledge: Knowledge, timeout: float = 60.0) -> Drain:
    return Drain(knowledge, FakeFront(), timeout, asyncio.get_running_loop().time)


async def test_it_drains_once_the_plan_keeps_nothing_for_it() -> None:
    knowledge = Knowledge(after(share("a", "b", pods=["pod"]), *UP))
    task = asyncio.create_task(drain_of(knowledge).drain())
    for rest in (("a", "b"), ("b",)):
        knowledge.tell(share(*rest, pods=[]))
        await asyncio.sleep(0.05)
        assert not knowledge.state.draining, "it alone has them"
    knowledge.tell(share(pods=[]))
    await until(lambda: knowledge.state.draining)
    assert await task


@pytest.mark.parametrize(
    "events",
    [
        (share("a"), *UP),
        (share(pods=["pod"]), *UP),
        (share("a", pods=["pod"]),),
        (share("a", pods=["pod"]), *UP, EnginePoisoned()),
    ],
    ids=["every pod has every adapter", "it has none", "its engine starts", "its engine is silent"],
)
async def test_there_is_nothing_to_hand_over(events: tuple[Event, ...]) -> None:
    knowledge = Knowledge(after(*events))
    task = asyncio.create_task(drain_of(knowledge).drain())
    await until(lambda: knowledge.state.draining)
    await task


@pytest.mark.parametrize(("most", "seconds"), [(0.05, 60.0), (30.0, 0.1)], ids=["its own bound", "half of the drain"])
async def test_nobody_who_takes_them_is_not_waited_for_for_ever(
    most: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "HAND_OVER_SECONDS", most)
    knowledge = Knowledge(after(share("a", pods=["pod"]), *UP))
    await asyncio.wait_for(drain_of(knowledge, seconds).drain(), 10)
    assert knowledge.state.draining
