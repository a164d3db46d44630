"""A new revision written into a ModelDeployment's manifest while every other byte stays. Pure.

Places come from the YAML parser's marks, and the changed text is parsed again: it must be the old document with exactly
the wanted changes, or it is refused.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import Node, SequenceNode

from closedloop.files import Json, StepError
from tuneyard.cli.yamltext import Edit, edited, end_of, line_behind, loaded, value_of

_LAYOUT = "write spec.revisions and spec.traffic as plain YAML lists"


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
    revisions, traffic = (_list(value_of(node, "spec"), key) for key in ("revisions", "traffic"))
    weight = value_of(traffic.value[heaviest], "weight")
    if weight is None:
        raise StepError(f"ModelDeployment {deployment}: {_LAYOUT}")
    edits = [
        _appended(text, revisions, _flow(revision)),
        (weight.start_mark.index, weight.end_mark.index, str(old - percent)),
        _appended(text, traffic, _flow({"revision": name, "weight": percent})),
    ]
    changed = edited(text, edits)
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
    changed = edited(text, [_appended(text, _list(node, "resources"), name)])
    wanted[0]["resources"].append(name)
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


def _list(node: Node | None, key: str) -> SequenceNode:
    found = value_of(node, key)
    if not isinstance(found, SequenceNode) or not found.value:
        raise StepError(f"{key} is not a list with entries: {_LAYOUT}")
    return found


def _flow(mapping: Json) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


def _appended(text: str, node: SequenceNode, entry: str) -> Edit:
    """Where and how one more entry is written: a line of its own, or in the brackets."""
    end = end_of(node.value[-1])
    if node.flow_style:
        return end, end, f", {entry}"
    begin = node.value[-1].start_mark.index
    dash = text.rfind("-", text.rfind("\n", 0, begin) + 1, begin)
    indent = text[text.rfind("\n", 0, dash) + 1 : dash]
    return line_behind(text, end, f"{indent}- {entry}")


def _apart(value: Any) -> Any:
    """A copy in which nothing is shared: an edit at an anchor would change all its aliases, and be seen in one."""
    if isinstance(value, dict):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else value


def _check(changed: str, wanted: list[Any], words: str) -> None:
    if loaded(changed) != wanted:
        raise StepError(words)
