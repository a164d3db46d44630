"""The part of an object's metadata that Tuneyard reads."""

from __future__ import annotations

from tuneyard.api.base import ApiModel


class ObjectMeta(ApiModel):
    """metadata of a custom resource; all but the name may be missing in a manifest that was not applied yet."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return (self.namespace, self.name)
