"""Manifests as text: finding what `tuneyard pin` writes to, and writing it while every other byte stays.

Rules:
- Places come from the YAML parser's marks; the text around them is copied, never printed anew: comments, order,
  quotes, anchors and line ends are the user's.
- A changed text is parsed again and must be the old document with exactly the wanted changes, or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from tuneyard.cli.errors import UserError

KINDS = ("BaseModel", "LoRAAdapter")
_NUMBER = re.compile(r"[0-9]+(e[0-9]+)?\Z")


@dataclass(frozen=True)
class Artifact:
    """A document of a manifest that has a source: its place among the documents, and what it says."""

    position: int
    kind: str
    name: str
    spec: dict[str, Any]
    node: MappingNode
    """Of spec."""


@dataclass(frozen=True)
class Pins:
    """What is to be written into one document; None for nothing."""

    position: int
    revision: str | None = None
    digest: str | None = None


def artifacts(text: str) -> Iterator[Artifact]:
    """The BaseModels and LoRAAdapters of a manifest; raises UserError where it is not YAML."""
    try:
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from error
    for position, (node, document) in enumerate(zip(nodes, documents, strict=True)):
        if not isinstance(document, dict) or document.get("kind") not in KINDS or not _is_ours(document):
            continue
        spec = _value(node, "spec")
        if isinstance(spec, MappingNode) and isinstance(document["spec"].get("source"), dict):
            metadata = document.get("metadata")
            name = str(metadata.get("name")) if isinstance(metadata, dict) else "?"
            yield Artifact(position, document["kind"], name, document["spec"], spec)


def pinned(text: str, pins: Sequence[Pins]) -> str:
    """The manifest with the pins written; raises UserError where that cannot be done without touching more."""
    edits: list[tuple[int, int, str]] = []
    found = {artifact.position: artifact for artifact in artifacts(text)}
    for pin in pins:
        spec = found[pin.position].node
        if pin.revision is not None:
            node = _value(_value(_value(spec, "source"), "huggingFace"), "revision")
            assert isinstance(node, ScalarNode)  # noqa: S101 -- the specification was read by the API's own classes
            begin, end = node.start_mark.index, node.end_mark.index
            if text[begin] in "&!":  # an anchor or a tag, which the mark includes
                begin = text.rindex(" ", begin, end) + 1
            edits.append((begin, end, _like(node, pin.revision)))
        if pin.digest is not None:
            edits.append(_insertion(text, spec, pin.digest))
    changed = text
    for begin, end, new in sorted(edits, reverse=True):
        changed = changed[:begin] + new + changed[end:]
    if _loaded(changed) != _wanted(text, pins):
        raise UserError("the pins do not fit into this layout: write source and digest as plain YAML blocks")
    return changed


def _is_ours(document: dict[str, Any]) -> bool:
    return str(document.get("apiVersion", "")).startswith("tuneyard.dev/") and isinstance(document.get("spec"), dict)


def _value(node: Node | None, key: str) -> Node | None:
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.value == key:
                return value  # type: ignore[no-any-return]
    return None


def _like(node: ScalarNode, text: str) -> str:
    """The text quoted as the scalar was; a commit that looks like a number needs quotes."""
    quote = node.style if node.style in ("'", '"') else '"' if _NUMBER.match(text) else ""
    return f"{quote}{text}{quote}"


def _insertion(text: str, spec: MappingNode, digest: str) -> tuple[int, int, str]:
    """Where and how `digest` is written: behind `source`."""
    name, source = next((n, v) for n, v in spec.value if n.value == "source")
    end = _last(source).end_mark.index
    if spec.flow_style:
        return end, end, f", digest: {digest}"
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if text[line_end - 1 : line_end] == "\r":
        line_end -= 1
    newline = "\r\n" if "\r\n" in text else "\n"
    return line_end, line_end, f"{newline}{' ' * name.start_mark.column}digest: {digest}"


def _last(node: Node) -> Node:
    """The last scalar or closed flow collection of a node: a block's own end is where the next thing begins."""
    while isinstance(node, MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    return node


def _loaded(text: str) -> list[Any] | None:
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return None


def _wanted(text: str, pins: Sequence[Pins]) -> list[Any]:
    documents = list(yaml.safe_load_all(text))
    for pin in pins:
        spec = documents[pin.position]["spec"]
        if pin.revision is not None:
            spec["source"]["huggingFace"]["revision"] = pin.revision
        if pin.digest is not None:
            spec["digest"] = pin.digest
    return documents
