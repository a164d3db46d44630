"""JSON lines, and the files of a run.

| file | written by | what |
|---|---|---|
| collected.jsonl | collect | feedback with the conversation that it is about |
| train.jsonl, heldout.jsonl | select | examples to train on, and those kept out |
| selection.json | select | counts, and the dataset's hash |
| adapter/ | train | the new adapter |
| training.json | train | base, hyperparameters, time |
| evaluation.json | evaluate | scores of base, current adapter and candidate; the verdict |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class StepError(Exception):
    """A step cannot be done; the text says why and what to do."""


def lines_of(content: bytes, what: str) -> Iterator[Json]:
    """The objects of JSON lines; raises StepError."""
    # not splitlines(): users write line separators of Unicode, and JSON leaves those as they are
    for number, line in enumerate(content.decode().split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            raise StepError(f"{what}, line {number}: not JSON") from None
        if not isinstance(found, dict):
            raise StepError(f"{what}, line {number}: not a JSON object")
        yield found


def read_lines(path: Path) -> list[Json]:
    """The objects of a file of JSON lines; raises StepError."""
    try:
        return list(lines_of(path.read_bytes(), str(path)))
    except OSError as error:
        raise StepError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, step: str) -> Json:
    """The object in a file that `step` writes; raises StepError."""
    try:
        found: Json = json.loads(path.read_text())
    except (OSError, ValueError):
        raise StepError(f"{path} is not there or not whole: run `{step}` first") from None
    return found


def as_lines(objects: Iterable[Json]) -> bytes:
    """JSON lines; the same objects give the same bytes."""
    return "".join(json.dumps(o, ensure_ascii=False, sort_keys=True) + "\n" for o in objects).encode()


def write_json(path: Path, content: Json) -> None:
    """One object, for people too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(content: bytes) -> str:
    """`sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
