"""A recorded process is only ever that process: same number, same start, same boot."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_running_process_is_alive_and_its_record_reads_back(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = processes.identify(sleeper.pid)
    assert process.alive()
    processes.save(process, tmp_path / "record.json")
    assert processes.load(tmp_path / "record.json") == process
    assert processes.load(tmp_path / "absent.json") is None


@pytest.mark.parametrize("other", [{"start_ticks": 1}, {"boot": "another"}])
def test_a_reused_number_is_another_process_and_never_signalled(
    sleeper: subprocess.Popen[bytes], other: dict[str, object]
) -> None:
    stranger = dataclasses.replace(processes.identify(sleeper.pid), **other)  # type: ignore[arg-type]
    assert not stranger.alive()
    stranger.kill(signal.SIGKILL)
    stranger.end(0.1)
    assert sleeper.poll() is None


def test_end_asks_first_and_then_makes() -> None:
    stubborn = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    processes.identify(stubborn.pid).end(0.2)
    assert stubborn.wait(5) == -signal.SIGKILL
    stubborn.stdout.close()


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = processes.identify(sleeper.pid)
    sleeper.send_signal(signal.SIGKILL)
    process.end(0)
    # Nobody has collected it, so its number still stands in /proc.
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not process.alive()


def test_a_number_that_is_free_is_nobody() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = processes.identify(gone.pid)
    assert not process.alive()
    process.kill(signal.SIGTERM)
    assert processes.identify(os.getpid()).alive()
