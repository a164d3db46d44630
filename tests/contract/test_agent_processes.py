"""Agents killed at every stage, with the transfer, the cache, the checks and the copy that they have in a pod."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.agent_processes import SCENARIOS
from tests.contract.disks import small_disk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A disk that has everything written at once: a story writes to it a thousand times."""
    with small_disk(tmp_path / "memory", "size=256m") as folder:
        yield folder


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agents_that_are_killed(scenario: str, memory: Path) -> None:
    program = [sys.executable, "-m", "tests.contract.agent_processes", scenario, str(memory), "7", "0"]
    path = os.pathsep.join([str(ROOT / "operator"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(program, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
