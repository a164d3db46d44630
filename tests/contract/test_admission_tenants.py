"""What the chart refuses of tenants at apply, on a real API server, and what gateways may read with auth on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import NAMESPACE, install, may, refusal, rendered
from tests.contract.test_admission import ACCESS, until_refused
from tests.contract.test_admission_rbac import GATEWAY, READ, VERBS
from tuneyard.api.names import LABEL_TENANT
from tuneyard.planning.tenants import policy_of
from tuneyard.systems.kube.client import MERGE, Api, ApiError, Object

pytestmark = pytest.mark.apiserver

WHERE = f"/api/v1/namespaces/{NAMESPACE}"
READABLE: tuple[dict[str, Any], ...] = (
    {"models": "*"},
    {"models": ""},
    {"models": "chat"},
    {"models": "\n  chat,\n\tteam-*\r\n,, org/big.model:8b_x\n"},
    {"models": ",".join(f"model-{number}" for number in range(1000))},
    {"models": "a" * 253},
)
UNREADABLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "needs models"),
    ({"model": "*"}, "needs models"),
    ({"models": "*", "requestPerMinute": "1"}, "not requestPerMinute"),
    ({"models": "chat;support"}, "no name of a model"),
    ({"models": 'ch"at'}, "no name of a model"),
    ({"models": "chat -x"}, "no name of a model"),
    ({"models": "chät"}, "no name of a model"),
    ({"models": "a" * 254}, "no name of a model"),
    ({"models": "a," * 9000}, "more than 16384"),
)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """With the chart's rights and policies in force, auth on."""
    with ApiServer() as server:
        server.namespace(NAMESPACE)
        server.namespace("other")
        objects = rendered(gateway={"auth": {"mode": "ApiKeys"}})
        wanted = [o for o in objects if o["kind"] in ACCESS or "tuneyard-tenants" in o["metadata"]["name"]]
        install(server, wanted)
        api = server.api()

        def attempt(number: str) -> None:
            try:
                make(api, "configmaps", f"probe-{number}", {"models": "*"}, tenant="Wrong")
            except ApiError as error:
                raise ApiError(403, error.reason, error.message) from error

        until_refused(attempt)
        yield api


def make(api: Api, plural: str, name: str, data: Object, *, tenant: str = "acme", where: str = WHERE) -> None:
    metadata = {"name": name, "labels": {LABEL_TENANT: tenant}}
    api.request("POST", f"{where}/{plural}", body={"metadata": metadata, "data": data})


@pytest.mark.parametrize("number", range(len(READABLE)))
def test_what_gateways_read_may_be_applied(number: int, api: Api) -> None:
    policy_of(READABLE[number])
    make(api, "configmaps", f"good-{number}", READABLE[number])


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
def test_what_gateways_could_not_read_may_not(number: int, api: Api) -> None:
    data, words = UNREADABLE[number]
    with pytest.raises(ValueError, match=r"."):
        policy_of(data)
    metadata = {"name": f"bad-{number}", "labels": {LABEL_TENANT: "acme"}}
    body = {"metadata": metadata, "data": data}
    assert words in refusal(api, "POST", f"{WHERE}/configmaps", body)
    # nobody else's ConfigMaps are meant, nor those of other namespaces
    api.request("POST", f"{WHERE}/configmaps", body={"metadata": {"name": f"bad-{number}"}, "data": data})
    make(api, "configmaps", f"bad-{number}", data, where="/api/v1/namespaces/other")
    assert "tuneyard-tenants" in refusal(
        api, "PATCH", f"{WHERE}/configmaps/bad-{number}", {"metadata": metadata}, MERGE
    )
    api.request("DELETE", f"{WHERE}/configmaps/bad-{number}")


@pytest.mark.parametrize("plural", ["secrets", "configmaps"])
def test_a_label_that_names_no_tenant(plural: str, api: Api) -> None:
    make(api, plural, "fine", {"models": "*"} if plural == "configmaps" else {})
    for label in ("", "Acme", "a.b", "a_b", "1-a.x"):
        metadata = {"labels": {LABEL_TENANT: label}}
        assert "must be a DNS label" in refusal(api, "PATCH", f"{WHERE}/{plural}/fine", {"metadata": metadata}, MERGE)
    # and back to nobody's
    nobody: Object = {"metadata": {"labels": {LABEL_TENANT: None}}}
    api.request("PATCH", f"{WHERE}/{plural}/fine", body=nobody, content_type=MERGE)


def test_gateways_read_secrets_of_their_own_namespace_and_write_none(api: Api) -> None:
    for resource in ("secrets", "configmaps"):
        for verb in VERBS:
            assert may(api, GATEWAY, verb, resource, namespace=NAMESPACE) == (verb in READ), verb
            assert not may(api, GATEWAY, verb, resource, namespace="other"), verb
            assert not may(api, GATEWAY, verb, resource), verb
