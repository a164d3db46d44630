"""A LoRAAdapter's manifest as YAML that people like to read and every YAML reader takes the same way. Pure.

Rules:
- a text that any reader could take for something else (`2e-4`, `yes`, a date) stands in quotes: the API server's reader
  follows other rules than Python's;
- what fits on a line is on one: the source, each evaluation.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tuneyard.api import names
from tuneyard.api.loraadapter import LoRAAdapterSpec

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+@-]*(?:://[A-Za-z0-9_./+@#?=&%:-]+|:[A-Za-z0-9]+)*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


class _Line(dict[str, Any]):
    """A mapping that stands on one line."""


class _Text(str):
    """A text that stands in quotes whatever it holds."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- the same text twice is written twice
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = not isinstance(text, _Text) and _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=None if plain else '"')


def _line(dumper: yaml.SafeDumper, mapping: _Line) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping.items(), flow_style=True)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Text, _text)
_Dumper.add_representer(_Line, _line)


def _on_a_line(mapping: dict[str, Any]) -> _Line:
    """The mapping on one line, where a colon needs quotes."""
    return _Line({k: _Text(v) if isinstance(v, str) and ":" in v else v for k, v in mapping.items()})


def adapter_manifest(name: str, spec: LoRAAdapterSpec, namespace: str | None = None, comment: str = "") -> str:
    """The manifest of an adapter; `comment` is one or more lines without #."""
    content = spec.to_dict()
    content["source"] = {kind: _on_a_line(value) for kind, value in content["source"].items()}
    lineage = content.get("lineage", {})
    if "hyperparameters" in lineage:
        lineage["hyperparameters"] = {k: _Text(v) for k, v in lineage["hyperparameters"].items()}
    if "evals" in lineage:
        lineage["evals"] = [_on_a_line(e) for e in lineage["evals"]]
    document = {
        "apiVersion": names.API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "spec": content,
    }
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100_000, allow_unicode=True)
