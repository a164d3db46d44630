"""A LoRAAdapter that is deleted and created again while requests go to it, as `kubectl replace --force` does: real
operator, gateway, Envoy and agent.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.engines import BASE, adapters
from tests.contract.idling import IdlingWorld
from tests.contract.operator_process import adapter_spec
from tuneyard.api import names
from tuneyard.planning.children import ANNOTATION_VANISHED_ADAPTERS

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]


def noticed(world: IdlingWorld) -> bool:
    """Whether the operator has seen that `busy` is gone."""
    plan = world.cluster.child(f"configmaps/{names.pool_plan(names.pool_name(BASE))}")
    assert plan is not None
    return "busy" in json.loads(plan["metadata"]["annotations"].get(ANNOTATION_VANISHED_ADAPTERS, "{}"))


def digest(world: IdlingWorld) -> str | None:
    found = world.cluster.status("LoRAAdapter", "busy").get("digest")
    return None if found is None else str(found)


async def test_with_the_same_files_it_fails_no_request(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    async with IdlingWorld(operator_apiserver, tmp_path, []) as world:
        await world.until_ready()
        stop, before = asyncio.Event(), digest(world)
        clients = [asyncio.create_task(world.keep_busy(stop)) for _ in range(6)]
        for _ in range(5):
            await asyncio.to_thread(world.cluster.delete, "LoRAAdapter", "busy")
            await world.until(lambda: noticed(world), "the operator sees it")
            assert world.loaded == {"busy"}
            await asyncio.to_thread(world.cluster.apply, "LoRAAdapter", "busy", adapter_spec(BASE, "busy"))
            await world.until(lambda: digest(world) == before and not noticed(world), "it is the same again")
            assert world.loaded == {"busy"}
            await world.until_ready()
        stop.set()
        await asyncio.gather(*clients)
        assert world.busy_requests > 10
        assert not world.failures


async def test_with_other_files_it_is_another_one(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    async with IdlingWorld(operator_apiserver, tmp_path, []) as world:
        await world.until_ready()
        before = digest(world)
        shutil.copytree(adapters() / "adapter-b", tmp_path / "volumes" / "models" / "other")
        await asyncio.to_thread(world.cluster.delete, "LoRAAdapter", "busy")
        await asyncio.to_thread(world.cluster.apply, "LoRAAdapter", "busy", adapter_spec(BASE, "other"))
        await world.until(lambda: digest(world) not in (None, before), "its own files are read")
        await world.until_ready()
        assert (await world.ask("busy"))[0] == 200
