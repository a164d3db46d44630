"""Requests to the Kubernetes API server, as raw JSON.

Rules:
- Raw JSON dictionaries, no typed client models: an object is handed on as the API server stores it.
- Every request has timeouts; nothing here retries. Who calls knows whether a request may be repeated.
- Names come from whoever may write a resource: none may lead a path elsewhere (`part`; and no path with `..` is sent,
  which the HTTP library would resolve before the API server sees it).
- Errors carry the API server's own words (`ApiError.message`) and never the body that was sent, because a Secret may
  have been in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiException
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject

Object = dict[str, Any]
"""One Kubernetes object, or any other JSON document of the API."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._:]{0,252}")
_CONNECTIONS = 32
_TIMEOUT = (5.0, 30.0)


class ApiError(Exception):
    """The API server refused a request (`status` is the HTTP status), or could not be reached (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def not_found(self) -> bool:
        """Whether the object (or its whole kind) is not there."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Whether somebody else changed the object meanwhile."""
        return self.status == 409

    @property
    def unreachable(self) -> bool:
        """Whether no answer came at all."""
        return self.status == 0


def part(name: str) -> str:
    """A namespace or name as a part of a path; raises ApiError (not found) where no object can be called so."""
    if _NAME.fullmatch(name) is None:
        raise ApiError(404, "NotFound", f"{name!r} is no name of an object")
    return name


class Api:
    """A connection pool to one API server; safe to use from many threads."""

    def __init__(self, configuration: Configuration) -> None:
        # urllib3 repeats refused connections by itself otherwise, at once and with a warning each
        configuration.retries = False
        configuration.connection_pool_maxsize = _CONNECTIONS
        self._configuration = configuration
        self._rest = RESTClientObject(configuration)

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: tuple[float, float] = _TIMEOUT,
    ) -> Object:
        """Send one request and return the JSON of its answer; raises ApiError.

        `timeout`: seconds to connect, and between two packets of the answer.
        """
        response = self._open(
            method,
            path,
            query=query,
            headers={"Accept": accept, "Content-Type": content_type},
            timeout=timeout,
            body=body,
        )
        try:
            data = response.read()
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {type(error).__name__}") from error
        finally:
            response.release_conn()
        if not 200 <= response.status <= 299:
            raise _refusal(response.status, data)
        result: Object = json.loads(data) if data else {}
        return result

    def stream(
        self, path: str, *, query: Mapping[str, str], accept: str, timeout: tuple[float, float]
    ) -> urllib3.BaseHTTPResponse:
        """Open a watch; returns the unread answer, which the caller closes. Raises ApiError."""
        response = self._open("GET", path, query=query, headers={"Accept": accept}, timeout=timeout)
        if not 200 <= response.status <= 299:
            try:
                data = response.read()
            except urllib3.exceptions.HTTPError:
                data = b""
            finally:
                response.close()
            raise _refusal(response.status, data)
        return response

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        headers: dict[str, str],
        timeout: tuple[float, float],
        body: object = None,
    ) -> urllib3.BaseHTTPResponse:
        if {".", ".."} & set(path.split("/")):
            raise ApiError(404, "NotFound", f"{path!r} is no path of an object")
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {**headers, "User-Agent": "tuneyard"}
        for setting in self._configuration.auth_settings().values():
            headers[setting["key"]] = setting["value"]
        try:
            response: urllib3.BaseHTTPResponse = self._rest.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            ).response
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            # the exception's own text may hold the URL only, never headers or bodies
            raise ApiError(0, "Unreachable", f"{method} {path}: {type(error).__name__}: {error}"[:500]) from error
        return response


def _refusal(status: int, data: bytes) -> ApiError:
    """The error that the API server's Status object describes."""
    try:
        told = json.loads(data)
        return ApiError(status, str(told.get("reason") or ""), str(told.get("message") or ""))
    except (ValueError, AttributeError):
        return ApiError(status, "", data[:200].decode(errors="replace"))


def in_cluster() -> bool:
    """Whether this process runs in a pod with a service account."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (_SERVICE_ACCOUNT / "token").exists()


def connect() -> Api:
    """The API server of KUBECONFIG where that is set, else of the pod's own cluster, else of ~/.kube/config."""
    configuration = Configuration()
    if not os.environ.get("KUBECONFIG") and in_cluster():
        config.load_incluster_config(client_configuration=configuration)
    else:
        config.load_kube_config(config_file=os.environ.get("KUBECONFIG") or None, client_configuration=configuration)
    return Api(configuration)


def own_namespace(default: str = "default") -> str:
    """The namespace this process's pod runs in; `default` outside a cluster."""
    try:
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip() or default
    except OSError:
        return default
