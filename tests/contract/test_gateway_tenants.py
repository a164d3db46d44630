"""The gateway process with auth on: Secrets and ConfigMaps of a real API server, requests through a real Envoy."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.gateway_process import MASTER, GatewayProcess, Team, becomes, eventually
from tests.contract.test_gateway_process import come_back
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.api import names
from tuneyard.gate.asking import Asker, MisroutedError
from tuneyard.gate.asking import session as gate_session
from tuneyard.systems.kube.client import MERGE, Api

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

OLD, NEW, BETA, REVOKED = (f"sk-{name}-0123456789abcdef0123" for name in ("old", "new", "beta", "revoked"))


class Vault:
    """Secrets and ConfigMaps of tenants, in a namespace of their own beside the gateways'."""

    def __init__(self, api: Api, gateways: str) -> None:
        self.namespace = names.tenants_namespace(gateways)
        api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": self.namespace}})
        self._api, self._where = api, f"/api/v1/namespaces/{self.namespace}"

    def keys(self, name: str, tenant: str, **keys: str | None) -> None:
        """Make or change a Secret; None removes an entry."""
        data = {e: k if k is None else base64.b64encode(k.encode()).decode() for e, k in keys.items()}
        self._merge("secrets", name, tenant, data)

    def policy(self, name: str, tenant: str, **data: str | None) -> None:
        """Make or change a ConfigMap."""
        self._merge("configmaps", name, tenant, data)

    def _merge(self, plural: str, name: str, tenant: str, data: dict[str, Any]) -> None:
        metadata = {"name": name, "labels": {names.LABEL_TENANT: tenant}}
        listed = self._api.request("GET", f"{self._where}/{plural}")["items"]
        if name in {item["metadata"]["name"] for item in listed}:
            body = {"metadata": metadata, "data": data}
            self._api.request("PATCH", f"{self._where}/{plural}/{name}", body=body, content_type=MERGE)
        else:
            self._api.request("POST", f"{self._where}/{plural}", body={"metadata": metadata, "data": data})

    def delete(self, plural: str, name: str) -> None:
        self._api.request("DELETE", f"{self._where}/{plural}/{name}")


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


@pytest.fixture
def vault(team: Team) -> Vault:
    vault = Vault(team.api, team.namespace)
    vault.keys("acme-keys", "acme", old=OLD)
    vault.policy("acme", "acme", models="supp*")
    vault.keys("beta-keys", "beta", key=BETA)
    return vault


def gateway_of(server: ApiServer, team: Team, folder: Path, **more: Any) -> GatewayProcess:
    settings = {"watchNamespaces": [team.namespace], "tuneyardNamespace": team.namespace}
    return GatewayProcess(server, folder, settings=settings, keys=True, **more)


@pytest.fixture
async def gateway(
    apiserver: ApiServer, team: Team, vault: Vault, pod: Upstream, tmp_path: Path
) -> AsyncIterator[GatewayProcess]:
    """A gateway with auth on that serves `support` on the pod."""
    team.make_adapter("v1")
    team.make_pod(pod, "v1")
    team.make_deployment("support", {"v1": 100})
    async with gateway_of(apiserver, team, tmp_path) as running:
        await running.applies(f"{team.namespace}/support", {"v1": 100})
        yield running


async def status(gateway: GatewayProcess, key: str, model: str = "support") -> int:
    found, _, _ = await gateway.rig.post({"model": model}, headers={"authorization": f"Bearer {key}"})
    return found


async def code(gateway: GatewayProcess, key: str) -> str:
    _, _, body = await gateway.rig.post({"model": "support"}, headers={"x-api-key": key})
    return str(json.loads(body).get("error", {}).get("code"))


async def gets(gateway: GatewayProcess, key: str, expected: int, within: float = 20.0) -> None:
    await becomes(lambda: status(gateway, key), expected, f"the key gets {expected}", within)


