"""What a benchmark's exit code says: every target that is missed fails it, and one place decides that."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import report


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("value", "target", "holds"),
    [
        (0.1, "<= 0.1", True),
        (0.11, "<= 0.1", False),
        (0.9, ">= 0.9", True),
        (0.89, ">= 0.9", False),
        (0.0, "0", True),
        (5.0, "5", True),
        (4, "5", False),
        (1, "0", False),
        (math.inf, "<= 5", False),
        (math.nan, "<= 5", False),
        (math.nan, "0", False),
        (7.0, report.REPORTED, True),
    ],
)
def test_a_bound_a_number_or_only_reported(value: float, target: str, holds: bool) -> None:
    assert report.write("x", {"f": value}, {}, targets={"f": target}) == (0 if holds else 1)


@pytest.mark.parametrize("target", ["about 1", "< 1", "", "<= fast"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError):
        report.write("x", {"f": 1.0}, {}, targets={"f": target})


def test_a_target_of_a_figure_that_was_not_measured_is_no_success() -> None:
    with pytest.raises(ValueError, match="a target of g"):
        report.write("x", {"f": 1.0}, {}, targets={"g": "0"})


def test_what_is_missed_is_said_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.write("x", {"a": 0.2, "b": 3, "c": 1}, {"a": "s"}, targets={"a": "<= 0.1", "b": "3"}) == 1
    told = capsys.readouterr().out
    assert "missed: x a: 0.2, target <= 0.1" in told
    assert "missed: x b" not in told
    document = json.loads((folder / "x.json").read_text())
    assert (document["targets"], document["missed"]) == ({"a": "<= 0.1", "b": "3"}, ["a"])
    assert report.write("x", {"a": 0.1}, {}) == 0


@pytest.mark.parametrize("name", bench.names())
def test_every_benchmark_ends_with_what_write_says(name: str) -> None:
    tree = ast.parse((bench.FOLDER / f"{name}.py").read_text())
    (main,) = (f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "main")

    def is_write(node: ast.AST | None) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "write"

    codes = {
        t.id
        for a in ast.walk(main)
        if isinstance(a, ast.Assign) and is_write(a.value)
        for t in a.targets
        if isinstance(t, ast.Name)
    }
    last = main.body[-1]
    assert isinstance(last, ast.Return)
    assert is_write(last.value) or (isinstance(last.value, ast.Name) and last.value.id in codes)
