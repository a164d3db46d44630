"""What a real Envoy does with tokens in the place of keys: who gets in, and what nobody can pretend."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from monitoring import outside
from tests.contract.certificates import Authority
from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.gateway_process import becomes
from tests.contract.test_gateway_keys import put_keys
from tests.contract.test_gateway_routing import assert_openai_error
from tests.fakes.upstream import Upstream
from tests.issuer import AUDIENCE, ISSUER, JwksServer, SigningKey, by_secret, claims_of, jwks, unsigned
from tests.traffic import Load, Traffic
from tuneyard.api import names
from tuneyard.planning.tenants import NAME_MARK, Caller, Policy
from tuneyard.systems.envoy import tokens as envoy_tokens
from tuneyard.systems.envoy.tenancy import gate_caller, shard_of, shard_resources
from tuneyard.systems.envoy.tokens import Tokens

pytestmark = pytest.mark.envoy

RSA, EC, FORGED = SigningKey("rsa"), SigningKey("ec", curve=True), SigningKey("rsa")
KEY, LIKE_A_TOKEN = "sk-beta-0123456789abcdef", "looks0123456789.like.a-token"
CALLERS = {
    NAME_MARK + "acme": Caller("acme", Policy(("chat",))),
    KEY: Caller("beta", Policy(("*",))),
    LIKE_A_TOKEN: Caller("beta", Policy(("*",))),
}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


@pytest.fixture
async def issuer() -> AsyncIterator[JwksServer]:
    async with JwksServer(RSA, EC) as server:
        yield server


@asynccontextmanager
async def serving(
    folder: Path, pod: Upstream, uri: str, *, claim: str = "tenant", keys: bool = False, ca: str = "", **more: Any
) -> AsyncIterator[Rig]:
    """A gateway that takes the issuer's tokens, and keys where asked, and has two models."""
    accepted = Tokens(ISSUER, (AUDIENCE, "another"), claim, uri, ca, keys_too=keys)
    async with Rig(folder, tokens=accepted, **more) as rig:
        put_keys(rig, CALLERS)
        await rig.serve(*(model(name, revision("v1", 100, [pod.address])) for name in ("chat", "support")))
        yield rig


async def asked(rig: Rig, headers: Mapping[str, str], model: str = "chat", path: str = "/v1/completions") -> int:
    return (await rig.post({"model": model}, headers=headers, path=path))[0]


async def refusal(rig: Rig, headers: Mapping[str, str]) -> tuple[int, str]:
    status, _, answer = await rig.post({"model": "chat"}, headers=headers)
    return status, json.loads(answer)["error"]["code"]


