"""Argo CD deletes and creates again what people's requests are answered by: real operator, gateway, Envoy and agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.argocd import ArgoCd
from tests.contract.idling import IdlingWorld
from tuneyard.api import names

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver, pytest.mark.slow]


async def test_a_forced_replacement_fails_no_request(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    async with IdlingWorld(operator_apiserver, tmp_path / "world", []) as world:
        await world.until_ready()
        cluster = world.cluster

        with ArgoCd(operator_apiserver, tmp_path / "argocd") as argo:
            stored = cluster.get("ModelDeployment", "busy")
            metadata = {"name": "busy"}
            manifest = {"apiVersion": names.API_VERSION, "kind": "ModelDeployment", "metadata": metadata}
            argo.repository.commit({"app/modeldeployments.yaml": {**manifest, "spec": stored["spec"]}})
            argo.create("traffic", cluster.namespace, "app")
            stop = asyncio.Event()
            clients = [asyncio.create_task(world.keep_busy(stop)) for _ in range(6)]
            for _ in range(5):
                before = cluster.get("ModelDeployment", "busy")["metadata"]["uid"]
                done = await asyncio.to_thread(argo.sync, "traffic", "Replace=true", force=True)
                assert done["phase"] == "Succeeded", done["message"]
                after = cluster.get("ModelDeployment", "busy")["metadata"]["uid"]
                assert after != before, "it was deleted and created again"
                await world.until_ready()
            stop.set()
            await asyncio.gather(*clients)
            assert world.busy_requests > 50
            assert not world.failures