async def problems(gateway: GatewayProcess) -> dict[str, int]:
    begin = 'tuneyard_gateway_tenant_problems{problem="'
    lines = [line.removeprefix(begin) for line in (await gateway.page()).splitlines() if line.startswith(begin)]
    return {line.partition('"')[0]: round(float(line.split()[-1])) for line in lines if not line.endswith(" 0.0")}


def assert_secret(gateway: GatewayProcess, page: str, *keys: str) -> None:
    """None of the keys is in a log, nor in what is measured."""
    texts = [page, *(path.read_text(errors="replace") for path in gateway.folder.glob("*.log"))]
    texts.append(gateway.rig.envoy.access_log.read_text())
    assert not [key for key in keys for text in texts if key in text]


async def test_tenants_call_what_they_may(gateway: GatewayProcess, vault: Vault, team: Team, pod: Upstream) -> None:
    assert await status(gateway, OLD) == 200
    assert await status(gateway, OLD, "other") == 404
    assert (await gateway.rig.post({"model": "support"}))[0] == 401
    assert await code(gateway, BETA) == "no_policy"
    await becomes(lambda: problems(gateway), {"NoPolicy": 1}, "it is told")
    vault.policy("beta", "beta", models="other")
    await gets(gateway, BETA, 404)
    assert (await gateway.rig.get("/v1/models", headers={"x-api-key": BETA}))[1]["data"] == []
    # a policy that cannot be read leaves the last one in force
    vault.policy("beta", "beta", models="support", typo="1")
    await becomes(lambda: problems(gateway), {"UnreadablePolicy": 1}, "it is told")
    assert await status(gateway, BETA) == 404
    vault.policy("beta", "beta", typo=None)
    await gets(gateway, BETA, 200)
    # one key of two tenants belongs to neither
    vault.keys("gamma-keys", "gamma", stolen=BETA)
    await gets(gateway, BETA, 401)
    await becomes(lambda: problems(gateway), {"SharedKey": 2, "NoPolicy": 1}, "it is told")
    vault.delete("secrets", "gamma-keys")
    await gets(gateway, BETA, 200)
    vault.delete("configmaps", "beta")
    await gets(gateway, BETA, 403)
    log = gateway.log.read_text()
    assert "beta (Secret beta-keys, key), gamma (Secret gamma-keys, stolen)" in log
    assert "ConfigMap beta: unknown entries typo" in log
    key = names.engine_key(MASTER, team.namespace, "tiny")
    assert {r.headers["authorization"] for r in pod.received} == {f"Bearer {key}"}
    assert {r.headers["x-tenant"] for r in pod.received} == {"acme", "beta"}
    assert_secret(gateway, await gateway.page(), OLD, BETA)


