"""More adapters than a pod holds, on several pods: who holds what, and that a pod that goes or comes fails no request.

The plan is the operator's, made from the agents' reports; engines are fakes with the exact rules of the real one.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.agents import loaded
from tests.contract.engines import BASE
from tests.contract.spreading import SpreadPods, fake_engine
from tests.traffic import Load, Traffic
from tuneyard.planning.handover import HAND_OVER_SECONDS

pytestmark = pytest.mark.envoy

NAMES = [f"tenant-{number}" for number in range(60)]


def load(rate: float = 30.0) -> Load:
    return Load(NAMES, rate=rate, streaming=0.0, body={"max_tokens": 1})


async def test_sixty_adapters_on_four_pods_lose_a_pod_and_get_one(tmp_path: Path) -> None:
    async with SpreadPods(tmp_path, NAMES, pods=4, places=50, copies=2) as pods:
        await pods.until_settled(2)
        assert max(Counter(p for places in pods.places().values() for p in places).values()) <= 50
        before = pods.having()
        async with Traffic(pods.url, load()) as traffic:
            await traffic.wait_for(60)
            lost = pods.rigs[1]
            share = loaded(lost.report)
            held = {rig.settings.pod: loaded(rig.report) for rig in pods.rigs}
            await pods.lose(lost)
            await pods.until_settled(2, within=30)
            gained = {rig.settings.pod: loaded(rig.report) - held[rig.settings.pod] for rig in pods.rigs}
            assert sorted(name for names in gained.values() for name in names) == sorted(share)
            for name, places in pods.having().items():
                assert before[name] - {lost.settings.pod} <= places
            await traffic.wait_for(60)
            new = await pods.start(fake_engine(50))
            await pods.until_settled(2, within=60)
            assert 15 <= len(loaded(new.report)) <= 38, "about its share"
            await traffic.wait_for(60)
        told = traffic.summary()
        assert (told.failed, told.cut, told.skipped) == (0, 0, 0), str(told)
        # what has left a pod is unloaded there, and no sooner than gateways could know: nobody met a 404
        for rig in pods.rigs:
            share = {a.name for a in pods.planned.share(rig.settings.pod).adapters}
            await rig.until_loaded(*share)
            names = {rig.report.adapters[name].engine_name for name in share}
            await rig.agent.knowledge.until(lambda state, names=names: state.engine.models - {BASE} == names)  # type: ignore[misc]


async def test_a_pod_that_is_deleted_hands_over_what_nobody_else_has(tmp_path: Path) -> None:
    """A node is drained, and each adapter has one copy: it is answered by the old pod until the new one can."""
    async with SpreadPods(tmp_path, NAMES, pods=4, places=30, copies=1) as pods:
        await pods.until_settled(1)
        gone = pods.rigs[2]
        assert len(loaded(gone.report)) > 5
        async with Traffic(pods.url, load(rate=60.0)) as traffic:
            await traffic.wait_for(60)
            began = time.monotonic()
            await pods.delete(gone)
            assert time.monotonic() - began < HAND_OVER_SECONDS, "it does not wait for longer than it must"
            await pods.until_settled(1, within=30)
            await traffic.wait_for(60)
        told = traffic.summary()
        assert (told.failed, told.cut, told.skipped) == (0, 0, 0), str(told)


async def test_with_one_copy_the_others_are_not_touched_and_the_lost_ones_are_soon_back(tmp_path: Path) -> None:
    async with SpreadPods(tmp_path, NAMES, pods=4, places=20, copies=1) as pods:
        await pods.until_settled(1)
        before, lost = pods.having(), pods.rigs[0]
        share = loaded(lost.report)
        await pods.lose(lost)
        # 60 adapters on 3 pods of 20 places: all of them fill up to the last place
        await pods.until_settled(1, within=30)
        assert {n for n, places in pods.having().items() if places != before[n]} == share
