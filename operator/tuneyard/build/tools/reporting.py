"""What a tool tells whoever started it: lines of JSON, the last of which is its result or why there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, TextIO

_TOLD_SECONDS = 1.0


class ToolError(Exception):
    """Why a tool cannot make what it was asked for: one sentence, with what to do."""


class Report:
    """Writes the lines. Calls come from one thread."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._told = 0.0

    def doing(self, what: str, done: float = 0, total: float = 0) -> None:
        """A part begins, or goes on: `done` of `total` where that is known."""
        now = time.monotonic()
        if done and done < total and now - self._told < _TOLD_SECONDS:
            return
        self._told = now
        line: dict[str, Any] = {"doing": what}
        if total:
            line["percent"] = round(100 * done / total, 1)
        self._write(line)

    def result(self, found: Mapping[str, Any]) -> None:
        """The tool is done."""
        self._write({"result": found})

    def error(self, message: str, *, expected: bool = True) -> None:
        """The tool has failed; `expected`: for what it was given, so that it fails the same way again."""
        self._write({"error": message, "expected": expected})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
