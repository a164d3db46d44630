"""Which tokens a gateway is told to take, what it makes of that for Envoy, and which signing keys it passes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneyard.gateway.options import options
from tuneyard.gateway.signingkeys import problem_of
from tuneyard.gateway.tokenoptions import token_options
from tuneyard.systems.envoy.bootstrap import bootstrap
from tuneyard.systems.envoy.tls import Tls
from tuneyard.systems.envoy.tokens import Tokens, token_clusters

GIVEN = {
    "TUNEYARD_AUTH": "Jwt",
    "TUNEYARD_JWT_ISSUER": "https://login.example.com",
    "TUNEYARD_JWT_AUDIENCES": '["tuneyard"]',
    "TUNEYARD_JWT_JWKS_URI": "https://login.example.com/keys",
}
RSA = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}


def test_what_the_environment_says() -> None:
    given = token_options(GIVEN)
    assert given is not None and given.jwks is None
    assert given.accepted == Tokens(
        "https://login.example.com", ("tuneyard",), "tenant", "https://login.example.com/keys"
    )
    own = {**GIVEN, "TUNEYARD_AUTH": "ApiKeysAndJwt", "TUNEYARD_JWT_JWKS_URI": "", "TUNEYARD_JWT_JWKS_FILE": "/a.json"}
    both = token_options({**own, "TUNEYARD_JWT_CLAIM": "kubernetes.io.namespace"})
    assert both is not None and both.jwks == Path("/a.json")
    assert both.accepted == Tokens("https://login.example.com", ("tuneyard",), "kubernetes.io.namespace", keys_too=True)
    assert options(GIVEN).keys and options(own).keys
    for mode in ("", "None", "ApiKeys"):
        assert token_options({**GIVEN, "TUNEYARD_AUTH": mode}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"TUNEYARD_AUTH": "jwt"}, "not jwt"),
        ({"TUNEYARD_JWT_ISSUER": ""}, "any issuer"),
        ({"TUNEYARD_JWT_AUDIENCES": ""}, "other services"),
        ({"TUNEYARD_JWT_AUDIENCES": "tuneyard"}, "JSON list"),
        ({"TUNEYARD_JWT_AUDIENCES": "[]"}, "other services"),
        ({"TUNEYARD_JWT_AUDIENCES": '[""]'}, "other services"),
        ({"TUNEYARD_JWT_CLAIM": "a' .. os.exit() .. '"}, "TUNEYARD_JWT_CLAIM"),
        ({"TUNEYARD_JWT_JWKS_URI": ""}, "one of"),
        ({"TUNEYARD_JWT_JWKS_FILE": "/a.json"}, "one of"),
        ({"TUNEYARD_JWT_JWKS_URI": "ftp://login.example.com"}, "http"),
        ({"TUNEYARD_JWT_JWKS_URI": "https://a:b@login.example.com/"}, "without credentials"),
    ],
)
def test_what_makes_no_sense_is_no_open_door(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        token_options(GIVEN | changed)


def filters_of(listener: dict[str, Any]) -> list[str]:
    (chain,) = listener["filter_chains"]
    return [one["name"] for one in chain["filters"][0]["typed_config"]["http_filters"]]


def test_tokens_are_proven_before_anything_looks_at_them_on_every_port() -> None:
    tokens = Tokens("https://login.example.com", ("tuneyard",), "tenant")
    tls = Tls(port=8443, certificate="/c", sources="/s", plain=False)
    gates, clients = bootstrap("g", tokens=tokens, tls=tls)["static_resources"]["listeners"]
    assert filters_of(clients)[:2] == ["jwt_authn", "extract"]
    assert filters_of(gates)[:4] == ["gate_paths", "jwt_authn", "extract", "gate_routes"]
    for listener in bootstrap("g", tls=tls)["static_resources"]["listeners"]:
        assert "jwt_authn" not in filters_of(listener), "who has no tokens pays for none"


@pytest.mark.parametrize(
    ("uri", "kind", "port", "encrypted"),
    [
        ("https://login.example.com/keys", "LOGICAL_DNS", 443, True),
        ("http://issuer.svc:8080/keys", "LOGICAL_DNS", 8080, False),
        ("https://192.0.2.1:6443/openid/v1/jwks", "STATIC", 6443, True),
        ("https://[2001:db8::1]/keys", "STATIC", 443, True),
    ],
)
def test_where_an_issuer_is_asked(uri: str, kind: str, port: int, encrypted: bool) -> None:
    (cluster,) = token_clusters(Tokens("i", ("a",), "tenant", uri))
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert (cluster["type"], endpoint["endpoint"]["address"]["socket_address"]["port_value"]) == (kind, port)
    assert ("transport_socket" in cluster) is encrypted
    assert token_clusters(None) == token_clusters(Tokens("i", ("a",), "tenant")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({"keys": [RSA, {"kty": "EC"}, {"kty": "OKP"}]}), ""),
        ("", "no JWKS"),
        ("[]", "no JWKS"),
        ('{"keys": {}}', "no key"),
        ('{"keys": []}', "no key"),
        ('{"keys": ["a"]}', "no JWKS"),
        (json.dumps({"keys": [RSA, {"kty": "oct", "k": "c2VjcmV0"}]}), "not public"),
        (json.dumps({"keys": [{**RSA, "d": "AQAB"}]}), "not public"),
        (json.dumps({"keys": [{}]}), "not public"),
    ],
)
def test_which_signing_keys_are_passed_on(text: str, words: str) -> None:
    problem = problem_of(text)
    assert words in problem and bool(problem) is bool(words)
    assert "c2VjcmV0" not in problem
