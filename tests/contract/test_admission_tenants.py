"""What the chart refuses of tenants at apply, on a real API server, and what gateways may read with auth on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import CHART, NAMESPACE, helm, install, may, named, refusal, rendered
from tests.contract.test_admission import ACCESS, until_refused
from tests.contract.test_admission_rbac import GATEWAY, READ, VERBS
from tuneyard.api.names import LABEL_TENANT
from tuneyard.gateway import quotamonths
from tuneyard.gateway.options import options
from tuneyard.planning.tenants import policy_of
from tuneyard.systems.kube.client import MERGE, Api, ApiError, Object

pytestmark = pytest.mark.apiserver

TENANTS = f"{NAMESPACE}-tenants"
WHERE = f"/api/v1/namespaces/{TENANTS}"
KEYS = {"auth": {"mode": "ApiKeys"}}
READABLE: tuple[dict[str, Any], ...] = (
    {"models": "*"},
    {"models": ""},
    {"models": "chat"},
    {"models": "\n  chat,\n\tteam-*\r\n,, org/big.model:8b_x\n"},
    {"models": ",".join(f"model-{number}" for number in range(1000))},
    {"models": "a" * 253},
    *({"models": "*", "priority": priority} for priority in ("High", "Normal", "Low")),
    {"models": "*", "requestsPerMinute": "1", "concurrentRequests": "20", "tokensPerMinute": "9" * 15},
    {"models": "*", "tokensPerMonth": "500000000"},
)
UNREADABLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "needs models"),
    ({"model": "*"}, "needs models"),
    ({"models": "*", "requestPerMinute": "1"}, "not requestPerMinute"),
    ({"models": "*", "priority": "high"}, "priority is High"),
    ({"models": "*", "priority": ""}, "priority is High"),
    *(
        ({"models": "*", "tokensPerMonth": text}, "whole number")
        for text in ("0", "-1", "1.5", "1e3", "", " 5", "1" * 16)
    ),
    ({"models": "*", "concurrentRequests": "many"}, "whole number"),
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
        objects = rendered(gateway=KEYS)
        wanted = [
            o for o in objects if o["kind"] in {"Namespace", *ACCESS} or o["metadata"]["name"] == "tuneyard-tenants"
        ]
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


def test_gateways_read_secrets_of_tenants_and_no_others(api: Api) -> None:
    """Not those beside them: the certificate's key, credentials of buckets, what Helm keeps."""
    for resource in ("secrets", "configmaps"):
        for verb in VERBS:
            assert may(api, GATEWAY, verb, resource, namespace=TENANTS) == (verb in READ), verb
            for namespace in (NAMESPACE, "other", ""):
                assert not may(api, GATEWAY, verb, resource, namespace=namespace), (verb, namespace)


def test_gateways_write_tokens_of_the_month_and_nothing_else(api: Api) -> None:
    months = quotamonths.NAME
    assert [verb for verb in VERBS if may(api, GATEWAY, verb, "configmaps", name=months, namespace=NAMESPACE)] == [
        verb for verb in VERBS if verb in ("get", "patch")
    ]
    assert not may(api, GATEWAY, "patch", "configmaps", name="tuneyard-config", namespace=NAMESPACE)
    assert not may(api, GATEWAY, "patch", "configmaps", name=months, namespace=TENANTS)
    # an upgrade must find nothing in it that it would put back
    assert "data" not in named(rendered(gateway=KEYS), "ConfigMap", months)
    assert months not in {o["metadata"]["name"] for o in rendered()}


def test_a_namespace_of_ones_own_choice() -> None:
    objects = rendered(gateway={"auth": {"mode": "ApiKeys", "namespace": "vault"}})
    assert named(objects, "Namespace", "vault")
    for kind in ("Role", "RoleBinding"):
        assert named(objects, kind, "tuneyard-gateway-tenants")["metadata"]["namespace"] == "vault"
    matched = named(objects, "ValidatingAdmissionPolicy", "tuneyard-tenants")["spec"]["matchConstraints"]
    assert matched["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "vault"}}
    (process,) = named(objects, "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e["value"] for e in process["env"] if "value" in e}
    assert options(environment).tenants_namespace == "vault"


def test_it_is_never_the_releases() -> None:
    own = json.dumps({"auth": {"mode": "ApiKeys", "namespace": NAMESPACE}})
    done = helm("template", "t", str(CHART), "--namespace", NAMESPACE, f"--set-json=gateway={own}", check=False)
    assert done.returncode != 0
    assert "gateway.auth.namespace must not be the release's" in done.stderr


def test_the_namespace_outlives_the_chart_and_may_be_there_before_it() -> None:
    """With keys in it: by Helm itself, from the installation to the next one."""
    with ApiServer() as server:
        api, release = server.api(), ("tuneyard", "--namespace", NAMESPACE, "--kubeconfig", str(server.kubeconfig()))
        server.namespace(TENANTS)
        make(api, "secrets", "keys", {"first": "c2stMDEyMzQ1Njc4OWFiY2RlZg=="})
        before = api.request("GET", WHERE)["metadata"]

        def installed(*more: str) -> None:
            keys = f"--set-json=gateway={json.dumps(KEYS)}"
            helm("upgrade", "--install", *release, str(CHART), "--create-namespace", keys, *more)

        def there() -> bool:
            found = api.request("GET", WHERE)
            assert found["status"]["phase"] == "Active"
            return bool(found["metadata"]["uid"] == before["uid"] and api.request("GET", f"{WHERE}/secrets/keys"))

        installed()
        installed()
        assert there(), "somebody's own is used"
        helm("uninstall", *release)
        assert there()
        # and one that the chart has made is its own again after the next installation
        other = f"--set-json=gateway={json.dumps({'auth': {'mode': 'ApiKeys', 'namespace': 'made'}})}"
        for _ in range(2):
            helm("upgrade", "--install", *release, str(CHART), other)
            made = api.request("GET", "/api/v1/namespaces/made")["metadata"]
            assert made["annotations"]["helm.sh/resource-policy"] == "keep"
            helm("upgrade", "--install", *release, str(CHART), other)
            helm("uninstall", *release)
            assert api.request("GET", "/api/v1/namespaces/made")["metadata"]["uid"] == made["uid"]
