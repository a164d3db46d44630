"""Manifests as text: finding what `tuneyard pin` writes to, and writing it while every other byte stays.

Rules:
- Places come from the YAML parser's marks; the text around them is copied, never printed anew: comments, order,
  quotes, anchors and line ends are the user's.
- A changed text is parsed again and must be the old document with exactly the wanted changes, or it is refused.
- What `kubectl apply` would take out of a List is found in it, also in a List of Lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tuneyard.cli.errors import UserError
from tuneyard.cli.yamltext import Edit, edited, end_of, line_behind, loaded, value_of

KINDS = ("BaseModel", "LoRAAdapter")
_DEEPEST = 16
"""Lists within Lists that are followed: an alias can lead round in a circle."""
_OTHER_LAYOUT = "the pins do not fit into this layout: write source and digest as plain YAML blocks"
_NUMBER = re.compile(r"[0-9]+(e[0-9]+)?\Z")

Position = tuple[int, ...]
"""A document's number, and in a List the number of the item, at each level."""


@dataclass(frozen=True)
class Artifact:
    """An object of a manifest that has a source: where it is, and what it says."""

    position: Position
    kind: str
    name: str
    spec: dict[str, Any]
    node: MappingNode | None
    """Of spec; None where it does not stand in the object itself."""


@dataclass(frozen=True)
class Pins:
    """What is to be written into one object; None for nothing."""

    position: Position
    revision: str | None = None
    digest: str | None = None


def artifacts(text: str) -> Iterator[Artifact]:
    """The BaseModels and LoRAAdapters of a manifest; raises UserError where it is not YAML."""
    try:
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise UserError(f"not valid YAML: {error}") from error
    except RecursionError:
        raise UserError("not valid YAML: it is nested too deeply") from None
    for number, (node, document) in enumerate(zip(nodes, documents, strict=True)):
        yield from _found((number,), node, document)


def _found(
    position: Position, node: Node | None, content: Any, typed: tuple[str, str] = ("", "")
) -> Iterator[Artifact]:
    """The artifacts in one document or item; `typed`: version and kind of what says neither."""
    if not isinstance(content, dict):
        return
    version, kind = (str(content.get(key, default)) for key, default in zip(("apiVersion", "kind"), typed, strict=True))
    items = content.get("items")
    if kind.endswith("List") and isinstance(items, list):
        if len(position) > _DEEPEST:
            raise UserError(f"it holds Lists within Lists over {_DEEPEST} levels")
        listed = value_of(node, "items")
        nodes = listed.value if isinstance(listed, SequenceNode) else [None] * len(items)
        for number, (inner, item) in enumerate(zip(nodes, items, strict=True)):
            yield from _found((*position, number), inner, item, (version, kind.removesuffix("List")))
    elif kind in KINDS and version.startswith("tuneyard.dev/"):
        spec, metadata = content.get("spec"), content.get("metadata")
        if isinstance(spec, dict) and isinstance(spec.get("source"), dict):
            name = str(metadata.get("name")) if isinstance(metadata, dict) else "?"
            place = value_of(node, "spec")
            yield Artifact(position, kind, name, spec, place if isinstance(place, MappingNode) else None)


def pinned(text: str, pins: Sequence[Pins]) -> str:
    """The manifest with the pins written; raises UserError where that cannot be done without touching more."""
    edits: list[Edit] = []
    found = {artifact.position: artifact for artifact in artifacts(text)}
    for pin in pins:
        spec = found[pin.position].node
        if pin.revision is not None:
            node = value_of(value_of(value_of(spec, "source"), "huggingFace"), "revision")
            if not isinstance(node, ScalarNode):  # it is merged in from elsewhere
                raise UserError(_OTHER_LAYOUT)
            begin, end = node.start_mark.index, node.end_mark.index
            if text[begin] in "&!":  # an anchor or a tag, which the mark includes
                begin = text.rindex(" ", begin, end) + 1
            edits.append((begin, end, _like(node, pin.revision)))
        if pin.digest is not None:
            edits.append(_insertion(text, spec, pin.digest))
    changed = edited(text, edits)
    if loaded(changed) != _wanted(text, pins):
        raise UserError(_OTHER_LAYOUT)
    return changed


def _like(node: ScalarNode, text: str) -> str:
    """The text quoted as the scalar was; a commit that looks like a number needs quotes."""
    quote = node.style if node.style in ("'", '"') else '"' if _NUMBER.match(text) else ""
    return f"{quote}{text}{quote}"


def _insertion(text: str, spec: MappingNode | None, digest: str) -> Edit:
    """Where and how `digest` is written: behind `source`."""
    place = next(((n, v) for n, v in spec.value if n.value == "source"), None) if spec is not None else None
    if spec is None or place is None:
        raise UserError(_OTHER_LAYOUT)
    name, source = place
    end = end_of(source)
    if spec.flow_style:
        return end, end, f", digest: {digest}"
    return line_behind(text, end, f"{' ' * name.start_mark.column}digest: {digest}")


def _wanted(text: str, pins: Sequence[Pins]) -> list[Any]:
    documents = list(yaml.safe_load_all(text))
    for pin in pins:
        found = documents[pin.position[0]]
        for number in pin.position[1:]:
            found = found["items"][number]
        spec = found["spec"]
        if pin.revision is not None:
            spec["source"]["huggingFace"]["revision"] = pin.revision
        if pin.digest is not None:
            spec["digest"] = pin.digest
    return documents
