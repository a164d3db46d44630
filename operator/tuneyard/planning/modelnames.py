"""Who owns a model name: the one function that operator and gateways share, so that both name the same owner.

Rules: the older ModelDeployment owns the name (creationTimestamp, then namespace, then name); one that was never
stored (no creationTimestamp) is younger than all that were. A deployment that is being deleted keeps its name until it
is gone: its successor must not take over requests that the same name, created again a second later, would claim back.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneyard.api.modeldeployment import ModelDeploymentResource

_NEVER_STORED = "9999"
"""Sorts behind every RFC 3339 time."""


def seniority(deployment: ModelDeploymentResource) -> tuple[str, str, str]:
    """Sort key: the smallest of those that claim a model name owns it."""
    metadata = deployment.metadata
    return (metadata.creation_timestamp or _NEVER_STORED, metadata.namespace, metadata.name)


def owners(deployments: Iterable[ModelDeploymentResource]) -> dict[str, tuple[str, str]]:
    """(namespace, name) of the owner of every model name that the deployments claim."""
    result: dict[str, tuple[str, str]] = {}
    for deployment in sorted(deployments, key=seniority):
        result.setdefault(deployment.model_name, deployment.metadata.key)
    return result
