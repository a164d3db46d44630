"""The gateway process beside a real Envoy, fed by a real API server: every edit arrives, every outage is survived."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, Team, becomes, engine_name_of, eventually
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.api import names
from tuneyard.systems.kube.client import ApiError

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

BODY = {"chunks": 6, "delay": 0.03}


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("pod-a") as a, Upstream("pod-b") as b:
        yield a, b


def canary(team: Team, *pods: Upstream, v1: int = 90) -> str:
    """A deployment of two adapters on these pods; returns its key in reports."""
    for adapter in ("v1", "v2"):
        team.make_adapter(adapter)
    for pod in pods:
        team.make_pod(pod, "v1", "v2")
    team.make_deployment("support", {"v1": v1, "v2": 100 - v1})
    return f"{team.namespace}/support"


async def remembered(gateway: GatewayProcess, *words: str) -> Path:
    """The snapshot, once it holds all of these."""
    path = gateway.folder / "world.jsonl"
    await eventually(lambda: path.exists() and all(w in path.read_text() for w in words), "a snapshot of everything")
    return path


def come_back(server: ApiServer) -> None:
    """Start the API server again; returns when it serves Tuneyard's kinds.

    Blocks, because it dies with the thread that started it.
    """
    server.start()
    api, deadline = server.api(), time.monotonic() + 60
    while True:
        try:
            api.request("GET", f"/apis/{names.API_VERSION}/modeldeployments")
            return
        except ApiError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


async def test_from_nothing_to_a_canary(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream], apiserver: ApiServer
) -> None:
    """Each object in turn; the gateway serves what is there as soon as it is."""
    await gateway.ready()
    assert await gateway.answered_by("support") is None
    team.make_adapter("v1")
    team.make_deployment("support", {"v1": 100})
    await gateway.applies(f"{team.namespace}/support", {"v1": 0})
    status, headers, _ = await gateway.rig.post({"model": "support"})
    assert (status, headers["retry-after"]) == (503, "5")
    team.make_pod(pods[0], engine="Starting")
    team.report(pods[0])
    team.report(pods[0], "v1")
    first = await gateway.applies(f"{team.namespace}/support", {"v1": 100})
    assert await gateway.answered_by("support") == engine_name_of("v1")
    (received,) = pods[0].received
    key = names.engine_key(b"0123456789abcdef0123456789abcdef", team.namespace, "tiny")
    assert received.headers["authorization"] == f"Bearer {key}"
    applied = first.deployments[f"{team.namespace}/support"]
    assert (applied.generation, first.gateway) == (1, "gateway-0")
    # the long poll answers when there is something new, and at once to one that knows a later life of it
    begin = time.monotonic()
    poll = asyncio.create_task(gateway.applied(after=first.version))
    team.report(pods[0])
    assert (await poll).version > first.version
    assert (await gateway.applied(after=10_000)).version > first.version
    assert time.monotonic() - begin < 5
    assert [await gateway.status_without(t) for t in ("", "Bearer no", "Bearer ")] == [401, 401, 401]
    await gateway.applies(f"{team.namespace}/support", {"v1": 0})


async def test_an_unpinned_adapter_waits_for_its_digest(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    team.make_adapter("v1", pinned=False)
    team.make_pod(pods[0], "v1")
    team.make_deployment("support", {"v1": 100})
    await gateway.applies(f"{team.namespace}/support", {"v1": 0})
    team.pin("v1")
    await gateway.applies(f"{team.namespace}/support", {"v1": 100})
    assert await gateway.answered_by("support") == engine_name_of("v1")


async def test_the_rollouts_position_is_kept(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = canary(team, *pods, v1=50)
    await gateway.applies(key, {"v1": 50, "v2": 50})
    team.rollout("support", stable="v1", allowed={"v2": 5})
    await gateway.applies(key, {"v1": 95, "v2": 5})
    team.rollout("support", stable="v1", allowed=None)
    await gateway.applies(key, {"v1": 50, "v2": 50})


async def test_pods_come_and_go(gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]) -> None:
    """Weight goes to the stable revision at once, and comes back; evicted pods count as gone."""
    a, b = pods
    for adapter in ("v1", "v2"):
        team.make_adapter(adapter)
    team.make_pod(a, "v1")
    team.make_pod(b, "v2")
    team.make_deployment("support", {"v1": 60, "v2": 40})
    key = f"{team.namespace}/support"
    await gateway.applies(key, {"v1": 60, "v2": 40})
    async with Traffic(gateway.url, Load(["support"], rate=60, body=BODY)) as traffic:
        team.report(b, "v2", engine="Draining")
        await gateway.applies(key, {"v1": 100, "v2": 0})
        team.report(b, "v2")
        await gateway.applies(key, {"v1": 60, "v2": 40})
        team.report(b)
        await gateway.applies(key, {"v1": 100, "v2": 0})
        team.report(b, "v2")
        await gateway.applies(key, {"v1": 60, "v2": 40})
        team.end_pod(b)
        await gateway.applies(key, {"v1": 100, "v2": 0})
        await traffic.wait_for(20)
    assert traffic.summary().ok == len(traffic.records), traffic.summary()
    team.delete_pod(a)
    await becomes(lambda: gateway.answered_by("support"), None, "nobody serves")


async def test_a_forced_sync_is_not_noticed(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    """Everything is deleted and created again, digests lost; the pods run on, and so do the requests."""
    team.make_adapter("v1", pinned=False)
    team.pin("v1")
    team.make_pod(pods[0], "v1")
    old = team.make_deployment("support", {"v1": 100})
    key = f"{team.namespace}/support"
    await gateway.applies(key, {"v1": 100})
    async with Traffic(gateway.url, Load(["support"], rate=50, body=BODY)) as traffic:
        await traffic.wait_for(10)
        for plural, name in (("modeldeployments", "support"), ("loraadapters", "v1"), ("basemodels", team.base)):
            team.delete(plural, name)
        await traffic.wait_for(60)
        team.make_base()
        team.make_adapter("v1", pinned=False)
        new = team.make_deployment("support", {"v1": 100})
        await traffic.wait_for(60)
        team.pin("v1")
        await traffic.wait_for(20)
    assert traffic.summary().ok == len(traffic.records), traffic.summary()
    assert old["metadata"]["uid"] != new["metadata"]["uid"]
    assert (await gateway.applied()).deployments[key].uid == new["metadata"]["uid"]
    # gone for good: routes go after the grace
    team.delete("modeldeployments", "support")
    await becomes(lambda: gateway.rig.get("/v1/models"), (200, {"object": "list", "data": []}), "no model is listed")
    assert (await gateway.rig.post({"model": "support"}))[0] == 404
    assert not (await gateway.applied()).deployments


async def test_the_older_deployment_owns_a_model_name(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    a, b = pods
    for adapter in ("v1", "v2"):
        team.make_adapter(adapter)
    team.make_pod(a, "v1")
    team.make_pod(b, "v2")
    team.make_deployment("first", {"v1": 100}, modelName="shared")
    await asyncio.sleep(1.1)  # creation times have whole seconds
    team.make_deployment("a-second", {"v2": 100}, modelName="shared")
    team.make_deployment("witness", {"v2": 100})
    await gateway.applies(f"{team.namespace}/witness", {"v2": 100})
    report = await gateway.applies(f"{team.namespace}/first", {"v1": 100})
    assert f"{team.namespace}/a-second" not in report.deployments
    assert await gateway.answered_by("shared") == engine_name_of("v1")
    team.delete("modeldeployments", "first")
    await becomes(lambda: gateway.answered_by("shared"), engine_name_of("v2"), "the next one owns the name")


async def test_the_process_is_killed_and_started_again(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    """Envoy serves on without it, and takes from the next one only what has changed."""
    key = canary(team, *pods)
    await gateway.applies(key, {"v1": 90, "v2": 10})
    async with Traffic(gateway.url, Load(["support"], rate=60, body=BODY)) as traffic:
        await traffic.wait_for(30)
        gateway.kill()
        await traffic.wait_for(30)
        team.set_traffic("support", v1=20, v2=80)
        gateway.start()
        await gateway.applies(key, {"v1": 20, "v2": 80})
        await traffic.wait_for(30)
    assert traffic.summary().ok == len(traffic.records), traffic.summary()
    updates = await gateway.rig.envoy.stat("cluster_manager.cluster_modified")
    assert updates == 0


async def test_the_api_server_is_away(
    apiserver: ApiServer, gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    """No request fails; Envoy and process may both start anew meanwhile; edits arrive when it is back."""
    key = canary(team, *pods)
    await gateway.applies(key, {"v1": 90, "v2": 10})
    await remembered(gateway, '"support"', '"pod-a"', '"pod-b"', '"v1"', '"v2"', '"tiny"')
    async with Traffic(gateway.url, Load(["support"], rate=40, body=BODY)) as traffic:
        await traffic.wait_for(20)
        apiserver.stop()
        try:
            await traffic.wait_for(60)
            gateway.kill()
            gateway.start()
            await gateway.ready()
            await gateway.applies(key, {"v1": 90, "v2": 10})
            await traffic.wait_for(30)
        finally:
            come_back(apiserver)
        team.set_traffic("support", v1=10, v2=90)
        await gateway.applies(key, {"v1": 10, "v2": 90})
        await traffic.wait_for(20)
    assert traffic.summary().ok == len(traffic.records), traffic.summary()
    assert await gateway.probe("/healthz") == 200


async def test_envoy_starts_while_the_api_server_is_away(
    apiserver: ApiServer, gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = canary(team, *pods)
    await gateway.applies(key, {"v1": 90, "v2": 10})
    snapshot = await remembered(gateway, '"support"', '"pod-a"', '"pod-b"', '"v1"', '"v2"', '"tiny"')
    text = snapshot.read_text()
    assert names.engine_key(b"0123456789abcdef0123456789abcdef", team.namespace, "tiny") not in text
    assert snapshot.stat().st_mode & 0o077 == 0
    apiserver.stop()
    try:
        gateway.rig.envoy.stop()
        gateway.kill()
        gateway.rig.envoy.start()
        gateway.start()
        await gateway.ready()
        await gateway.rig.envoy.ready()
        for _ in range(20):
            assert await gateway.answered_by("support") in (engine_name_of("v1"), engine_name_of("v2"))
    finally:
        come_back(apiserver)


async def test_what_changed_while_it_was_down_wins_over_the_snapshot(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    """Deployments and pods that are gone are not served from memory."""
    a, b = pods
    key = canary(team, a, b)
    team.make_deployment("other", {"v1": 100})
    await gateway.applies(f"{team.namespace}/other", {"v1": 100})
    await remembered(gateway, '"other"', '"pod-a"', '"pod-b"')
    gateway.kill()
    team.delete("modeldeployments", "other")
    team.delete_pod(b)
    gateway.start()
    await gateway.applies(key, {"v1": 90, "v2": 10})
    await becomes(lambda: gateway.answered_by("other"), None, "the deleted model is gone")
    await b.die()
    before = b.asked.total()
    assert [await gateway.answered_by("support") is None for _ in range(10)] == [False] * 10
    assert b.asked.total() == before


async def test_it_leaves_in_order(gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]) -> None:
    """On SIGTERM it is not ready at once, running streams finish, then it ends by itself."""
    await gateway.applies(canary(team, *pods), {"v1": 90, "v2": 10})
    await gateway.ready()
    load = Load(["support"], rate=50, max_requests=30, streaming=1, body={"chunks": 30, "delay": 0.05})
    async with Traffic(gateway.url, load) as traffic:
        await eventually(lambda: pods[0].active + pods[1].active >= 25, "streams run")
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        await becomes(gateway.probe, 503, "not ready")
        await asyncio.to_thread(gateway.process.wait, 30)
        assert pods[0].active + pods[1].active == 0
    assert traffic.summary().cut == 0
    assert gateway.process.returncode == 0


async def test_envoy_serves_on_when_only_the_process_is_replaced(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    """What the process before told Envoy when it left is taken back: connections are kept again."""
    await gateway.applies(canary(team, *pods), {"v1": 90, "v2": 10})
    gateway.kill(signal.SIGTERM)
    status, headers, _ = await gateway.rig.post({"model": "support"})
    assert (status, headers.get("connection")) == (200, "close")
    gateway.start()
    await gateway.ready()
    status, headers, _ = await gateway.rig.post({"model": "support"})
    assert (status, headers.get("connection")) == (200, None)


async def test_all_namespaces_and_its_metrics(
    apiserver: ApiServer, team: Team, tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    canary(team, *pods)
    async with GatewayProcess(apiserver, tmp_path) as gateway:
        await gateway.applies(f"{team.namespace}/support", {"v1": 90, "v2": 10})
        await gateway.answered_by("support")
        page = await gateway.page()
        pushes = re.search(r"^tuneyard_gateway_pushes_total ([0-9.]+)$", page, re.MULTILINE)
        assert pushes
        assert float(pushes[1]) >= 1
        assert "tuneyard_gateway_refused_pushes 0.0" in page
        assert 'envoy_http_downstream_rq_xx{envoy_response_code_class="2"' in page
        assert await gateway.probe("/healthz") == 200


async def test_rights_come_later(
    apiserver: ApiServer, team: Team, tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    """The right to see a namespace's pods is bound after its first deployment; until then nothing else waits."""
    canary(team, *pods)
    token = limited_account(team)
    async with GatewayProcess(apiserver, tmp_path, token=token) as gateway:
        await gateway.ready()
        assert (await gateway.rig.post({"model": "support"}))[0] == 503
        may_see_pods(team)
        await gateway.applies(f"{team.namespace}/support", {"v1": 90, "v2": 10})


