"""A new revision written into a ModelDeployment's manifest while every other byte stays. Pure.

Revisions and traffic stand in one document, or each in a file of its own (a kustomize patch for each environment).
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
    return with_share(with_listed(text, deployment, revision), deployment, revision["name"], percent)


def with_listed(text: str, deployment: str, revision: Json) -> str:
    """The manifest, or the part of it, whose spec.revisions has one more; raises StepError."""
    number, before = _document(text, deployment, "revisions")
    if revision["name"] in [r["name"] for r in before]:
        raise StepError(f"ModelDeployment {deployment} has a revision {revision['name']} already: choose another name")
    changed = edited(text, [_appended(text, _spec_list(text, number, "revisions"), _flow(revision))])
    wanted = _apart(list(yaml.safe_load_all(text)))
    wanted[number]["spec"]["revisions"].append(revision)
    _check(changed, wanted, f"ModelDeployment {deployment}: {_LAYOUT}")
    return changed


def with_share(text: str, deployment: str, name: str, percent: int) -> str:
    """The same whose spec.traffic gives a revision `percent` of the heaviest one's traffic; raises StepError."""
    number, before = _document(text, deployment, "traffic")
    if name in [t["revision"] for t in before]:
        raise StepError(f"spec.traffic of {deployment} names a revision {name} already: choose another name")
    heaviest = max(range(len(before)), key=lambda n: int(before[n]["weight"]))
    old = int(before[heaviest]["weight"])
    if old <= percent:
        raise StepError(f"no revision of {deployment} has more than {percent} % of the traffic to give")
    traffic = _spec_list(text, number, "traffic")
    weight = value_of(traffic.value[heaviest], "weight")
    if weight is None:
        raise StepError(f"ModelDeployment {deployment}: {_LAYOUT}")
    edits = [
        (weight.start_mark.index, weight.end_mark.index, str(old - percent)),
        _appended(text, traffic, _flow({"revision": name, "weight": percent})),
    ]
    changed = edited(text, edits)
    wanted = _apart(list(yaml.safe_load_all(text)))
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


def _document(text: str, deployment: str, key: str) -> tuple[int, list[Any]]:
    """Which document is the ModelDeployment, and what its spec has under the key."""
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
            found: list[Any] = (document.get("spec") or {}).get(key) or []
            if not found:
                raise StepError(
                    f"ModelDeployment {deployment} has no spec.{key} in this file: --file is the one with its "
                    "revisions, --traffic-file the one with its traffic, where that is another"
                )
            return number, found
    raise StepError(f"the manifest holds no ModelDeployment {deployment}")


def _spec_list(text: str, number: int, key: str) -> SequenceNode:
    return _list(value_of(list(yaml.compose_all(text, yaml.SafeLoader))[number], "spec"), key)


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
