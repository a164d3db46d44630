"""Secrets that sources name, read at the moment they are needed.

Rules:
- only Secrets with the label tuneyard.dev/credentials=true are used: who may create an adapter chooses the Secret's
  name and where its contents are sent, so somebody else must have said that it is meant for that;
- nothing is kept: a renewed key works at the next fetch;
- values appear in no text; what is missing is told by name.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, ApiError


def read_credentials(api: Api, namespace: str, name: str) -> Credentials:
    """What a Secret holds; raises ArtifactError (CredentialsMissing, SourceUnreachable)."""
    try:
        secret = api.request("GET", objects.path("v1", "Secret", namespace, name))
    except ApiError as error:
        raise _refused(namespace, name, error) from error
    labels = (secret.get("metadata") or {}).get("labels") or {}
    if labels.get(names.LABEL_CREDENTIALS) != "true":
        raise ArtifactError(
            Reason.CREDENTIALS_MISSING,
            f"Secret {name} is not meant for sources: kubectl -n {namespace} label secret {name} "
            f"{names.LABEL_CREDENTIALS}=true",
        )
    given = Credentials.of_secret(name, {k: base64.b64decode(v) for k, v in (secret.get("data") or {}).items()})
    annotations = (secret.get("metadata") or {}).get("annotations") or {}
    listed = annotations.get(names.ANNOTATION_ENDPOINTS, "").replace(",", " ").split()
    return replace(given, endpoints=frozenset(endpoint.rstrip("/") for endpoint in listed))


def _refused(namespace: str, name: str, error: ApiError) -> ArtifactError:
    if error.not_found:
        return ArtifactError(
            Reason.CREDENTIALS_MISSING, f"Secret {name} does not exist in namespace {namespace}: create it"
        )
    if error.status == 403:
        # the operator grants it by name, a moment after the object that names it appeared
        return ArtifactError(
            Reason.CREDENTIALS_MISSING, f"Secret {name} may not be read yet by {names.AGENT_SERVICE_ACCOUNT}"
        )
    return ArtifactError(Reason.SOURCE_UNREACHABLE, f"Secret {name} cannot be read: {error}")