_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def limited_account(team: Team) -> str:
    """A token that may read Tuneyard's kinds and nothing else."""
    accounts = f"/api/v1/namespaces/{team.namespace}/serviceaccounts"
    team.api.request("POST", accounts, body={"metadata": {"name": "gateway"}})
    rule = {"apiGroups": [names.GROUP], "resources": ["*"], "verbs": ["get", "list", "watch"]}
    name = {"name": f"{team.namespace}-gateway"}
    team.api.request("POST", f"{_RBAC}/clusterroles", body={"metadata": name, "rules": [rule]})
    binding = {"metadata": name, "roleRef": {"kind": "ClusterRole", **name}, "subjects": [_account(team)]}
    team.api.request("POST", f"{_RBAC}/clusterrolebindings", body=binding)
    answer = team.api.request("POST", f"{accounts}/gateway/token", body={"spec": {"expirationSeconds": 3600}})
    return str(answer["status"]["token"])


def may_see_pods(team: Team) -> None:
    """As the operator does."""
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    path, metadata = f"{_RBAC}/namespaces/{team.namespace}", {"name": "gateway"}
    team.api.request("POST", f"{path}/roles", body={"metadata": metadata, "rules": [rule]})
    binding = {"metadata": metadata, "roleRef": {"kind": "Role", "name": "gateway"}, "subjects": [_account(team)]}
    team.api.request("POST", f"{path}/rolebindings", body=binding)


def _account(team: Team) -> dict[str, str]:
    return {"kind": "ServiceAccount", "name": "gateway", "namespace": team.namespace}
