"""Builds for tests: a task over folders, and the build's own process with the real tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import llamacpp, pythons
from tests.contract.apiserver import ROOT
from tuneyard.api.buildtask import BuildResult, BuildTask
from tuneyard.build.tooling import PACKAGES, PYTHON
from tuneyard.build.tools.gguf import QUANTIZER
from tuneyard.systems.artifacts.folder import digest_of

Json = dict[str, Any]


@dataclass
class Builder:
    """A folder with a volume for results; `inputs`: name of a BaseModel, a LoRAAdapter or texts to its files."""

    folder: Path
    bases: dict[str, Path] = field(default_factory=dict)
    adapters: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    def task(self, *steps: Json, **changes: Any) -> BuildTask:
        """The task of these steps; keys are counted."""
        keys = [f"{number:032x}" for number in range(1, len(steps) + 1)]
        places = (("BaseModel", self.bases), ("LoRAAdapter", self.adapters), ("Calibration", self.texts))
        inputs = [
            {"kind": kind, "name": name, "localPath": str(path)}
            for kind, found in places
            for name, path in found.items()
        ]
        given: Json = {
            "build": "default/test",
            "key": keys[-1],
            "steps": [{"key": key, "step": step} for key, step in zip(keys, steps, strict=True)],
            "inputs": inputs,
            "output": {"volume": {"claimName": "models"}},
            "outputPath": str(self.volume),
        }
        return BuildTask.from_dict({**given, **changes})

    def start(self, task: BuildTask, work: str = "work") -> subprocess.Popen[str]:
        """The process, as in the pod of a Job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "task.json").write_text(json.dumps(task.to_dict()))
        tools = {PYTHON: str(pythons.venv("build")), PACKAGES: str(ROOT / "operator")}
        if (programs := llamacpp.built()) is not None:
            tools[QUANTIZER] = str(programs / "bin" / "llama-quantize")
        command = [sys.executable, "-m", "tuneyard", "build", "run", "--task", str(self.folder / "task.json")]
        return subprocess.Popen(
            [*command, "--work", str(self.folder / work), "--termination-log", str(self.folder / "message")],
            env={**os.environ, "PYTHONPATH": str(ROOT / "operator"), **tools},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, task: BuildTask, work: str = "work") -> tuple[int, BuildResult]:
        """Run it to the end: its exit code and what it leaves in its termination message."""
        process = self.start(task, work)
        _, said = process.communicate()
        sys.stderr.write(said)
        result = BuildResult.model_validate_json((self.folder / "message").read_text())
        return process.returncode, result

    def built(self, *steps: Json) -> tuple[Path, BuildResult]:
        """The folder of what these steps make; it has the digest that its record says."""
        task = self.task(*steps)
        status, result = self.run(task)
        assert (status, result.error) == (0, None)
        folder = self.volume / task.key
        assert digest_of(folder).digest == result.digest
        return folder, result


def until_said(process: subprocess.Popen[str], words: str) -> None:
    """Wait until the log has a line with these words; the rest of it is read and dropped."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return
    raise AssertionError(f"it ended before it said {words!r}")
