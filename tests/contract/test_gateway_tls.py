"""TLS for clients, with the real Envoy: certificates come and go under traffic, and nobody is let in by mistake."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Authority, Mounted
from tests.contract.envoy import Rig, eventually, model, revision, validation_errors
from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.contract.ports import free_port
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.api import names
from tuneyard.gateway.certificate import expiry
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.bootstrap import bootstrap
from tuneyard.systems.envoy.documents import BODY_LIMIT
from tuneyard.systems.envoy.tls import Tls, sources
from tuneyard.systems.envoy.translate import model_resources

pytestmark = pytest.mark.envoy

TOKEN = "the-gates-token"
BODY = {"model": "support", "messages": []}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod") as running:
        yield running


def speaking(tmp_path: Path, secret: Mounted, **more: Any) -> Tls:
    return Tls(port=free_port(), certificate=str(secret.path), sources=str(tmp_path), secret="gateway-tls", **more)


def support(pod: Upstream) -> ModelRoutes:
    return model("support", revision("v1", 100, [pod.address]))


async def served(rig: Rig, pod: Upstream) -> None:
    await rig.serve(support(pod))


async def ask(tls: Tls, context: ssl.SSLContext, **more: Any) -> int:
    """Status of a request on a connection of its own; raises what a client library does."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"https://127.0.0.1:{tls.port}/v1/chat/completions", json=BODY, ssl=context, **more) as response,
    ):
        await response.read()
        return response.status


async def refused(tls: Tls, context: ssl.SSLContext) -> str:
    """Why no request came to be."""
    with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)) as caught:
        await ask(tls, context)
    return f"{type(caught.value).__name__}: {caught.value}"


async def shown_until(rig: Rig) -> float | None:
    return expiry(await rig.envoy.admin("/certs"))


