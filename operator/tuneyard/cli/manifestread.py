"""The objects of manifests, for commands that say beforehand what comes of them or write something else from them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.cli.errors import UserError

Resource = TypeVar("Resource", bound=ApiModel)
_DEEPEST = 16
"""Lists within Lists that are followed."""


@dataclass
class Manifests:
    """What of them makes pools; a status, as `kubectl get` prints it, is left out."""

    bases: list[BaseModelResource] = field(default_factory=list)
    deployments: list[ModelDeploymentResource] = field(default_factory=list)


def read_manifests(texts: Iterable[tuple[str, str]]) -> Manifests:
    """The BaseModels and ModelDeployments in manifests, by (name, text); raises UserError."""
    found = Manifests()
    for name, text in texts:
        for kind, item in read_objects(name, text):
            if kind == "BaseModel":
                found.bases.append(_parsed(BaseModelResource, name, kind, item))
            elif kind == "ModelDeployment":
                found.deployments.append(_parsed(ModelDeploymentResource, name, kind, item))
    return found


def read_objects(name: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Tuneyard's objects in a manifest by their kinds, also those in Lists; raises UserError where it is not YAML."""
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid YAML: {error}") from error
    return [found for document in documents for found in _objects(document)]


def _objects(document: Any, depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(document, dict) or depth > _DEEPEST:
        return
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        for item in items:
            yield from _objects(item, depth + 1)
    elif str(document.get("apiVersion", "")).startswith("tuneyard.dev/"):
        yield str(document.get("kind")), document


def _parsed(resource: type[Resource], name: str, kind: str, item: dict[str, Any]) -> Resource:
    try:
        return resource.from_dict({**item, "status": {}})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        metadata = item.get("metadata")
        which = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
        raise UserError(f"{name}: {kind} {which} is one that the API would refuse ({problems})") from error


def text_of(name: str) -> str:
    """A file's text, or standard input's for `-`; raises UserError."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