def test_the_command_shows_tenants_and_no_key(vault: Vault, apiserver: ApiServer) -> None:
    arguments = ("tenants", "-n", vault.namespace, "--kubeconfig", str(apiserver.kubeconfig()))
    command = [sys.executable, "-m", "tuneyard", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["acme", "acme-keys/old", lines[1][2], "supp*", "Normal", "-"] in lines
    assert "beta: NoPolicy" in done.stdout
    assert OLD not in done.stdout and BETA not in done.stdout
    vault.policy("beta", "beta", models="*")
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


async def test_a_rotation_loses_no_request_and_a_revoked_key_ends_within_a_second(
    gateway: GatewayProcess, vault: Vault
) -> None:
    def load(key: str) -> Load:
        return Load(
            ["support"], rate=100, headers={"authorization": f"Bearer {key}"}, body={"chunks": 3, "delay": 0.01}
        )

    async with Traffic(gateway.url, load(OLD)) as old:
        await old.wait_for(30)
        vault.keys("acme-keys", "acme", new=NEW)
        await gets(gateway, NEW, 200)
        async with Traffic(gateway.url, load(NEW)) as new:
            await new.wait_for(30)
            await old.stop()
            vault.keys("acme-keys", "acme", old=None)
            revoked = time.monotonic()
            await gets(gateway, OLD, 401, within=1.0)
            assert time.monotonic() - revoked < 1.0
            # into another Secret, and back
            vault.keys("more-keys", "acme", other=REVOKED)
            await gets(gateway, REVOKED, 200)
            await new.wait_for(30)
            vault.delete("secrets", "more-keys")
            await gets(gateway, REVOKED, 401, within=1.0)
            await new.wait_for(30)
    for traffic in (old, new):
        assert traffic.summary().ok == len(traffic.records) > 30, traffic.summary()
    assert_secret(gateway, await gateway.page(), OLD, NEW, REVOKED)


async def test_feedback_is_given_by_whom_the_answer_was_for(gateway: GatewayProcess, vault: Vault) -> None:
    vault.policy("beta", "beta", models="*")
    await gets(gateway, BETA, 200)
    _, headers, _ = await gateway.rig.post({"model": "support"}, headers={"x-api-key": OLD})

    async def rated(*shown: tuple[str, str]) -> int:
        body = {"request_id": headers["x-request-id"], "score": -1}
        return (await gateway.rig.post(body, path="/v1/feedback", headers=dict(shown)))[0]

    assert await rated() == 401
    assert await rated(("x-api-key", BETA), ("x-tenant", "acme"), ("x-tuneyard-tenant", "acme")) == 404
    assert await rated(("x-api-key", OLD)) == 202


async def test_gates_ask_their_model_and_no_other(gateway: GatewayProcess, team: Team, pod: Upstream) -> None:
    """With what they carry, and nothing that a tenant has."""
    team.make_adapter("v2")
    team.report(pod, "v1", "v2")
    steps = [{"weight": 5, "hold": "1h"}]
    gate = {"name": "speed", "benchmark": {"requests": 20, "concurrency": 4, "max": {"ttftP95": "1.5x"}}}
    rollout = {"mode": "Progressive", "steps": steps, "gates": [gate]}
    team.make_deployment("gated", {"v1": 0, "v2": 100}, rollout=rollout)
    team.rollout("gated", stable="v1", phase="Gating")
    await gateway.applies(f"{team.namespace}/gated", {"v1": 100, "v2": 0})
    token = names.gate_token(MASTER, team.namespace, "gated")
    async with gate_session(1) as session:
        asker = Asker(session, gateway.url, "gated", token, job="gated-gate-a")
        asker.is_at(1, 20)
        answer = await asker.ask("v2", {"messages": [{"role": "user", "content": "hello"}]})
        assert (answer.error, answer.served) == (None, True)
        with pytest.raises(MisroutedError, match="with 401: it does not know this gate"):
            await Asker(session, gateway.url, "gated", "not yet" * 8).ask("v2", {"prompt": "hello"})
    shown = {names.GATE_TOKEN_HEADER: token, names.REVISION_HEADER: "v2"}
    answered, headers, _ = await gateway.rig.post({"model": "gated"}, headers=shown)
    assert (answered, headers["x-revision"]) == (200, "v2")
    assert (await gateway.rig.post({"model": "support"}, headers=shown))[0] == 404
    # beside a tenant's key it is worth nothing
    answered, headers, _ = await gateway.rig.post({"model": "support"}, headers={**shown, "x-api-key": OLD})
    assert (answered, headers["x-revision"]) == (200, "v1")
    assert names.GATE_TOKEN_HEADER not in pod.received[-1].headers
    logged = [line["tenant"] for line in await gateway.rig.envoy.logged(5)]
    assert logged[-5:] == [names.GATE_TENANT, None, names.GATE_TENANT, names.GATE_TENANT, "acme"]
    for other in (names.gate_token(MASTER, team.namespace, "support"), "open", ""):
        assert (await gateway.rig.post({"model": "gated"}, headers={**shown, names.GATE_TOKEN_HEADER: other}))[0] == 401
    # without gates the token is worth nothing any more
    team.delete("modeldeployments", "gated")
    team.make_deployment("gated", {"v1": 100})
    await gateway.serves(f"{team.namespace}/gated", lambda found: found.weights == {"v1": 100})

    async def refused() -> int:
        return (await gateway.rig.post({"model": "gated"}, headers=shown))[0]

    await becomes(refused, 401, "the token is worth nothing")
    assert_secret(gateway, await gateway.page(), shown[names.GATE_TOKEN_HEADER])


async def test_without_the_api_server_old_and_new_processes_know_the_keys(pod: Upstream, tmp_path: Path) -> None:
    """Also where Envoy begins anew: from the snapshot, which nobody else may read."""
    with ApiServer() as server:
        server.install_crds()
        own = Team(server, "own")
        own.make_base()
        own.make_adapter("v1")
        own.make_pod(pod, "v1")
        own.make_deployment("support", {"v1": 100})
        keys = Vault(own.api, own.namespace)
        keys.keys("acme-keys", "acme", old=OLD)
        keys.policy("acme", "acme", models="support")
        async with gateway_of(server, own, tmp_path) as gateway:
            await gateway.applies("own/support", {"v1": 100})
            keys.keys("acme-keys", "acme", new=NEW, revoked=REVOKED)
            await gets(gateway, NEW, 200)
            keys.keys("acme-keys", "acme", revoked=None)
            await gets(gateway, REVOKED, 401)
            kept = gateway.folder / "tenants.jsonl"
            encoded = [base64.b64encode(key.encode()).decode() for key in (NEW, REVOKED)]
            await eventually(
                lambda: [text in kept.read_text() for text in encoded] == [True, False], "the snapshot is the newest"
            )
            assert stat.S_IMODE(kept.stat().st_mode) == 0o600
            assert NEW not in (gateway.folder / "world.jsonl").read_text()
            server.stop()
            load = Load(["support"], rate=50, headers={"authorization": f"Bearer {NEW}"})
            async with Traffic(gateway.url, load) as traffic:
                gateway.kill()
                gateway.start()
                await gateway.ready()
                await traffic.wait_for(50)
            assert traffic.summary().ok == len(traffic.records), traffic.summary()
            for key, expected in ((OLD, 200), (NEW, 200), (REVOKED, 401)):
                assert await status(gateway, key) == expected
            gateway.kill()
            gateway.rig.envoy.stop()
            gateway.start()
            gateway.rig.envoy.start()
            await gateway.ready()
            for key, expected in ((OLD, 200), (NEW, 200), (REVOKED, 401)):
                assert await status(gateway, key) == expected
            # and what the API server says when it is there again replaces it
            assert "tuneyard_gateway_tenant_keys 2.0" in await gateway.page()
            come_back(server)
            keys.keys("acme-keys", "acme", old=None)
            await gets(gateway, OLD, 401)
            assert await status(gateway, NEW) == 200
            assert_secret(gateway, await gateway.page(), OLD, NEW, REVOKED)


async def test_a_process_that_knows_no_keys_takes_none_away(
    gateway: GatewayProcess, team: Team, vault: Vault, apiserver: ApiServer
) -> None:
    """One that may not read Secrets (yet) tells Envoy nothing, rather than that nobody may."""
    gateway.kill(signal.SIGKILL)
    (gateway.folder / "tenants.jsonl").unlink()
    config = gateway._environment["KUBECONFIG"]
    gateway._environment["KUBECONFIG"] = str(apiserver.kubeconfig("nobody"))
    gateway.start()
    await becomes(lambda: gateway.probe("/healthz"), 200, "the process runs")
    await eventually(lambda: "cannot follow" in gateway.log.read_text(), "it is refused")
    for _ in range(30):
        assert await status(gateway, OLD) == 200
        await asyncio.sleep(0.01)
    assert await gateway.probe() == 503
    gateway.kill()
    gateway._environment["KUBECONFIG"] = config
    gateway.start()
    await gateway.ready()
    assert await status(gateway, OLD) == 200
