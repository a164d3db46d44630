"""Argo CD deletes and creates again what people's requests are answered by: real operator, gateway, Envoy and agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.argocd import ArgoCd
from tests.contract.idling import IdlingWorld
from tests.contract.operator_process import Cluster
from tuneyard.api import names

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver, pytest.mark.slow]


KINDS = ("ModelDeployment", "LoRAAdapter")


def uids(cluster: Cluster) -> set[str]:
    return {cluster.get(kind, "busy")["metadata"]["uid"] for kind in KINDS}


async def test_a_forced_replacement_fails_no_request(operator_apiserver: ApiServer, tmp_path: Path) -> None:
    async with IdlingWorld(operator_apiserver, tmp_path / "world", []) as world:
        await world.until_ready()
        cluster = world.cluster

        with ArgoCd(operator_apiserver, tmp_path / "argocd") as argo:
            manifests = {
                f"app/{kind.lower()}s.yaml": {
                    "apiVersion": names.API_VERSION,
                    "kind": kind,
                    "metadata": {"name": "busy"},
                    "spec": cluster.get(kind, "busy")["spec"],
                }
                for kind in KINDS
            }
            argo.repository.commit(manifests)
            argo.create("traffic", cluster.namespace, "app")
            stop = asyncio.Event()
            clients = [asyncio.create_task(world.keep_busy(stop)) for _ in range(6)]
            for _ in range(5):
                before = uids(cluster)
                done = await asyncio.to_thread(argo.sync, "traffic", "Replace=true", force=True)
                assert done["phase"] == "Succeeded", done["message"]
                assert not before & uids(cluster), "both were deleted and created again"
                await world.until_ready()
            stop.set()
            await asyncio.gather(*clients)
            assert world.busy_requests > 50
            assert not world.failures
