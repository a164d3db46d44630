"""Processes that outlive the command that started them, known again by more than their number.

A process number is used again after its process is gone. So a record holds the number, the start time that the kernel
gives in ticks since boot, and the boot it belongs to; a signal is sent only when all three still hold, and through a
descriptor opened before the check, which keeps meaning that one process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

_ENTER = Path(__file__).with_name("enter.py")
_POLL = 0.02


@dataclass(frozen=True)
class Process:
    """One process; `fingerprint` tells whether it was started from what is wanted now."""

    pid: int
    start_ticks: int
    boot: str
    fingerprint: str = ""

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        if self.boot != _boot():
            return False
        state, ticks = _stat(self.pid)
        return ticks == self.start_ticks and state not in ("Z", "X", "")

    def kill(self, number: int) -> None:
        """Send a signal to this very process; nothing when it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass  # it ended between the check and the signal
        finally:
            os.close(descriptor)

    def end(self, patience: float) -> None:
        """Ask it to end, and after `patience` seconds make it; return when it is gone."""
        if patience > 0:
            self.kill(signal.SIGTERM)
            if self._gone_within(patience):
                return
        self.kill(signal.SIGKILL)
        if not self._gone_within(30):
            raise ClusterError(f"process {self.pid} does not end even when killed; it waits on the kernel, see dmesg")

    def _gone_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(_POLL)
        return True


@dataclass(frozen=True)
class Program:
    """What to start: its output goes to the end of `log`; it inherits `descriptors` under their numbers."""

    argv: tuple[str, ...]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def start_anchor(spec: dict[str, Any], record: Path) -> Process:
    """Make the cluster's namespaces (see enter.py) and return the process that holds them, recorded in `record`."""
    return _enter("anchor", {**spec, "record": str(record), "fingerprint": ""}, ())


def start_inside(program: Program, anchor: Process, record: Path, fingerprint: str) -> Process:
    """Start a program in the namespaces that `anchor` holds, recorded in `record`."""
    spec = {
        "anchor": anchor.pid,
        "argv": list(program.argv),
        "env": program.environment,
        "log": str(program.log),
        "fds": list(program.descriptors),
        "record": str(record),
        "fingerprint": fingerprint,
    }
    return _enter("run", spec, program.descriptors)


def save(process: Process, file: Path) -> None:
    """Write the record whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(asdict(process)))
    scratch.rename(file)


def load(file: Path) -> Process | None:
    """The recorded process, alive or not; None when there is no record."""
    try:
        return Process(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None


def _enter(mode: str, spec: dict[str, Any], descriptors: tuple[int, ...]) -> Process:
    # In a session of its own, so that an interrupt from the keyboard does not cut it short.
    finished = subprocess.run(
        [sys.executable, "-I", str(_ENTER), mode],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=descriptors,
        start_new_session=True,
    )
    answer = json.loads(finished.stdout) if finished.stdout else {"error": finished.stderr}
    started = load(Path(spec["record"]))
    if "error" in answer or started is None:
        raise ClusterError(f"cannot start {mode} {spec.get('argv', [''])[0]}: {answer.get('error')}")
    return started


def identify(pid: int) -> Process:
    """The process that has the number `pid` now; never alive when there is none."""
    return Process(pid, _stat(pid)[1], _boot())


def _stat(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", -1
    return fields[0], int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
