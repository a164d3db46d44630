"""The closed loop of examples/closed-loop on its sample, for real on the small model: from feedback to a commit.

    python -m demo.closedloop OUT [--epochs N]

It needs no cluster. OUT gets the run's files and a Git repository `manifests` with the proposal on a branch; some
minutes on two cores, most of them for training.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import training
from models.smollm2 import build_smollm2

ROOT = Path(__file__).parent.parent
LOOP = ROOT / "examples" / "closed-loop"
SAMPLE = LOOP / "sample"
CURRENT = ROOT / "examples" / "adapters" / "acme-support-v1"
EPOCHS = 14
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAME = "acme-support-v4"
"""Of the adapter that is proposed."""


def step(*arguments: object) -> int:
    """One step of the pipeline; returns its exit status."""
    words = ["-m", "closedloop", *map(str, arguments)]
    return training.run_python(words, path=(LOOP, ROOT / "operator"), check=False)


def light_step(*arguments: object) -> int:
    """One that needs no torch, in this Python."""
    sys.path.insert(0, str(LOOP))
    try:
        from closedloop.__main__ import main as closedloop  # noqa: PLC0415 -- it lies with the example
    finally:
        sys.path.remove(str(LOOP))
    return closedloop([str(word) for word in arguments])


def repository(folder: Path) -> Path:
    """A Git repository with the sample's manifests."""
    shutil.copytree(SAMPLE / "manifests", folder / "models")
    return committed(folder)


def committed(folder: Path) -> Path:
    """The folder, made a Git repository with what is in it."""
    for words in (
        ["init", "--quiet", "--initial-branch", "main"],
        ["config", "user.name", "Closed loop"],
        ["config", "user.email", "closed-loop@example.com"],
        ["add", "--all"],
        ["commit", "--quiet", "-m", "What is served"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def learn(run: Path, epochs: int) -> int:
    """The steps up to the verdict; returns the exit status of the last one."""
    base = build_smollm2()
    log, kept, deployment = SAMPLE / "conversations.jsonl", SAMPLE / "regression.jsonl", "models/acme-support"
    steps: tuple[tuple[Any, ...], ...] = (
        (light_step, "collect", run, "--feedback", SAMPLE / "feedback", "--log", log, "--deployment", deployment),
        (light_step, "select", run, "--previous", SAMPLE / "previous.jsonl"),
        (step, "train", run, "--base", base, "--base-name", BASE_NAME, "--epochs", epochs, "--first-layer", 20),
        (step, "evaluate", run, "--base", base, "--current", CURRENT, "--regression", kept, "--longest", 32),
    )
    for do, *words in steps:
        status: int = do(*words)
        if status:
            return status
    return 0


def propose(run: Path, repo: Path) -> int:
    """The last step, into a repository; returns its exit status."""
    return light_step(
        *("propose", run, "--repo", repo, "--file", "models/acme-support.yaml", "--deployment", "acme-support"),
        *("--base-model", "smollm2", "--name", NAME, "--revision", "v4"),
        *("--source", f"volume:artifacts/adapters/{NAME}"),
    )


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit status: 3 where the new adapter is not better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)
    run, repo = options.out / "run", repository(options.out / "manifests")
    status = learn(run, options.epochs) or propose(run, repo)
    if status == 0:
        subprocess.run(["git", "-C", str(repo), "show", f"propose/{NAME}"], check=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
