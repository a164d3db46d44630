"""A new revision written into a ModelDeployment's manifest while every other byte stays. Pure.

Places come from the YAML parser's marks, and the changed text is parsed again: it must be the old document with exactly
the wanted changes, or it is refused.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from closedloop.files import Json, StepError

_LAYOUT = "write spec.revisions and spec.traffic as plain YAML lists"
_Edit = tuple[int, int, str]


def with_revision(text: str, deployment: str, revision: Json, percent: int) -> str:
    """The manifest in which the ModelDeployment has one more revision, with `percent` of the heaviest one's traffic.

    Raises StepError.
    """
    number, before = _document(text, deployment)
    node = list(yaml.compose_all(text, yaml.SafeLoader))[number]
    name = revision["name"]
    spec = before["spec"]
    if name in [r["name"] for r in spec["revisions"]]:
        raise StepError(f"ModelDeployment {deployment} has a revision {name} already: choose another name")
    heaviest = max(range(len(spec["traffic"])), key=lambda n: int(spec["traffic"][n]["weight"]))
    old = int(spec["traffic"][heaviest]["weight"])
    if old <= percent:
        raise StepError(f"no revision of {deployment} has more than {percent} % of the traffic to give")
    revisions, traffic = (_list(_value(node, "spec"), key) for key in ("revisions", "traffic"))
    weight = _value(traffic.value[heaviest], "weight")
    if weight is None:
        raise StepError(f"ModelDeployment {deployment}: {_LAYOUT}")
    edits = [
        _appended(text, revisions, _flow(revision)),
        (weight.start_mark.index, weight.end_mark.index, str(old - percent)),
        _appended(text, traffic, _flow({"revision": name, "weight": percent})),
    ]
    changed = text
    for begin, end, new in sorted(edits, reverse=True):
        changed = changed[:begin] + new + changed[end:]
    wanted = _apart(list(yaml.safe_load_all(text)))
    wanted[number]["spec"]["revisions"].append(revision)
    wanted[number]["spec"]["traffic"][heaviest]["weight"] = old - percent
    wanted[number]["spec"]["traffic"].append({"revision": name, "weight": percent})
    _check(changed, wanted, f"ModelDeployment {deployment}: {_LAYOUT}")
    return changed


def with_resource(text: str, name: str) -> str:
    """A kustomization.yaml that lists one more file; raises StepError."""
    wanted = _apart(list(yaml.safe_load_all(text)))
    if not wanted or not isinstance(wanted[0], dict) or name in wanted[0].get("resources", []):
        return text
    node = next(iter(yaml.compose_all(text, yaml.SafeLoader)))
    begin, end, new = _appended(text, _list(node, "resources"), name)
    wanted[0]["resources"].append(name)
    changed = text[:begin] + new + text[end:]
    _check(changed, wanted, "kustomization.yaml: write resources as a plain YAML list")
    return changed


def _document(text: str, deployment: str) -> tuple[int, dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise StepError(f"not valid YAML: {error}") from None
    for number, document in enumerate(documents):
        if (
            isinstance(document, dict)
            and document.get("kind") == "ModelDeployment"
            and document.get("metadata", {}).get("name") == deployment
        ):
            spec = document.get("spec", {})
            if not spec.get("revisions") or not spec.get("traffic"):
                raise StepError(f"ModelDeployment {deployment} has no revisions or no traffic")
            return number, document
    raise StepError(f"the manifest holds no ModelDeployment {deployment}")


def _value(node: Node | None, key: str) -> Node | None:
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.value == key:
                return value  # type: ignore[no-any-return]
    return None


def _list(node: Node | None, key: str) -> SequenceNode:
    found = _value(node, key)
    if not isinstance(found, SequenceNode) or not found.value:
        raise StepError(f"{key} is not a list with entries: {_LAYOUT}")
    return found


def _flow(mapping: Json) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


def _appended(text: str, node: SequenceNode, entry: str) -> _Edit:
    """Where and how one more entry is written: a line of its own, or in the brackets."""
    last = node.value[-1]
    end = _last(last).end_mark.index
    if node.flow_style:
        return end, end, f", {entry}"
    begin = last.start_mark.index
    dash = text.rfind("-", text.rfind("\n", 0, begin) + 1, begin)
    indent = text[text.rfind("\n", 0, dash) + 1 : dash]
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if text[line_end - 1 : line_end] == "\r":
        line_end -= 1
    newline = "\r\n" if "\r\n" in text else "\n"
    return line_end, line_end, f"{newline}{indent}- {entry}"


def _last(node: Node) -> Node:
    """The last scalar or closed flow collection of a node: a block's own end is where the next thing begins."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, MappingNode) else node.value[-1]
    return node


def _apart(value: Any) -> Any:
    """A copy in which nothing is shared: an edit at an anchor would change all its aliases, and be seen in one."""
    if isinstance(value, dict):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else value


def _check(changed: str, wanted: list[Any], words: str) -> None:
    try:
        found = list(yaml.safe_load_all(changed))
    except yaml.YAMLError:
        found = []
    if found != wanted:
        raise StepError(words)