async def test_who_gets_in(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    now = int(time.time())
    good = (
        RSA.token(),
        EC.token(),
        RSA.token(kid=None),
        RSA.token(claims_of(aud=["x", "another"])),
        RSA.token(claims_of(exp=now - 30)),  # clocks differ
        RSA.token(claims_of(nbf=now + 30)),
    )
    bad = {
        RSA.token(claims_of(exp=now - 90)): ("token_expired", "has expired"),
        RSA.token(claims_of(nbf=now + 90)): ("invalid_token", "not valid yet"),
        RSA.token(claims_of(exp=None)): ("invalid_token", "does not say when it ends"),
        RSA.token(claims_of(aud="other")): ("invalid_token", "(aud)"),
        RSA.token(claims_of(aud=None)): ("invalid_token", "(aud)"),
        RSA.token(claims_of(iss=ISSUER + "/")): ("invalid_token", "(iss)"),
        RSA.token(claims_of(iss=None)): ("invalid_token", "(iss)"),
        FORGED.token(): ("invalid_token", "not signed by its issuer"),
        FORGED.token(kid=None): ("invalid_token", "not signed by its issuer"),
        RSA.token(kid="ec"): ("invalid_token", "no key"),
        RSA.token(kid="../../dev/null"): ("invalid_token", "no key"),
        RSA.token(alg="ES256"): ("invalid_token", "no key"),
        RSA.token(alg="RS512"): ("invalid_token", "no key"),
        unsigned({"alg": "none"}, claims_of()) + ".": ("invalid_token", "not valid"),
        unsigned({"alg": "none"}, claims_of()): ("invalid_token", "not valid"),
        unsigned({"alg": "RS256", "kid": "rsa"}, claims_of()) + ".": ("invalid_token", "not valid"),
        by_secret(RSA.pem()): ("invalid_token", "no key"),
        by_secret(RSA.pem(), kid="rsa"): ("invalid_token", "no key"),
        by_secret(b"", kid="rsa", jwk={"kty": "oct", "k": ""}): ("invalid_token", "no key"),
        FORGED.token(jwk=FORGED.jwk(), jku="http://localhost/keys"): ("invalid_token", "not signed by its issuer"),
        RSA.token()[:-4]: ("invalid_token", "not signed by its issuer"),
        "x": ("invalid_token", "not valid"),
        KEY: ("invalid_token", "not valid"),
        RSA.token(claims_of(None)): ("no_tenant", "names no tenant (claim tenant)"),
        RSA.token(claims_of("nobody")): ("no_policy", "The tenant nobody has no policy"),
    }
    async with serving(tmp_path, pod, issuer.uri) as rig:
        for token in good:
            assert await asked(rig, bearer(token)) == 200
        assert {r.headers["x-tenant"] for r in pod.received} == {"acme"}
        for token, (code, words) in bad.items():
            status, _, answer = await rig.post({"model": "chat"}, headers=bearer(token))
            assert status == (403 if code.startswith("no_") else 401), (token, answer)
            error = assert_openai_error(answer, code=code)
            assert words in str(error["message"]), token
        measured = await rig.envoy.admin("/stats/prometheus")
        assert {line.partition("{")[0] for line in measured.splitlines()} >= outside.ENVOY_TOKENS
        # what a policy says holds for tokens too
        assert await asked(rig, bearer(RSA.token()), "support") == 404
        listed = await rig.get("/v1/models", headers=bearer(RSA.token()))
        assert (listed[0], [m["id"] for m in listed[1]["data"]]) == (200, ["chat"])
        assert len(pod.received) == len(good)
        await assert_silent(rig, pod)


async def assert_silent(rig: Rig, pod: Upstream) -> None:
    """No engine and no log has seen a token, or what else stands in one."""
    engine = {"Bearer key-of-default-base"}
    assert {r.headers["authorization"] for r in pod.received} <= engine
    texts = [json.dumps(dict(r.headers)) for r in pod.received]
    texts += [rig.envoy.log.read_text(), rig.envoy.access_log.read_text()]
    assert not [text for text in texts if "user-1" in text or RSA.token()[:20] in text]


async def test_claims_stay_where_they_are(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    """What Envoy tells of requests, to its output and to the gateway process, has none of them."""
    async with serving(tmp_path, pod, issuer.uri) as rig:
        for claims in (claims_of(), claims_of("nobody"), claims_of(None), claims_of(exp=1)):
            await asked(rig, bearer(RSA.token(claims)))
        two = [("authorization", f"Bearer {token}") for token in (FORGED.token(), RSA.token())]
        async with rig.session.post("/v1/completions", json={"model": "chat"}, headers=two) as response:
            assert response.status == 401
        lines = await rig.lines(5)
        told = "".join(map(str, lines)) + json.dumps(await rig.envoy.logged(5))
    assert [line.tenant for line in lines].count("acme") == 1
    assert "user-1" not in told and ISSUER not in told and RSA.token()[:20] not in told


async def test_one_token_in_one_place(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    token, beta = RSA.token(), RSA.token(claims_of("beta"))
    async with serving(tmp_path, pod, issuer.uri) as rig:
        for shown in ({"authorization": f"bearer  {token}"}, bearer(token) | {"x-api-key": KEY}):
            assert await asked(rig, shown) == 200
        spoofed = {"x-tenant": "beta", "x-tuneyard-tenant": "beta", "x-model": "support", "x-tuneyard-allowed": ",, *"}
        assert await asked(rig, bearer(token) | spoofed) == 200
        assert {r.headers["x-tenant"] for r in pod.received} == {"acme"}
        for shown in (
            {}, {"authorization": token}, {"authorization": f"Basic {token}"},
            {"authorization": f"Basic Bearer {token}"},
            {"authorization": f"Bearer {token},{token}"}, {"authorization": f"Bearer {token}, Bearer {beta}"},
            {"authorization": f"Bearer {token} x"}, {"authorization": f"Bearer bearer {token}"},
            {"x-api-key": token}, {"api-key": token}, {"cookie": f"access_token={token}"}, {"tuneyard-gate": token},
            {"x-api-key": KEY}, {"x-api-key": NAME_MARK + "acme"}, {"tuneyard-gate": NAME_MARK + "acme"},
            bearer(NAME_MARK + "acme"), {"authorization": "Bearer    acme"},
            {"x-tuneyard-claims": json.dumps(claims_of())},
        ):  # fmt: skip
            assert await asked(rig, shown) == 401, shown
        for query in (f"access_token={token}", f"token={token}"):
            assert await asked(rig, {}, path=f"/v1/completions?{query}") == 401
        # two headers, whichever of them is good
        for two in ((token, FORGED.token()), (FORGED.token(), token), (token, token), (token, beta)):
            headers = [("authorization", f"Bearer {one}") for one in two]
            async with rig.session.post("/v1/completions", json={"model": "chat"}, headers=headers) as response:
                assert response.status == 401
        assert len(pod.received) == 3
        await assert_silent(rig, pod)


NAMED: list[tuple[str, dict[str, Any]]] = [
    ("https://example.com/tenant", {"https://example.com/tenant": "acme"}),
    ("org.tenant", {"org": {"tenant": "acme"}}),
    ("org.tenant", {"org.tenant": "acme", "org": {"tenant": "beta"}}),
    ("kubernetes.io.namespace", {"kubernetes.io": {"namespace": "acme"}, "kubernetes": "beta"}),
    ("a.b.c.d", {"a": {"b": {"c": {}}}, "a.b": {"c.d": "acme"}}),
]
NAMELESS: list[tuple[str, dict[str, Any]]] = [
    ("org.tenant", {"org": "acme"}),
    ("org.tenant", {"org": ["acme"]}),
    ("org", {"org": ["acme"]}),
    ("org", {"org": {"acme": True}}),
    ("org", {"org": True}),
    ("org", {"org": 7}),
    ("org", {"org": ""}),
    ("org", {"org": "Acme"}),
    ("org", {"org": "acme ,chat, "}),
    ("org", {"org": "x\n   acme"}),
    ("org", {"org": "acme\0"}),
    ("org", {"org": "a" * 64}),
    ("org", {"org": names.GATE_TENANT}),
]


@pytest.mark.parametrize(("claim", "claims"), NAMED)
async def test_where_the_tenant_stands(
    tmp_path: Path, pod: Upstream, issuer: JwksServer, claim: str, claims: dict[str, object]
) -> None:
    async with serving(tmp_path, pod, issuer.uri, claim=claim) as rig:
        assert await asked(rig, bearer(RSA.token(claims_of(None, **claims)))) == 200
        assert [r.headers["x-tenant"] for r in pod.received] == ["acme"]


async def test_what_names_no_tenant(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    for number, claim in enumerate(sorted({claim for claim, _ in NAMELESS})):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with serving(folder, pod, issuer.uri, claim=claim) as rig:
            for claims in [claims for one, claims in NAMELESS if one == claim]:
                assert await refusal(rig, bearer(RSA.token(claims_of(None, **claims)))) == (403, "no_tenant"), claims
    assert not pod.received


async def test_keys_beside_tokens(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    async with serving(tmp_path, pod, issuer.uri, keys=True) as rig:
        for shown in (bearer(KEY), {"x-api-key": KEY}, bearer(LIKE_A_TOKEN), bearer(RSA.token())):
            assert await asked(rig, shown) == 200, shown
        assert [r.headers["x-tenant"] for r in pod.received] == ["beta", "beta", "beta", "acme"]
        assert await refusal(rig, bearer(KEY + "x")) == (401, "invalid_api_key")
        assert await refusal(rig, {}) == (401, "invalid_api_key")
        assert await refusal(rig, bearer(RSA.token(claims_of(exp=1)))) == (401, "token_expired")
        assert await refusal(rig, bearer(FORGED.token())) == (401, "invalid_token")
        # a token that is no good does not become the key beside it
        assert await refusal(rig, bearer(FORGED.token()) | {"x-api-key": KEY}) == (401, "invalid_token")


async def test_gates_come_as_ever(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    token = "gate-token-0123456789abcdef"
    async with serving(tmp_path, pod, issuer.uri) as rig:
        rig.ads.put(shard_of(token), shard_resources(shard_of(token), {token: gate_caller("chat")}))
        await rig.serve(model("chat", revision("v1", 100, [pod.address]), header=True))
        shown = {names.GATE_TOKEN_HEADER: token, names.REVISION_HEADER: "v1"}
        assert await asked(rig, shown) == 200
        assert await asked(rig, shown | bearer(RSA.token())) == 200
        assert [r.headers["x-tenant"] for r in pod.received] == [names.GATE_TENANT, "acme"]
        for wrong in ({names.GATE_TOKEN_HEADER: token}, shown | {"x-api-key": KEY}, shown | bearer("x")):
            assert await asked(rig, wrong) == 401


async def test_an_issuer_that_is_away_keeps_out_tokens_alone_and_nobody_that_was_known(
    tmp_path: Path, pod: Upstream, issuer: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy_tokens, "REFRESH", 1)
    await issuer.stop()
    failed = "http.gateway.jwt_authn.jwks_fetch_failed"
    async with serving(tmp_path, pod, issuer.uri, keys=True) as rig:
        status, headers, answer = await rig.post({"model": "chat"}, headers=bearer(RSA.token()))
        assert (status, headers["retry-after"]) == (503, "5")
        assert_openai_error(answer, code="unavailable", kind="server_error")
        assert await asked(rig, bearer(KEY)) == 200
        assert await asked(rig, bearer(RSA.token(claims_of(exp=1)))) == 401
        # several at once, of which each would ask the issuer
        two = [("authorization", f"Bearer {RSA.token()}"), ("authorization", f"Bearer {EC.token()}")]
        for _ in range(3):
            async with rig.session.post("/v1/completions", json={"model": "chat"}, headers=two) as response:
                assert response.status in (401, 503)
        assert await asked(rig, bearer(KEY)) == 200, "Envoy lives"
        issuer.text = "<html>an error page</html>"
        await issuer.start()
        assert await refusal(rig, bearer(RSA.token())) == (503, "unavailable")
        issuer.text = jwks(RSA, EC)
        await becomes(lambda: asked(rig, bearer(RSA.token())), 200, "it is asked again")
        await becomes(lambda: asked(rig, bearer(EC.token())), 200, "it is asked again")

        async def fails_again() -> bool:
            return await rig.envoy.stat(failed) > before

        async def known() -> bool:
            # from what is fetched in advance, not for this request: that is forgotten after REFRESH
            return await rig.envoy.stat("http.gateway.jwt_authn.jwks_fetch_success") >= 3

        await becomes(known, True, "it was asked in advance")
        for outage in ("away", "nonsense"):
            before = await rig.envoy.stat(failed)
            if outage == "away":
                await issuer.stop()
            else:
                issuer.text = "{}"
                await issuer.start()
            await becomes(fails_again, True, "it was asked in vain")
            assert await asked(rig, bearer(RSA.token())) == 200


async def test_signing_keys_are_replaced_under_traffic(
    tmp_path: Path, pod: Upstream, issuer: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy_tokens, "REFRESH", 1)
    new = SigningKey("new", curve=True)

    def load(key: SigningKey) -> Load:
        return Load(["chat"], rate=100, headers=bearer(key.token()), body={"chunks": 3, "delay": 0.01})

    async with serving(tmp_path, pod, issuer.uri) as rig:
        assert await refusal(rig, bearer(new.token())) == (401, "invalid_token")
        async with Traffic(rig.url, load(RSA)) as old_traffic:
            await old_traffic.wait_for(30)
            issuer.text = jwks(RSA, new)
            await becomes(lambda: asked(rig, bearer(new.token())), 200, "the new one is known")
            async with Traffic(rig.url, load(new)) as new_traffic:
                await new_traffic.wait_for(30)
                await old_traffic.stop()
                issuer.text = jwks(new)
                await becomes(lambda: asked(rig, bearer(RSA.token())), 401, "the old one is gone, also for good tokens")
                await new_traffic.wait_for(30)
    for traffic in (old_traffic, new_traffic):
        assert traffic.summary().ok == len(traffic.records) > 30, traffic.summary()


async def test_an_issuer_is_asked_by_tls_and_must_be_who_it_says(tmp_path: Path, pod: Upstream) -> None:
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file = tmp_path / "server.pem"
    issued = good.issue("issuer")
    file.write_bytes(issued["tls.crt"] + issued["tls.key"])
    context.load_cert_chain(file)
    async with JwksServer(RSA, tls=context) as server:
        for name, authority, status in (("a", good, 200), ("b", other, 503)):
            folder = tmp_path / name
            folder.mkdir()
            async with serving(folder, pod, server.uri, ca=str(authority.path)) as rig:
                assert await asked(rig, bearer(RSA.token())) == status


async def test_tokens_at_once_while_nobody_knows_the_issuer(tmp_path: Path, pod: Upstream, issuer: JwksServer) -> None:
    """More than Envoy asks for at once: what it does not ask for is refused, and nothing hangs."""
    await issuer.stop()
    async with serving(tmp_path, pod, issuer.uri, keys=True) as rig:
        told = await asyncio.gather(*(asked(rig, bearer(RSA.token())) for _ in range(200)))
        assert set(told) == {503}
        await issuer.start()
        await becomes(lambda: asked(rig, bearer(RSA.token())), 200, "it is asked again")
        await eventually(lambda: issuer.asked > 0, "it was asked")
