"""A model card: the README.md of a model, with YAML at its top (base_model, datasets, model-index). Pure.

Of the text below only the list that the Trainer writes under `Training hyperparameters` is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tuneyard.systems.trackers.record import Measured, Record, Selection, number

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PARAMETERS = re.compile(r"^#+ *Training hyper-?parameters[^\n]*\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL | re.I)
_BULLET = re.compile(r"^[-*] +`?([A-Za-z][\w .()-]{0,60}?)`?: *(\S[^\n]*)$", re.MULTILINE)


def add_model_card(record: Record, card: str, selection: Selection) -> None:
    """Add what a card says, where nothing better is known."""
    data = _front_matter(record, card)
    known = record.lineage
    base = data.get("base_model")
    record.fill(
        parent=known.parent or ", ".join(_texts(base)),
        dataset=known.dataset or ", ".join(_texts(data.get("datasets"))),
    )
    section = _PARAMETERS.search(card)
    if section:
        record.add_parameters({k.strip(): v.strip() for k, v in _BULLET.findall(section[1])}, selection)
    record.add_evaluations(_evaluations(data.get("model-index")))


def _front_matter(record: Record, card: str) -> Mapping[str, Any]:
    found = _FRONT.match(card)
    if found is None:
        return {}
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        record.notes.append(f"the model card's metadata is no YAML ({' '.join(str(error).split())[:200]})")
        return {}
    return data if isinstance(data, dict) else {}


def _texts(value: Any) -> list[str]:
    return [str(v) for v in (value if isinstance(value, list) else [value]) if v]


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (v for v in (value if isinstance(value, list) else []) if isinstance(v, Mapping))


def _evaluations(index: Any) -> Iterator[Measured]:
    """`model-index[].results[].metrics[]`: type and value are required there, the name is not."""
    for result in (r for model in _parts(index) for r in _parts(model.get("results"))):
        data = result.get("dataset")
        data = data if isinstance(data, Mapping) else {}
        where = str(data.get("type") or data.get("name") or "")
        where += f" ({data['split']})" if where and data.get("split") else ""
        for metric in _parts(result.get("metrics")):
            score = number(metric.get("value"))
            if score is not None and (metric.get("type") or metric.get("name")):
                name = str(metric.get("type") or metric.get("name"))
                yield Measured(name, score, where or None)
