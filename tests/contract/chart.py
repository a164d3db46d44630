"""The chart as Helm renders it, for tests: objects, and tokens of the accounts that it makes."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.contract.apiserver import ApiServer, program
from tuneyard.systems.kube.client import APPLY, Api, ApiError, Object

CHART = Path(__file__).resolve().parents[2] / "charts" / "tuneyard"
NAMESPACE = "tuneyard-system"
CRD = "CustomResourceDefinition"


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run helm; a failure is its words."""
    done = subprocess.run([str(program("helm")), *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@functools.cache
def _template(values: str) -> str:
    # --set-json takes one key each
    flags = [f"--set-json={key}={json.dumps(value)}" for key, value in json.loads(values).items()]
    return helm("template", "tuneyard", str(CHART), "--namespace", NAMESPACE, *flags).stdout


def rendered(**values: Any) -> list[Object]:
    """Every object of the chart with these top-level values."""
    return [obj for obj in yaml.safe_load_all(_template(json.dumps(values))) if obj]


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    """Objects of a kind."""
    return (obj for obj in objects if obj["kind"] == kind)


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (obj for obj in of_kind(objects, kind) if obj["metadata"]["name"] == name)
    return found


def may(api: Api, user: str, verb: str, resource: str, *, group: str = "", name: str = "", namespace: str = "") -> bool:
    """`kubectl auth can-i` for another account: whether RBAC lets `user` do this (`resource`: x or x/sub)."""
    plural, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "version": "*",
        "resource": plural,
        "subresource": subresource,
        "name": name,
        "namespace": namespace,
    }
    groups = ["system:serviceaccounts", "system:authenticated"]
    review = api.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        body={"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}},
    )
    return bool(review["status"]["allowed"])


def token(api: Api, namespace: str, account: str, pod: Object | None = None) -> str:
    """A token of a service account, bound to a pod where one is given."""
    spec: Object = {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600}
    if pod is not None:
        metadata = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str(api.request("POST", path, body=request)["status"]["token"])


def refusal(api: Api, method: str, path: str, body: object = None, content_type: str = "application/json") -> str:
    """Why the API server refuses a request; fails where it does not."""
    query = {"fieldManager": "test", "force": "true"} if content_type == APPLY else None
    try:
        api.request(method, path, body=body, content_type=content_type, query=query)
    except ApiError as error:
        assert error.status in (403, 422), str(error)
        return error.message
    raise AssertionError(f"{method} {path} was allowed")


def install(server: ApiServer, objects: list[Object]) -> None:
    """Apply objects as an administrator; raises AssertionError with kubectl's words."""
    text = "---\n".join(json.dumps(obj) + "\n" for obj in objects)
    done = server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
