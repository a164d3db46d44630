"""Texts that a quantisation measures a model on: JSON lines with `text`, `prompt` or `messages`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneyard.build.tools.reporting import ToolError
from tuneyard.build.tools.texts import PLAIN

_MOST_BYTES = 1 << 30


def read_lines(place: Path) -> list[dict[str, Any]]:
    """Every line of a file, or of all .jsonl files of a folder in the order of their names; raises ToolError."""
    files = sorted(place.rglob("*.jsonl")) if place.is_dir() else [place]
    if not files:
        raise ToolError("the calibration data holds no .jsonl file: put JSON lines with text, prompt or messages there")
    if sum(file.stat().st_size for file in files) > _MOST_BYTES:
        raise ToolError("the calibration data is larger than 1 GiB: a few thousand lines are enough")
    found = []
    for file in files:
        for number, line in enumerate(file.read_text(errors="strict").splitlines(), 1):
            if line.strip():
                found.append(_parsed(line, f"{file.name}, line {number}"))
    if not found:
        raise ToolError("the calibration data is empty: write one JSON object a line")
    return found


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ToolError(f"{where} of the calibration data is no JSON: {error}") from error
    if not isinstance(value, dict) or sum(key in value for key in ("text", "prompt", "messages")) != 1:
        raise ToolError(f"{where} of the calibration data needs exactly one of text, prompt and messages")
    if "messages" in value and not (
        isinstance(value["messages"], list) and all(isinstance(m, Mapping) for m in value["messages"])
    ):
        raise ToolError(f"{where} of the calibration data has messages that are no list of objects")
    return value


def chosen(lines: list[dict[str, Any]], samples: int, seed: int) -> list[dict[str, Any]]:
    """At most so many lines, drawn by the seed and in the order of the data."""
    if len(lines) <= samples:
        return lines
    drawn = sorted(random.Random(seed).sample(range(len(lines)), samples))  # noqa: S311 -- a draw that repeats
    return [lines[n] for n in drawn]


def as_text(line: Mapping[str, Any], tokenizer: Any) -> str:
    """A line as the model sees it: messages by its own chat template; raises ToolError."""
    if "messages" in line:
        template = None if tokenizer.chat_template else PLAIN
        try:
            return str(tokenizer.apply_chat_template(line["messages"], chat_template=template, tokenize=False))
        except Exception as error:  # a template is the model's own program, and fails as it likes
            raise ToolError(f"the chat template does not take a line of the calibration data: {error}") from error
    return str(line.get("text", line.get("prompt")))