async def curl(tls: Tls, authority: Authority, *arguments: str, body: bytes = b"") -> tuple[str, str]:
    """HTTP version and status."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--cacert", str(authority.path), "--output", "/dev/null", "--data-binary", "@-"),
        *("--write-out", "%{http_version} %{http_code}", "--header", "content-type: application/json"),
        *(*arguments, f"https://127.0.0.1:{tls.port}/v1/chat/completions"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate(body or json.dumps(BODY).encode())
    version, status = out.decode().split()
    return version, status


async def test_clients_choose_their_protocol(authority: Authority, pod: Upstream, tmp_path: Path) -> None:
    tls = speaking(tmp_path, Mounted(tmp_path / "secret", authority.issue("first")))
    async with Rig(tmp_path, tls=tls) as rig:
        await served(rig, pod)
        assert await curl(tls, authority, "--http2") == ("2", "200")
        assert await curl(tls, authority, "--http1.1") == ("1.1", "200")
        assert await curl(tls, authority, "--tlsv1.2", "--tls-max", "1.2") == ("2", "200")
        weak = ("--tls-max", "1.2", "--ciphers", "AES128-SHA:@SECLEVEL=0")
        assert await curl(tls, authority, *weak) == ("0", "000")
        assert await curl(tls, authority, "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0") == ("0", "000")
        # the same chain as without TLS: bodies as large, refusals in the same shape, the same model in the body
        large = json.dumps({**BODY, "pad": "x" * (BODY_LIMIT - 1000)}).encode()
        assert await curl(tls, authority, "--http2", body=large) == ("2", "200")
        assert len(pod.received[-1].body) > BODY_LIMIT - 1000
        assert (await curl(tls, authority, "--http2", body=large + b" " * 2000))[1] == "413"
        # and the plain port is there as before
        assert (await rig.post(BODY))[0] == 200
    newest = {"min_version": "1.3"}
    (tmp_path / "other").mkdir()
    strict = speaking(tmp_path / "other", Mounted(tmp_path / "other" / "secret", authority.issue("second")), **newest)
    async with Rig(tmp_path / "other", tls=strict) as rig:
        await served(rig, pod)
        assert await curl(strict, authority) == ("2", "200")
        assert await curl(strict, authority, "--tls-max", "1.2") == ("0", "000")


async def test_a_new_certificate_costs_no_request(authority: Authority, pod: Upstream, tmp_path: Path) -> None:
    """Kept connections and new ones, while the Secret changes ten times; a broken one in between changes nothing."""
    secret = Mounted(tmp_path / "secret", authority.issue("first"))
    tls, context = speaking(tmp_path, secret), authority.trusted()
    url = f"https://127.0.0.1:{tls.port}"
    body = {"chunks": 4, "delay": 0.05}
    kept = Load(["support"], rate=60, tls=context, body=body, max_seconds=60)
    async with Rig(tmp_path, tls=tls) as rig:
        await served(rig, pod)
        begin = await shown_until(rig)
        fresh = replace(kept, fresh_connections=True)
        async with Traffic(url, kept) as old, Traffic(url, fresh) as new:
            for days in range(2, 12):
                await new.wait_for(10)
                issued = authority.issue(f"for-{days}", days=days)
                secret.put({**issued, "tls.key": authority.issue("other")["tls.key"]})
                await _refusals(rig, days - 1)
                assert begin is not None and await shown_until(rig) == begin, "what was good goes on"
                secret.put(issued)
                begin = await _next_expiry(rig, begin)
                assert abs(begin - time.time() - days * 86400) < 300
            await new.wait_for(20)
            await old.wait_for(20)
    for traffic in (old, new):
        assert traffic.summary().ok == len(traffic.records) > 100, traffic.summary()


async def _next_expiry(rig: Rig, before: float) -> float:
    async def changed() -> bool:
        return await shown_until(rig) != before

    await becomes(changed, True, "Envoy shows another certificate")
    found = await shown_until(rig)
    assert found is not None
    return found


async def _refusals(rig: Rig, count: int) -> None:
    """Until Envoy has refused so many certificates after its first."""
    await becomes(lambda: rig.envoy.stat("sds.certificate.key_rotation_failed"), count, "refused certificates")


async def test_who_does_not_believe_it_sends_nothing(authority: Authority, pod: Upstream, tmp_path: Path) -> None:
    tls = speaking(tmp_path, Mounted(tmp_path / "secret", authority.issue("first")))
    other = Authority(tmp_path, "theirs")
    async with Rig(tmp_path, tls=tls) as rig:
        await served(rig, pod)
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(tls, other.trusted())
        assert not pod.received
        assert await ask(tls, authority.trusted()) == 200


async def test_an_expired_certificate_is_the_clients_to_refuse(
    authority: Authority, pod: Upstream, tmp_path: Path
) -> None:
    secret = Mounted(tmp_path / "secret", authority.issue("old", days=-1))
    tls = speaking(tmp_path, secret)
    async with Rig(tmp_path, tls=tls) as rig:
        await served(rig, pod)
        assert "expired" in await refused(tls, authority.trusted())
        until = await shown_until(rig)
        assert until is not None and until < time.time()
        secret.put(authority.issue("new"))
        await _next_expiry(rig, until)
        assert await ask(tls, authority.trusted()) == 200


async def test_only_clients_with_a_certificate(authority: Authority, pod: Upstream, tmp_path: Path) -> None:
    """Their authority is replaced without a restart, too."""
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    ca = Mounted(tmp_path / "ca", {"ca.crt": clients.path.read_bytes()})
    secret = Mounted(tmp_path / "secret", authority.issue("first"))
    tls = speaking(tmp_path, secret, client_ca=str(ca.path), plain=False)
    ours, theirs = authority.trusted(clients.issue("app")), authority.trusted(others.issue("app"))
    async with Rig(tmp_path, tls=tls) as rig:
        await served(rig, pod)
        # what the client sees is a matter of moments: an alert, or a connection that is gone while it writes
        for context, why in ((authority.trusted(), "no_cert"), (theirs, "error")):
            await refused(tls, context)
            assert await rig.envoy.stat(rf"listener\..*\.ssl\.fail_verify_{why}") == 1
        assert not pod.received
        assert await ask(tls, ours, headers={"x-forwarded-client-cert": "By=me"}) == 200
        assert "x-forwarded-client-cert" not in pod.received[-1].headers
        ca.put({"ca.crt": others.path.read_bytes()})
        await becomes(lambda: _status(tls, theirs), 200, "the other authority is believed")
        assert await _status(tls, ours) == 0


async def _status(tls: Tls, context: ssl.SSLContext) -> int:
    try:
        return await ask(tls, context)
    except (aiohttp.ClientError, ConnectionError, ssl.SSLError):
        return 0


async def test_without_plain_http_its_port_is_for_gates(authority: Authority, pod: Upstream, tmp_path: Path) -> None:
    """And for nobody who only says so: the route compares the token."""
    tls = speaking(tmp_path, Mounted(tmp_path / "secret", authority.issue("first")), plain=False)
    routes = replace(support(pod), gated=True)
    async with Rig(tmp_path, tls=tls) as rig:
        await rig.serve(support(pod))
        rig.ads.put("support", model_resources(routes, lambda *_: "key", lambda *_: TOKEN))
        rig.ads.publish()
        await eventually(lambda: rig.ads.complete, "the gates' routes are there")
        gate = {names.GATE_TOKEN_HEADER: TOKEN, names.REVISION_HEADER: "v1"}
        assert (await rig.post(BODY, headers=gate))[0] == 200
        assert (await rig.post({**BODY}, path="/v1/completions", headers=gate))[0] == 200
        told = len(pod.received)
        lies: tuple[dict[str, str], ...] = (
            {},
            {names.REVISION_HEADER: "v1"},
            {names.GATE_TOKEN_HEADER: TOKEN},
            {**gate, names.GATE_TOKEN_HEADER: "no"},
        )
        for headers in lies:
            status, _, body = await rig.post(BODY, headers=headers)
            assert (status, json.loads(body)["error"]["code"]) == (403, "https_required"), headers
        for path in ("/v1/feedback", "/v1/embeddings", "/v1/chat/completions/", "/"):
            assert (await rig.post({"request_id": "x", "score": 1}, path=path, headers=gate))[0] in (403, 404), path
        assert (await rig.get("/v1/models"))[0] == 403
        # what the scripts refuse keeps their words
        status, _, body = await rig.post(b'{"model": "a", "model": "b"}', headers=gate)
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
        assert len(pod.received) == told
        page = await rig.envoy.admin("/stats/prometheus?usedonly")
        assert 'envoy_http_rbac_denied{envoy_http_conn_manager_prefix="gateway"}' not in page, "a failed script's"
        assert await ask(tls, authority.trusted()) == 200


@pytest.mark.apiserver
async def test_the_process_says_what_there_is(
    apiserver: ApiServer, team: Team, authority: Authority, pod: Upstream, tmp_path: Path
) -> None:
    """Not ready before there is a certificate; then for as long as it lives, by a metric to alert on."""
    secret = Mounted(tmp_path / "secret", {"tls.crt": b"nonsense", "tls.key": authority.issue("x")["tls.key"]})
    tls = speaking(tmp_path, secret)
    team.make_adapter("v1")
    team.make_pod(pod, "v1")
    team.make_deployment("support", {"v1": 100})
    settings = {"watchNamespaces": [team.namespace]}
    async with GatewayProcess(apiserver, tmp_path, settings=settings, tls=tls) as gateway:
        await eventually(lambda: "not ready: Envoy has no certificate" in gateway.log.read_text(), "it is said")
        assert "(Secret gateway-tls)" in gateway.log.read_text()

        async def fed() -> bool:
            return "tuneyard_gateway_models 1.0" in await gateway.page()

        await becomes(fed, True, "all else is there")
        assert await gateway.probe() == 503
        assert await _expires(gateway) == 0.0
        assert "Failed to load certificate chain" in gateway.rig.envoy.log.read_text()
        secret.put(authority.issue("good", days=3))
        await gateway.ready()
        assert 2.9 * 86400 < await _expires(gateway) <= 3 * 86400
        secret.put({"tls.crt": b"", "tls.key": b""})
        await _refusals(gateway.rig, 1)
        assert await gateway.probe() == 200
        failed = 'envoy_sds_key_rotation_failed{envoy_xds_resource_name="certificate"} 1'
        assert failed in await gateway.page(), "docs/howto/expose-the-gateway.md"
        assert await ask(tls, authority.trusted()) == 200
        key = authority.issue("leak")["tls.key"].decode().splitlines()[1]
        secret.put(authority.issue("last"))
        assert key not in gateway.log.read_text() + gateway.rig.envoy.log.read_text() + await gateway.page()


async def _expires(gateway: GatewayProcess) -> float:
    found = re.search(r"^tuneyard_gateway_certificate_expires_seconds (\S+)$", await gateway.page(), re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("more", [{}, {"plain": False}, {"plain": False, "client_ca": "/etc/ca", "min_version": "1.3"}])
def test_envoy_takes_what_is_written(more: dict[str, Any], tmp_path: Path) -> None:
    tls = Tls(port=8443, certificate="/etc/tls", sources=str(tmp_path), **more)
    for path, content in sources(tls).items():
        Path(path).write_text(json.dumps(content))
    assert not validation_errors(bootstrap("x", tls=tls, requests="/dev/null"))
