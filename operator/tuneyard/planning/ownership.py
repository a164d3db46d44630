"""Whether an object still is what the operator applied, told by who owns its fields.

The API server keeps in metadata.managedFields which fields each writer has set. Whoever changes a field takes it away
from the operator (`kubectl scale`, `rollout undo`, `edit`), so an object is as it was applied while the operator still
owns every field that it wants. Compared with reading values back:
- the API server's defaults, its spelling of quantities and fields that others add (the Deployment controller's
  revision, `kubectl rollout restart`) change nothing, so nothing is fought over;
- it is in the metadata, so nothing more of the objects has to be watched.

A node of the fields is an object with a key per child: "f:<name>" for a field, "k:<keys as JSON>" for an item of a list
that has keys, "v:<value as JSON>" for one of a set, "." for itself. An empty node is owned whole, whatever is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tuneyard.api import names

Json = dict[str, Any]

_APPLIED_METADATA = ("labels", "annotations", "ownerReferences")


def is_ours(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of managedFields says what the operator has applied."""
    return entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Apply"


def owned_fields(metadata: Mapping[str, Any]) -> str | None:
    """The fields that the operator owns, as JSON text ("{}" for none); None where it is not known who owns what."""
    entries = metadata.get("managedFields")
    if entries is None:
        return None
    ours: Mapping[str, Any] = next((e for e in entries if is_ours(e)), {})
    return json.dumps(ours.get("fieldsV1") or {}, sort_keys=True, separators=(",", ":"))


def owns(owned: str | None, wanted: Json) -> bool:
    """Whether nobody has taken a field of the wanted object; True where that is not known."""
    if owned is None:
        return True
    fields: Json = json.loads(owned)
    metadata = {part: wanted["metadata"][part] for part in _APPLIED_METADATA if part in wanted["metadata"]}
    parts = {part: value for part, value in wanted.items() if part not in ("apiVersion", "kind", "metadata")}
    return bool(fields) and _covers(fields, {**parts, "metadata": metadata})


def _covers(fields: Json, wanted: object) -> bool:
    if not fields:
        return True
    if isinstance(wanted, dict):
        # nothing is stored of an empty list, and so nothing is owned
        asked = {name: value for name, value in wanted.items() if value is not None and value != []}
        return all(f"f:{name}" in fields and _covers(fields[f"f:{name}"], value) for name, value in asked.items())
    if isinstance(wanted, list):
        return all(_covers_item(fields, item) for item in wanted)
    return True


def _covers_item(fields: Json, item: object) -> bool:
    if not isinstance(item, dict):
        return f"v:{json.dumps(item)}" in fields
    keyed = ((json.loads(name[2:]), below) for name, below in fields.items() if name.startswith("k:"))
    # a key that the item leaves out was filled in by the API server
    return any(all(item.get(k, v) == v for k, v in keys.items()) and _covers(below, item) for keys, below in keyed)
