"""What a person sees, at 80 and 120 columns, compared with snapshots: TUNEYARD_UPDATE=1 writes them anew."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.unit.cli import world
from tuneyard.cli.statusrender import Look, bar, duration, render_deployment, render_overview
from tuneyard.cli.statusview import Read, deployment_view, overview

SNAPSHOTS = Path(__file__).parent / "snapshots"


def shown(renderable: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def compare(name: str, text: str) -> None:
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("TUNEYARD_UPDATE"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("ready", [False, True])
def test_deployment(width: Any, ready: Any) -> None:
    read = world.read(ready)
    view = deployment_view(read.deployments[0], read, world.NOW)
    compare(
        f"deployment-{'ready' if ready else 'withheld'}-{width}", shown(render_deployment(view, Look(width)), width)
    )


@pytest.mark.parametrize("width", [80, 120])
def test_overview(width: Any) -> None:
    compare(f"overview-{width}", shown(render_overview(overview(world.read(), world.NOW), Look(width)), width))


def test_deployment_without_status_says_that_nobody_has_seen_it() -> None:
    read = Read(deployments=[world.deployment().model_copy(update={"status": world.NO_STATUS})])
    view = deployment_view(read.deployments[0], read, world.NOW)
    text = shown(render_deployment(view, Look(80)), 80)
    assert "Not ready" in text.splitlines()[0]
    assert "No status yet" in text
    assert " - " in text, "an unknown weight is not shown as 0 %"


@pytest.mark.parametrize("bars", [True, False])
def test_files_that_come_have_bars_on_a_terminal(bars: bool) -> None:
    look = Look(100, bars=bars)
    read = world.fetching()
    text = shown(render_overview(overview(read, world.NOW), look), 100)
    text += shown(render_deployment(deployment_view(read.deployments[0], read, world.NOW), look), 100)
    compare(f"fetching-{'bars' if bars else 'words'}", text)


def test_ascii_bars_where_the_terminal_has_no_blocks() -> None:
    read = world.read()
    view = deployment_view(read.deployments[0], read, world.NOW)
    assert shown(render_deployment(view, Look(80, plain=True)), 80).isascii()


@pytest.mark.parametrize(
    ("weight", "spec", "cells"),
    [
        (0, 0, "          "),
        (0, 10, "-         "),
        (1, 1, "#         "),
        (1, 50, "#----     "),
        (100, 90, "##########"),
        (50, 50, "#####     "),
        (100, 100, "##########"),
    ],
)
def test_bar(weight: Any, spec: Any, cells: Any) -> None:
    assert bar(weight, spec, plain=True, cells=10) == cells


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (90000, "1d")]
)
def test_duration(seconds: Any, text: Any) -> None:
    assert duration(seconds) == text
