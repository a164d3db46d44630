"""JSON in two files: what a killed process leaves, and that a full volume takes a write all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tuneyard.gateway.keptstate import KeptState


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    state = KeptState(tmp_path / "a.json", 100)
    assert (state.read(), state.spoiled) == (None, False)
    state.reserve()
    assert KeptState(tmp_path / "a.json", 100).read() is None
    assert not KeptState(tmp_path / "a.json", 100).spoiled, "room is no text"
    for n in range(5):
        state.write({"n": n, "text": "x" * (50 - 10 * n)})
        assert state.read()["n"] == n
        state = KeptState(tmp_path / "a.json", 100)
        assert state.read() == {"n": n, "text": "x" * (50 - 10 * n)}


@pytest.mark.lasting
@pytest.mark.parametrize("size", [20, 400])
def test_half_of_a_write_leaves_what_was_there_before(tmp_path: Path, size: int) -> None:
    """Wherever the process is killed within it."""
    state = KeptState(tmp_path / "a.json", 200)
    state.write("first")
    state.write("second")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    state.write("x" * size)
    (written,) = [path for path, text in before.items() if path.read_bytes() != text]
    after = written.read_bytes()
    for at in range(len(after)):
        was = before[written] + b"\0" * (len(after) - len(before[written]))
        written.write_bytes(after[:at] + was[at:])
        again = KeptState(tmp_path / "a.json", 200)
        assert again.read() in ("second", "x" * size)
        assert not again.spoiled
        again.write("next")
        assert KeptState(tmp_path / "a.json", 200).read() == "next"
        for path, text in before.items():
            path.write_bytes(text)


def test_a_write_needs_no_room_that_was_not_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = KeptState(tmp_path / "a.json", 300)
    state.reserve()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        state.write("x" * 200)
        state.write("y" * 200)
        with pytest.raises(OSError, match="No space"):
            state.write("z" * 1000)
        assert state.read() == KeptState(tmp_path / "a.json", 300).read() == "y" * 200
    state.write("z" * 1000)
    state.write("z" * 1000)
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert min(sizes) > 2000, "there is room for as much again"
    state.write("short")
    assert {path.stat().st_size for path in tmp_path.iterdir()} == sizes, "room is not given back"
    assert KeptState(tmp_path / "a.json", 300).read() == "short"


@pytest.mark.parametrize("text", ["{}", json.dumps([1, 4, "00"]) + "\nnull", "[1, 2]\n"])
def test_what_is_something_else_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.1.json").write_text(text)
    state = KeptState(tmp_path / "a.json", 10)
    assert state.spoiled
    state.write(1)
    state.write(2)
    assert (KeptState(tmp_path / "a.json", 10).read(), state.read()) == (2, 2)
