"""Running a tool: a process of its own, in the tools' environment.

Rules:
- it gets none of this process's secrets: of the environment only what is listed, and its home is the work folder;
- what it has to say comes as lines of JSON through a pipe, whatever its libraries print goes to the log;
- when this process is to end, so is the tool, with all that it has started.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneyard.build.errors import BuildError, StoppedError

_log = logging.getLogger(__name__)

PYTHON, PACKAGES = "TUNEYARD_BUILD_PYTHON", "TUNEYARD_BUILD_PACKAGES"
"""Environment, set by the image: the tools' Python, and folders to put before its packages."""
_PASSED = ("PATH", "LANG", "LC_ALL", "TUNEYARD_LLAMA_QUANTIZE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_LOOK = 0.5
_PATIENCE = 10.0
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MODULE = "tuneyard.build.tools"

Heard = Callable[[str, float | None], None]
"""Hears what a tool does, and how many percent of it are done where it knows."""


@dataclass(frozen=True)
class Tools:
    """The tools' environment."""

    work: Path
    python: str = sys.executable
    packages: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, environment: Mapping[str, str], work: Path, stopped: threading.Event) -> Tools:
        """As the image says."""
        return cls(work, environment.get(PYTHON) or sys.executable, environment.get(PACKAGES, ""), stopped)

    def run(self, tool: str, settings: Mapping[str, Any], output: Path, heard: Heard) -> dict[str, Any]:
        """What the tool has to say of what it put into `output`; raises BuildError."""
        request = self.work / f"{tool}.json"
        request.write_text(json.dumps({"tool": tool, "output": str(output), "settings": dict(settings)}))
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as report:
            process = self._start(request, writing)
            os.close(writing)
            try:
                last = self._listen(report.fileno(), heard)
            except BaseException:
                _end(process)
                raise
            status = process.wait()
        return _result(tool, last, status)

    def _start(self, request: Path, writing: int) -> subprocess.Popen[bytes]:
        for folder in ("home", "tmp"):
            (self.work / folder).mkdir(exist_ok=True)
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        environment = {
            **passed,
            "HOME": str(self.work / "home"),
            "TMPDIR": str(self.work / "tmp"),
            "PYTHONPATH": self.packages,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(threads()),
            # threads that spin while they wait slow down everything beside them
            "OMP_WAIT_POLICY": "PASSIVE",
            # the image has no compiler, and without one torch.compile fails at its first use
            "TORCHDYNAMO_DISABLE": "1",
        }
        return subprocess.Popen(
            [self.python, "-m", _MODULE, str(request), f"/dev/fd/{writing}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
        )

    def _listen(self, report: int, heard: Heard) -> dict[str, Any]:
        """The last line; returns when the tool has closed its end. Raises StoppedError."""
        rest, last = b"", dict[str, Any]()
        with selectors.DefaultSelector() as selector:
            selector.register(report, selectors.EVENT_READ)
            while True:
                if self.stopped.is_set():
                    raise StoppedError
                if not selector.select(_LOOK):
                    continue
                piece = os.read(report, 1 << 16)
                if not piece:
                    return last
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    last = json.loads(line)
                    if "doing" in last:
                        heard(str(last["doing"]), last.get("percent"))


def threads(quota: Path = _CPU_MAX) -> int:
    """How many threads compute: the cores that there are, or what the container may use of them."""
    cores = len(os.sched_getaffinity(0))
    try:
        allowed, _, period = quota.read_text().partition(" ")
        return max(1, min(cores, round(int(allowed) / int(period))))
    except (OSError, ValueError):  # no such limit
        return cores


def _result(tool: str, last: Mapping[str, Any], status: int) -> dict[str, Any]:
    if "result" in last and status == 0:
        found: dict[str, Any] = last["result"]
        return found
    if "error" in last:
        raise BuildError(str(last["error"]), again=not last.get("expected", True))
    if status == -signal.SIGKILL:
        raise BuildError(
            f"{tool} was killed, as happens where memory does not suffice: raise build.resources", again=True
        )
    raise BuildError(f"{tool} ended with {status} and without a word: see the log of the pod", again=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the tool and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_PATIENCE)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
