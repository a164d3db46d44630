"""TLS between a gateway's Envoy and the fronts of model pods, both real: who is believed, and changes under traffic."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.builders import SETTINGS, base_model, deployment
from tests.builders import revision as revision_of
from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Mounted
from tests.contract.envoy import Front, Rig, engine_key, model, revision, validation_errors
from tests.contract.gateway_process import Fronted, GatewayProcess, Team, becomes, engine_name_of, eventually
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.agent.enginetold import VLLM, EngineTold
from tuneyard.agent.verify import _write_front
from tuneyard.api import names
from tuneyard.gateway.shadow import Pods, Question
from tuneyard.planning.children import pool_deployment
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.podcertificates import PERIOD, authority, pool_certificate
from tuneyard.planning.pools import pools_of
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.translate import model_resources

pytestmark = pytest.mark.envoy

MASTER, ANOTHER = b"0123456789abcdef0123456789abcdef", b"fedcba9876543210fedcba9876543210"
NAMESPACE, POOL = "default", "base"
BODY = {"model": "support", "messages": []}


def certificate(
    *, master: bytes = MASTER, namespace: str = NAMESPACE, pool: str = POOL, periods: int = 0
) -> dict[str, bytes]:
    """As the pool's Secret has it so many periods from now."""
    issued = pool_certificate(master, namespace, pool, datetime.now(UTC) + periods * PERIOD)
    return {"tls.crt": issued.certificate, "tls.key": issued.key}


def support(addresses: Iterable[str], *, tls: bool) -> ModelRoutes:
    found = revision("v1", 100)
    endpoints = tuple(Endpoint(address, f"pod-{n}", tls) for n, address in enumerate(addresses))
    return model("support", replace(found, endpoints=endpoints))


@pytest.fixture
async def engine() -> AsyncIterator[Upstream]:
    async with Upstream("engine") as running:
        yield running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "gateway").mkdir()
    async with Rig(tmp_path / "gateway", authority=authority(MASTER)) as running:
        yield running


async def handshakes(front: Front) -> int:
    return await front.envoy.stat("listener.127.0.0.1_[0-9]+.ssl.handshake")


async def test_a_front_takes_both_on_one_port(engine: Upstream, tmp_path: Path) -> None:
    """Probes and older gateways are plain, and remain so."""
    secret = Mounted(tmp_path / "secret", certificate())
    context = ssl.create_default_context(cadata=authority(MASTER))
    async with Front(tmp_path, engine.port, certificate=secret.path) as front, aiohttp.ClientSession() as session:
        async with session.get(f"http://{front.address}/health") as response:
            assert response.status == 200
        name = names.pod_server_name(NAMESPACE, POOL)
        ask = session.post(f"https://{front.address}/v1/completions", json=BODY, ssl=context, server_hostname=name)
        async with ask as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError, match="Hostname mismatch"):
            await session.get(
                f"https://{front.address}/health", ssl=context, server_hostname=f"other.{NAMESPACE}.tuneyard"
            )
        # what is refused without a key stays refused
        async with session.post(
            f"https://{front.address}/v1/load_lora_adapter", json={}, ssl=context, server_hostname=name
        ) as response:
            assert response.status == 404


async def test_what_pods_say_decides_and_a_change_costs_no_request(engine: Upstream, rig: Rig, tmp_path: Path) -> None:
    """Plain pods begin to say that they take TLS, get new certificates, and take it back, under traffic."""
    secret = Mounted(tmp_path / "secret", certificate())
    async with (
        Front(tmp_path, engine.port, "a", secret.path) as a,
        Front(tmp_path, engine.port, "b", secret.path) as b,
    ):
        fronts = [a, b]
        addresses = [front.address for front in fronts]
        await rig.serve(support(addresses, tls=False))
        load = Load(["support"], rate=80, body={"chunks": 4, "delay": 0.05}, max_seconds=60)
        async with Traffic(rig.url, load) as traffic:
            await traffic.wait_for(40)
            assert [await handshakes(front) for front in fronts] == [0, 0]
            for _ in range(3):
                await rig.serve(support(addresses, tls=True))
                await traffic.wait_for(40)
                await rig.serve(support(addresses, tls=False))
                await traffic.wait_for(40)
            # half of the pool has rolled
            half = support(addresses, tls=True)
            (found,) = half.revisions
            mixed = replace(found, endpoints=(found.endpoints[0], replace(found.endpoints[1], tls=False)))
            await rig.serve(replace(half, revisions=(mixed,)))
            before = await handshakes(b)
            await traffic.wait_for(40)
            assert await handshakes(b) == before
            await rig.serve(half)
            for periods in range(1, 4):
                updates = await _updates(a)
                secret.put(certificate(periods=periods - 3))
                await becomes(lambda was=updates: _changed(a, was), True, "the front has the new one")
                await traffic.wait_for(30)
        assert min([await handshakes(front) for front in fronts]) > 0
    assert traffic.summary().ok == len(traffic.records) > 300, traffic.summary()


async def _updates(front: Front) -> int:
    return await front.envoy.stat("listener.127.0.0.1_[0-9]+.server_ssl_socket_factory.ssl_context_update_by_sds")


