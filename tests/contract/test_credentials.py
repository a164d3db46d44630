"""Secrets for sources, read from a real API server: only labelled ones, always the newest, never in a text."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, ApiError
from tuneyard.systems.kube.credentials import read_credentials

pytestmark = pytest.mark.apiserver

NAMESPACE = "credentials"
LABELS = {"tuneyard.dev/credentials": "true"}


@pytest.fixture(scope="module")
def api(apiserver: ApiServer) -> Api:
    apiserver.namespace(NAMESPACE)
    return apiserver.api()


def make(api: Api, name: str, values: dict[str, bytes], labels: dict[str, str] | None = None) -> None:
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    body: dict[str, Any] = {"metadata": {"name": name, "labels": LABELS if labels is None else labels}, "data": data}
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    if any(s["metadata"]["name"] == name for s in api.request("GET", path)["items"]):
        api.request("PUT", f"{path}/{name}", body=body)
    else:
        api.request("POST", path, body=body)


def refused(api: Api, name: str) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        read_credentials(api, NAMESPACE, name)
    return caught.value


def test_a_renewed_secret_is_read_anew(api: Api) -> None:
    for token in ("hf_old", "hf_new"):
        make(api, "hub", {"token": token.encode()})
        assert read_credentials(api, NAMESPACE, "hub").need("token") == [token]


def test_where_a_token_may_go_stands_on_the_secret(api: Api) -> None:
    make(api, "mirrored", {"token": b"hf_x"})
    assert read_credentials(api, NAMESPACE, "mirrored").endpoints == frozenset()
    body = {"metadata": {"annotations": {"tuneyard.dev/endpoints": "https://a.example/, https://b.example"}}}
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/mirrored"
    api.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    assert read_credentials(api, NAMESPACE, "mirrored").endpoints == {"https://a.example", "https://b.example"}


def test_a_secret_that_nobody_meant_for_sources_is_left_alone(api: Api) -> None:
    for number, labels in enumerate(({}, {"tuneyard.dev/credentials": "false"})):
        make(api, f"other-{number}", {"token": b"not-yours"}, labels)
        error = refused(api, f"other-{number}")
        assert error.reason is Reason.CREDENTIALS_MISSING
        assert f"label secret other-{number} tuneyard.dev/credentials=true" in str(error)
        assert "not-yours" not in repr(error)


def test_a_secret_that_is_not_there(api: Api) -> None:
    error = refused(api, "nobody")
    assert error.reason is Reason.CREDENTIALS_MISSING
    assert "nobody does not exist" in str(error)


def test_no_name_leads_into_another_namespace(api: Api, apiserver: ApiServer) -> None:
    """HTTP libraries resolve `..` before they send."""
    apiserver.namespace("their-own")
    secret = {"metadata": {"name": "hub", "labels": LABELS}, "data": {"token": base64.b64encode(b"hf_theirs").decode()}}
    api.request("POST", "/api/v1/namespaces/their-own/secrets", body=secret)
    for name in (
        "../../their-own/secrets/hub",
        "x/../../../their-own/secrets/hub",
        "..%2f..%2ftheir-own%2fsecrets%2fhub",
    ):
        error = refused(api, name)
        assert (error.reason, "hf_theirs" in str(error)) == (Reason.CREDENTIALS_MISSING, False)
        assert objects.get(api, "v1", "Secret", NAMESPACE, name) is None
    with pytest.raises(ApiError) as caught:
        api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/../../their-own/secrets/hub")
    assert caught.value.not_found
    assert read_credentials(api, "their-own", "hub").need("token") == ["hf_theirs"], "the Secret is there"


def test_a_value_that_is_no_text_is_not_shown(api: Api) -> None:
    make(api, "bytes", {"token": b"\xff\xfe"})
    error = refused(api, "bytes")
    assert error.reason is Reason.CREDENTIALS_MISSING
    assert "Secret bytes" in str(error)


def test_a_right_that_is_not_granted_yet(apiserver: ApiServer, api: Api) -> None:
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    api.request("POST", accounts, body={"metadata": {"name": "tuneyard-agent"}})
    token = api.request("POST", f"{accounts}/tuneyard-agent/token", body={"spec": {}})["status"]["token"]
    error = refused(apiserver.api(token), "hub")
    assert error.reason is Reason.CREDENTIALS_MISSING
    assert "may not be read yet" in str(error)
