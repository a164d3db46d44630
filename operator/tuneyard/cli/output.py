"""How commands answer: a table for people, JSON or YAML for programs, or a page. It needs no Kubernetes client."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

import yaml
from rich.console import Console, RenderableType

from tuneyard.api.base import ApiModel
from tuneyard.cli.errors import UserError

WIDTH_WITHOUT_TERMINAL = 160
Shown = TypeVar("Shown", bound=ApiModel)


def answer(view: Shown, render: Callable[[Shown], RenderableType], output: str | None) -> None:
    """Print the view as `-o` wants it, or rendered for people."""
    if output:
        sys.stdout.write(machine_readable(view, output))
    else:
        show(console_for(sys.stdout), render(view))


def write_page(path: Path, page: str) -> None:
    """Write the page and say where; raises UserError."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{path}\n")


def machine_readable(view: ApiModel, output: str) -> str:
    """The view as JSON or YAML text, camelCase, without fields that are unset."""
    data = view.to_dict()
    return json.dumps(data, indent=2) + "\n" if output == "json" else yaml.safe_dump(data, sort_keys=False)


def console_for(file: TextIO) -> Console:
    """Rich leaves colour out without a terminal and with NO_COLOR; words in brackets are never markup or code.

    What goes into a file or a pipe is not folded at 80 columns, as it would be by default.
    """
    wide = None if file.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return Console(file=file, width=wide, markup=False, highlight=False, emoji=False)


def show(console: Console, renderable: RenderableType) -> None:
    """Print; into a file or a pipe without the spaces with which tables fill their lines."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
