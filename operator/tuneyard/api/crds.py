"""The CustomResourceDefinitions, generated from the pydantic classes: `python -m tuneyard.api.crds [--check] DIR`.

A structural schema is pydantic's JSON schema without references, titles, null alternatives and defaults (a default in
a CRD would be written into users' objects, and then differ from what they keep in Git). The status as a whole has one: a
new object has been seen in no generation. Without it kstatus, and so Flux, takes what no operator has seen yet for done.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelSpec, BaseModelStatus
from tuneyard.api.loraadapter import LoRAAdapterSpec, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentSpec, ModelDeploymentStatus
from tuneyard.api.names import GROUP, VERSION

_HEADER = "# Generated from operator/tuneyard/api by `make generate`; do not edit.\n"
_READY = '.status.conditions[?(@.type=="Ready")].status'
NEW_STATUS = {"observedGeneration": -1}
"""What the API server gives an object that nobody has written a status of."""
_DROPPED = ("title", "default", "additionalProperties", "const")


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; `priority` 1 shows it with -o wide only."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """One custom resource."""

    kind: str
    plural: str
    short: str
    spec: type[ApiModel]
    status: type[ApiModel]
    columns: tuple[Column, ...]


AGE = Column("AGE", ".metadata.creationTimestamp", "date")

KINDS = (
    Kind(
        "BaseModel",
        "basemodels",
        "bmodel",
        BaseModelSpec,
        BaseModelStatus,
        (
            Column("READY", _READY),
            Column("ENGINE", ".status.engine"),
            Column("TP", ".status.tensorParallelSize", "integer"),
            Column("REPLICAS", ".status.replicas"),
            Column("PROGRESS", ".status.progress"),
            AGE,
            Column("PREWARMED", ".status.prewarmed", priority=1),
            Column("PROMOTED", ".status.promotedAt", "date", priority=1),
            Column("BY", ".status.promotedBy", priority=1),
        ),
    ),
    Kind(
        "LoRAAdapter",
        "loraadapters",
        "lora",
        LoRAAdapterSpec,
        LoRAAdapterStatus,
        (
            Column("READY", _READY),
            Column("BASE", ".spec.baseModel"),
            Column("VERSION", ".spec.lineage.version"),
            Column("LOADED", ".status.loaded"),
            Column("PROGRESS", ".status.progress"),
            Column("RANK", ".status.rank", "integer"),
            Column("SIZE", ".status.size"),
            AGE,
            Column("PROMOTED", ".status.promotedAt", "date", priority=1),
            Column("BY", ".status.promotedBy", priority=1),
        ),
    ),
    Kind(
        "ModelDeployment",
        "modeldeployments",
        "mdep",
        ModelDeploymentSpec,
        ModelDeploymentStatus,
        (
            Column("READY", _READY),
            Column("PHASE", ".status.rollout.phase"),
            Column("STABLE", ".status.rollout.stable"),
            Column("CANDIDATE", ".status.rollout.candidate"),
            Column("WEIGHT", ".status.rollout.weight", "integer"),
            Column("TARGET", ".status.rollout.target", "integer"),
            Column("REASON", ".status.reason"),
            AGE,
            Column("STEP", ".status.rollout.position", priority=1),
            Column("VERDICT", ".status.rollout.verdicts[0].reason", priority=1),
            Column("URL", ".status.url", priority=1),
        ),
    ),
)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An optional field is one that may be absent, never one that is null."""
    options = [o for o in schema.get("anyOf", []) if o.get("type") != "null"]
    if "anyOf" not in schema or "x-kubernetes-int-or-string" in schema or len(options) != 1:
        return schema
    rest = {k: v for k, v in schema.items() if k != "anyOf"}
    return {**options[0], **rest}


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Pydantic's JSON schema as an OpenAPI v3 structural schema: no $ref, no null, no defaults."""
    schema = _without_null(schema)
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return structural({**target, **rest}, definitions)
    values = schema.get("additionalProperties")
    result = {k: v for k, v in schema.items() if k not in _DROPPED}
    if "x-kubernetes-int-or-string" in result:
        return {k: result[k] for k in ("x-kubernetes-int-or-string", "anyOf", "description") if k in result}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    if "properties" in schema:
        result["properties"] = {k: structural(v, definitions) for k, v in schema["properties"].items()}
    if "items" in schema:
        result["items"] = structural(schema["items"], definitions)
    if isinstance(values, dict):
        result["additionalProperties"] = structural(values, definitions)
    if result.get("type") == "integer":
        result["format"] = "int64"
    return result


def schema_of(model: type[ApiModel]) -> dict[str, Any]:
    """The structural schema of one class."""
    schema = model.model_json_schema(by_alias=True)
    return structural({k: v for k, v in schema.items() if k != "$defs"}, schema.get("$defs", {}))


def crd(kind: Kind) -> dict[str, Any]:
    """The whole CustomResourceDefinition of a kind."""
    columns = [
        {"name": c.name, "type": c.type, "jsonPath": c.path, **({"priority": c.priority} if c.priority else {})}
        for c in kind.columns
    ]
    properties = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": schema_of(kind.spec),
        "status": {**schema_of(kind.status), "default": NEW_STATUS},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short],
                "categories": ["tuneyard"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": properties}},
                }
            ],
        },
    }


def rendered() -> dict[str, str]:
    """File name -> YAML text of every CRD."""
    return {f"{kind.plural}.yaml": _HEADER + yaml.safe_dump(crd(kind), sort_keys=False, width=110) for kind in KINDS}


def main(arguments: list[str]) -> int:
    """Write the CRDs, or with --check say whether the folder holds just these; returns the exit code."""
    folder = Path(arguments[-1])
    wanted = rendered()
    if "--check" not in arguments:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text)
        return 0
    stale = sorted(n for n, text in wanted.items() if not (folder / n).exists() or (folder / n).read_text() != text)
    if stale:
        sys.stderr.write(f"{', '.join(stale)} differ from operator/tuneyard/api: run `make generate`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
