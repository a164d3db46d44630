"""A tool as a process: what it says, how it fails, and that it ends with the build."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tuneyard.build.errors import BuildError, StoppedError
from tuneyard.build.tooling import Tools, threads

PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")
"""Not the one of this environment, which puts this checkout before all else."""
PACKAGE = """
import json, os, signal, sys, time
request = json.load(open(sys.argv[1]))
report = open(sys.argv[2], "w")
def say(**line): report.write(json.dumps(line) + chr(10)); report.flush()
"""


def tools(folder: Path, body: str, stopped: threading.Event | None = None) -> Tools:
    """Tools whose package is this program."""
    package = folder / "packages" / "tuneyard" / "build" / "tools"
    package.mkdir(parents=True)
    for level in (package, package.parent, package.parent.parent):
        (level / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PACKAGE + body)
    (folder / "work").mkdir()
    return Tools(folder / "work", PYTHON, str(folder / "packages"), stopped or threading.Event())


def run(made: Tools, heard: list[Any] | None = None) -> dict[str, Any]:
    said = [] if heard is None else heard
    return made.run("merge", {"a": 1}, made.work / "out", lambda what, percent: said.append((what, percent)))


def test_what_a_tool_says_arrives(tmp_path: Path) -> None:
    body = 'say(doing="merging", percent=12.5); say(doing="writing"); say(result={"given": request["settings"]})'
    heard: list[Any] = []
    assert run(tools(tmp_path, body), heard) == {"given": {"a": 1}}
    assert heard == [("merging", 12.5), ("writing", None)]


@pytest.mark.parametrize(
    ("body", "said", "again"),
    [
        ('say(error="no", expected=True); sys.exit(1)', "^no$", False),
        ('say(error="out of luck", expected=False); sys.exit(1)', "^out of luck$", True),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory does not suffice", True),
        ("sys.exit(3)", "ended with 3 and without a word", True),
        ("say(result={}); sys.exit(3)", "ended with 3", True),
    ],
)
def test_a_failure_is_one_line(tmp_path: Path, body: str, said: str, again: bool) -> None:
    with pytest.raises(BuildError, match=said) as raised:
        run(tools(tmp_path, body))
    assert raised.value.again is again


def test_a_tool_sees_no_secret_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = run(tools(tmp_path, "say(result=dict(os.environ))"))
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert seen["HOME"].startswith(str(tmp_path))


def test_a_tool_and_what_it_has_started_end_with_the_build(tmp_path: Path) -> None:
    stopped = threading.Event()
    body = """
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)
say(doing=str(child))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(600)
"""
    heard: list[str] = []

    def hear(what: str, _percent: float | None) -> None:
        heard.append(what)
        stopped.set()

    made = tools(tmp_path, body, stopped)
    with pytest.raises(StoppedError):
        made.run("merge", {}, made.work / "out", hear)
    until = time.monotonic() + 30
    while _lives(int(heard[0])):
        assert time.monotonic() < until
        time.sleep(0.01)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("quota", "found"), [("100000 100000", 1), ("max 100000", None), ("10000 100000", 1)])
def test_threads_are_those_that_the_container_may_use(tmp_path: Path, quota: str, found: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert threads(tmp_path / "cpu.max") == (found or len(os.sched_getaffinity(0)))
