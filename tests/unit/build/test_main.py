"""`tuneyard build run` as a process: exit codes, the termination message, the last line of the log."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneyard.api.buildtask import BuildResult
from tuneyard.build.running import Run
from tuneyard.cli.main import run


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The command takes the process's log for itself."""
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before[0], before[1]


def ended(folder: Path, task: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, BuildResult, str]:
    (folder / "task.json").write_text(task)
    message = folder / "message"
    status = run(
        ["build", "run", "--task", str(folder / "task.json"), "--work", str(folder / "work"),
         "--termination-log", str(message)]
    )  # fmt: skip
    return status, BuildResult.model_validate_json(message.read_text()), capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"steps": []}, 2, "no steps"),
        ({"key": "x"}, 2, "of another version than this image"),
        ({"output": {}}, 2, "of a kind that this image does not know"),
        ({"outputPath": None}, 2, "not where it is mounted"),
        ({}, 1, "BaseModel base: /nowhere is not there"),
        (
            {"output": {"s3": {"uri": "s3://bucket/x", "credentials": {"name": "keys"}}}},
            1,
            "Secret keys cannot be read outside of a pod",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    changes: dict[str, object], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"key": "a" * 32, "step": {"gguf": {"baseModel": "base"}}}
    task = {
        "build": "default/x",
        "key": "a" * 32,
        "steps": [step],
        "inputs": [{"kind": "BaseModel", "name": "base", "localPath": "/nowhere"}],
        "output": {"volume": {"claimName": "models"}},
        "outputPath": str(tmp_path / "volume"),
        **changes,
    }
    found, result, last = ended(tmp_path, json.dumps(task), capsys)
    assert (found, result.digest) == (status, None)
    assert said in (result.error or "")
    assert last == f"error: {result.error}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "give build.scratch more room"),
        (errno.EACCES, "its volume must be writable by user"),
        (errno.EROFS, "its volume must be writable by user"),
    ],
)
def test_what_helps_a_work_folder_depends_on_what_is_wrong_with_it(
    code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Run) -> BuildResult:
        raise OSError(code, "no")

    monkeypatch.setattr(Run, "run", fails)
    step = {"key": "a" * 32, "step": {"gguf": {"baseModel": "base"}}}
    output = {"volume": {"claimName": "models"}}
    task = {"build": "default/x", "key": "a" * 32, "steps": [step], "inputs": [], "output": output}
    found, result, _ = ended(tmp_path, json.dumps({**task, "outputPath": str(tmp_path)}), capsys)
    assert found == 1
    assert said in (result.error or "")