async def _changed(front: Front, was: int) -> bool:
    return await _updates(front) > was


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param({"master": ANOTHER}, id="another installation's"),
        pytest.param({"pool": "other"}, id="another pool's"),
        pytest.param({"namespace": "other"}, id="another namespace's"),
        pytest.param({"periods": -9}, id="expired"),
        pytest.param({"periods": 9}, id="not yet valid"),
    ],
)
async def test_nothing_is_sent_to_whom_the_certificate_does_not_name(
    shown: dict[str, object], engine: Upstream, rig: Rig, tmp_path: Path
) -> None:
    """Neither the engine's key nor a prompt, by Envoy or by the process that mirrors; and not in plain text either."""
    wrong = Mounted(tmp_path / "wrong", certificate(**shown))  # type: ignore[arg-type]
    async with Front(tmp_path, engine.port, "front", wrong.path) as front:
        await rig.serve(support([front.address], tls=True))
        status, _, _ = await rig.post(BODY)
        assert status == 503
        found = [
            await rig.envoy.stat(f"cluster.default/md-support/v1/.*.ssl.fail_verify_{s}") for s in ("san", "error")
        ]
        assert sum(found) > 0
        pods = Pods(authority=authority(MASTER))
        question = Question("x", front.address, "/v1/completions", "key", b"{}", names.pod_server_name(NAMESPACE, POOL))
        assert await pods.ask(question) == "unreachable"
        assert not engine.received
        wrong.put(certificate())
        await becomes(lambda: _answers(rig), 200, "the right one is believed")
        came = await pods.ask(question)
        assert came is not None and not isinstance(came, str) and came.status == 200
        await pods.close()


async def _answers(rig: Rig) -> int:
    return (await rig.post(BODY))[0]


async def test_a_pod_without_tls_is_not_tried_with_it_and_one_with_it_not_without(
    engine: Upstream, rig: Rig, tmp_path: Path
) -> None:
    async with Front(tmp_path, engine.port, "plain") as front:
        await rig.serve(support([front.address], tls=True))
        assert await _answers(rig) == 503, "a pod that says TLS and has none gets nothing in plain text"
        assert not engine.received
        await rig.serve(support([front.address], tls=False))
        await becomes(lambda: _answers(rig), 200, "plain again")


async def test_a_pool_that_is_scaled_to_nothing_and_back_keeps_its_cluster(
    engine: Upstream, rig: Rig, tmp_path: Path
) -> None:
    secret = Mounted(tmp_path / "secret", certificate())
    async with Front(tmp_path, engine.port, certificate=secret.path) as front:
        for addresses in ((), (front.address,), (), (front.address,)):
            routes = support(addresses, tls=True)
            resources = model_resources(routes, engine_key, authority=authority(MASTER), tls_expected=True)
            rig.ads.put("support", resources)
            rig.ads.publish()
            await rig.envoy.ready()
            await becomes(lambda: _answers(rig), 200 if addresses else 503, f"pods are {addresses}")
        assert await rig.envoy.stat("cluster_manager.cluster_modified") == 0
        assert await handshakes(front) > 0


@pytest.mark.apiserver
async def test_a_gateway_derives_whom_to_believe(
    gateway: GatewayProcess, team: Team, engine: Upstream, tmp_path: Path
) -> None:
    """Nothing is handed to it but the master: a pool's pods roll from plain to TLS, users and mirrors alike."""
    pool = names.pool_name("tiny")
    secret = Mounted(tmp_path / "secret", certificate(namespace=team.namespace, pool=pool))
    team.make_adapter("v1")
    team.make_adapter("v2")
    async with Front(tmp_path, engine.port, certificate=secret.path) as front:
        pod = Fronted("pod", front.address)
        team.make_pod(pod, "v1", "v2")
        team.make_deployment("support", {"v1": 100}, revisions=["v1", "v2"], mirror={"revision": "v2", "percent": 100})
        await gateway.applies(f"{team.namespace}/support", {"v1": 100, "v2": 0})
        assert await gateway.answered_by("support") == engine_name_of("v1")
        assert await handshakes(front) == 0
        team.report(replace(pod, tls=True), "v1", "v2")

        async def encrypted() -> bool:
            await gateway.answered_by("support")
            return await handshakes(front) > 0

        await becomes(encrypted, True, "TLS is spoken")
        asked = engine.asked[engine_name_of("v2")]
        assert await gateway.answered_by("support") == engine_name_of("v1")
        await eventually(lambda: engine.asked[engine_name_of("v2")] > asked, "the copy has come too")
        connections = await front.envoy.stat("http.front.downstream_cx_ssl_total")
        assert connections >= 2, "Envoy's, and the mirroring process's"


@pytest.mark.apiserver
def test_a_real_api_server_takes_the_pods(team: Team, apiserver: ApiServer) -> None:
    base = base_model()
    (pool,) = pools_of(base, [deployment(revisions=[revision_of("v1")])])
    obj = pool_deployment(pool, base, SETTINGS.model_copy(update={"pod_tls": True}))
    obj["metadata"]["namespace"] = team.namespace
    text = json.dumps(obj)
    done = apiserver.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", [VLLM, EngineTold("llamaCpp", health_path="/ready")], ids=["guards", "guarded"])
def test_envoy_takes_the_front_s_configuration(tmp_path: Path, engine: EngineTold) -> None:
    _write_front(tmp_path / "front.yaml", "/etc/tuneyard-front", engine)
    assert not validation_errors(yaml.safe_load((tmp_path / "front.yaml").read_text()))
