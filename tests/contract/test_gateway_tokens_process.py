"""The gateway process where clients need tokens: policies of a real API server, signing keys from a mounted file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Mounted
from tests.contract.envoy import eventually
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.test_gateway_tenants import OLD, Vault, problems
from tests.fakes.upstream import Upstream
from tests.issuer import AUDIENCE, ISSUER, SigningKey, claims_of, jwks
from tests.traffic import Load, Traffic
from tuneyard.gateway.tokenoptions import token_options
from tuneyard.systems.envoy import tokens as envoy_tokens

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

FIRST, SECOND = SigningKey("first"), SigningKey("second", curve=True)
UNREADABLE = "tuneyard_gateway_signing_keys_unreadable"


@pytest.fixture
async def pod(team: Team) -> AsyncIterator[Upstream]:
    """The team's pod, which serves `support`."""
    async with Upstream("pod-a") as pod:
        team.make_adapter("v1")
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        yield pod


@pytest.fixture
def vault(team: Team) -> Vault:
    vault = Vault(team.api, team.namespace)
    vault.keys("acme-keys", "acme", old=OLD)
    vault.policy("acme", "acme", models="supp*")
    return vault


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    monkeypatch.setattr(envoy_tokens, "REFRESH_OWN", 1)
    return Mounted(tmp_path / "jwks", {"jwks.json": jwks(FIRST).encode()})


Run = Callable[..., AbstractAsyncContextManager[GatewayProcess]]


@pytest.fixture
def run(apiserver: ApiServer, team: Team, pod: Upstream, mounted: Mounted, tmp_path: Path) -> Run:
    """Runs a gateway in that mode; `more`: what else its environment says."""

    @asynccontextmanager
    async def running(mode: str, **more: str) -> AsyncIterator[GatewayProcess]:
        environment = {
            "TUNEYARD_AUTH": mode,
            "TUNEYARD_JWT_ISSUER": ISSUER,
            "TUNEYARD_JWT_AUDIENCES": json.dumps([AUDIENCE]),
            "TUNEYARD_JWT_JWKS_FILE": str(mounted.path / "jwks.json"),
            **more,
        }
        given = token_options(environment)
        assert given is not None
        settings = {"watchNamespaces": [team.namespace], "tuneyardNamespace": team.namespace}
        told: dict[str, Any] = {"environment": environment, "tokens": given.accepted}
        async with GatewayProcess(apiserver, tmp_path, settings=settings, **told) as gateway:
            await gateway.applies(f"{team.namespace}/support", {"v1": 100})
            assert pod.port
            yield gateway

    return running


async def status(gateway: GatewayProcess, token: str) -> int:
    return (await gateway.rig.post({"model": "support"}, headers={"authorization": f"Bearer {token}"}))[0]


async def gets(gateway: GatewayProcess, token: str, expected: int) -> None:
    await becomes(lambda: status(gateway, token), expected, f"it gets {expected}")


async def test_policies_hold_for_tokens_and_no_secret_is_read(run: Run, vault: Vault) -> None:
    async with run("Jwt") as gateway:
        await gets(gateway, FIRST.token(), 200)
        assert await status(gateway, OLD) == 401
        assert await status(gateway, FIRST.token(claims_of("beta"))) == 403
        vault.policy("beta", "beta", models="*")
        await gets(gateway, FIRST.token(claims_of("beta")), 200)
        vault.policy("beta", "beta", models="other")
        await gets(gateway, FIRST.token(claims_of("beta")), 404)
        vault.delete("configmaps", "beta")
        await gets(gateway, FIRST.token(claims_of("beta")), 403)
        # a tenant without a key is nothing to tell
        assert await problems(gateway) == {}
        kept = (gateway.folder / "tenants.jsonl").read_text()
        assert "acme" in kept and "secret" not in kept
        # whose feedback it is
        _, headers, _ = await gateway.rig.post(
            {"model": "support"}, headers={"authorization": f"Bearer {FIRST.token()}"}
        )
        body = {"request_id": headers["x-request-id"], "score": 1}
        for tenant, expected in (("nobody", 403), ("acme", 202)):
            shown = {"authorization": f"Bearer {FIRST.token(claims_of(tenant))}"}
            assert (await gateway.rig.post(body, path="/v1/feedback", headers=shown))[0] == expected


@pytest.mark.usefixtures("vault")
async def test_signing_keys_come_from_a_file_that_may_change_and_break(run: Run, mounted: Mounted) -> None:
    async with run("ApiKeysAndJwt") as gateway:
        await gets(gateway, OLD, 200)
        await gets(gateway, FIRST.token(), 200)
        load = Load(["support"], rate=50, headers={"authorization": f"Bearer {SECOND.token()}"})
        mounted.put({"jwks.json": jwks(FIRST, SECOND).encode()})
        await gets(gateway, SECOND.token(), 200)
        async with Traffic(gateway.url, load) as traffic:
            mounted.put({"jwks.json": jwks(SECOND).encode()})
            await gets(gateway, FIRST.token(), 401)
            mounted.put({"jwks.json": b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'})

            async def told() -> bool:
                return f"{UNREADABLE} 1.0" in await gateway.page()

            await becomes(told, True, "it is told")
            # Envoy goes on without the process, and with what the process before has given
            gateway.kill()
            assert await status(gateway, SECOND.token()) == 200
            gateway.start()
            await gateway.ready()
            await traffic.wait_for(20)
        assert traffic.summary().ok == len(traffic.records), traffic.summary()
        mounted.put({"jwks.json": jwks(FIRST).encode()})
        await gets(gateway, FIRST.token(), 200)
        await eventually(lambda: "a key that is not public" in gateway.log.read_text(), "it is logged")
        assert "c2VjcmV0" not in gateway.log.read_text()


async def test_a_cluster_is_an_issuer_and_its_namespaces_are_tenants(
    run: Run, vault: Vault, team: Team, mounted: Mounted
) -> None:
    """With tokens that a real API server gives to service accounts."""
    issuer = team.api.request("GET", "/.well-known/openid-configuration")["issuer"]
    shown = team.api.request("GET", "/openid/v1/jwks", accept="application/jwk-set+json")
    mounted.put({"jwks.json": json.dumps(shown).encode()})
    accounts = f"/api/v1/namespaces/{team.namespace}/serviceaccounts"
    team.api.request("POST", accounts, body={"metadata": {"name": "asker"}})

    def token(audience: str) -> str:
        body = {"spec": {"audiences": [audience], "expirationSeconds": 600}}
        return str(team.api.request("POST", f"{accounts}/asker/token", body=body)["status"]["token"])

    more = {"TUNEYARD_JWT_ISSUER": issuer, "TUNEYARD_JWT_CLAIM": "kubernetes.io.namespace"}
    async with run("ApiKeysAndJwt", **more) as gateway:
        await gets(gateway, token(AUDIENCE), 403)
        vault.policy("of-the-namespace", team.namespace, models="*")
        await gets(gateway, token(AUDIENCE), 200)
        assert await status(gateway, token("another-service")) == 401
        logged, tenant = gateway.rig.envoy.access_log, f'"tenant":"{team.namespace}"'
        await eventually(lambda: tenant in logged.read_text(), "whose requests they were is logged")
