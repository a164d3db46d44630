"""YAML as text: places in it by the parser's marks, and edits at them while every other byte stays. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Edit = tuple[int, int, str]
"""Where what is replaced begins and ends, and what comes there."""


def value_of(node: Node | None, key: str) -> Node | None:
    """What a mapping has under the key; None where it is no mapping or has no such key."""
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode) and name.value == key:
                return value  # type: ignore[no-any-return]
    return None


def end_of(node: Node) -> int:
    """The end of a node's last scalar or closed flow collection: a block's own end is where the next thing begins."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, MappingNode) else node.value[-1]
    return int(node.end_mark.index)


def line_behind(text: str, place: int, line: str) -> Edit:
    """A line of its own behind the one with that place, with the text's line ends."""
    line_end = text.find("\n", place)
    line_end = len(text) if line_end < 0 else line_end
    if text[line_end - 1 : line_end] == "\r":
        line_end -= 1
    newline = "\r\n" if "\r\n" in text else "\n"
    return line_end, line_end, f"{newline}{line}"


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits, whose places are those of the text as it was; the same one twice counts once."""
    for begin, end, new in sorted(set(edits), reverse=True):  # an alias may lead to one place twice
        text = text[:begin] + new + text[end:]
    return text


def loaded(text: str) -> list[Any] | None:
    """Its documents; None where it is not YAML."""
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return None
