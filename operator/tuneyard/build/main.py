"""`tuneyard build run`: one task, in the pod of its Job.

What it came to stands in the container's termination message (a BuildResult) and in the last line of the log. Exit
codes: 0 built or found; 1 failed, the next attempt may succeed; 2 failed, and the same task fails again.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api.buildtask import BuildResult, BuildTask
from tuneyard.api.reasons import Reason
from tuneyard.build.errors import BuildError, StoppedError, of_artifact
from tuneyard.build.inputs import Inputs, Read
from tuneyard.build.outputs import output_of
from tuneyard.build.running import Run
from tuneyard.build.telling import Pod, Teller, Write, on_own_pod
from tuneyard.build.tooling import Tools
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials

_log = logging.getLogger(__name__)

_WORDS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard build`."""
    commands = parser.add_subparsers(dest="build_command", required=True)
    run = commands.add_parser("run", help="make what a task says, check it and store it")
    run.add_argument("--task", type=Path, required=True, help="the task (JSON)")
    run.add_argument("--work", type=Path, required=True, help="a folder to work in, as large as models and results")
    run.add_argument("--inputs", type=Path, help="where inputs are mounted; the task names them")
    run.add_argument("--termination-log", type=Path, default=Path("/dev/termination-log"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the task; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    read, write = _connected()
    key = ""
    with Teller(write) as teller:
        try:
            task = _task(args.task)
            key = task.key
            result, status = _run(task, args.work, (read, stopped), teller), 0
        except BuildError as error:
            result, status = _failed(key, error), 1 if error.again else 2
        teller.ended(result)
    args.termination_log.write_text(result.shortened())
    sys.stderr.flush()
    sys.stdout.write(f"{'built ' + str(result.digest) if status == 0 else 'error: ' + str(result.error)}\n")
    return status


def _run(task: BuildTask, work: Path, around: tuple[Read, threading.Event], teller: Teller) -> BuildResult:
    read, stopped = around
    work.mkdir(parents=True, exist_ok=True)
    try:
        output = output_of(task, read, stopped)
        inputs = Inputs(task, work, read, stopped)
        return Run(task, work, output, inputs, Tools.of(os.environ, work, stopped), teller).run()
    except ArtifactError as error:
        raise of_artifact("build", error) from error
    except OSError as error:
        if stopped.is_set():
            raise StoppedError from error
        raise BuildError(f"the work folder cannot be used: {error}; {_remedy(error)}", again=True) from error


def _remedy(error: OSError) -> str:
    """What a person can do about an error of the work folder."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"its volume must be writable by user {os.getuid()}: choose another build.scratch.storageClass"
    return "give build.scratch more room"


def _task(path: Path) -> BuildTask:
    try:
        task = BuildTask.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        count = f"{error.error_count()} errors" if isinstance(error, ValidationError) else str(error)
        raise BuildError(f"the task is of another version than this image ({count}): update it", again=False) from error
    if not task.steps:
        raise BuildError("the task has no steps", again=False)
    return task


def _connected() -> tuple[Read, Write | None]:
    """How Secrets are read and states told: by the API server in a pod, not at all elsewhere."""
    pod = Pod.of(os.environ)
    if pod is None:
        return _no_secrets, None
    from tuneyard.systems.kube.client import connect  # noqa: PLC0415 -- slow to import
    from tuneyard.systems.kube.credentials import read_credentials  # noqa: PLC0415

    api = connect()
    reading: Callable[[str], Credentials] = lambda name: read_credentials(api, pod.namespace, name)  # noqa: E731
    return reading, on_own_pod(api, pod)


def _no_secrets(name: str) -> Credentials:
    raise ArtifactError(
        Reason.CREDENTIALS_MISSING,
        f"Secret {name} cannot be read outside of a pod: set POD_NAME, POD_NAMESPACE, POD_UID",
    )


def _failed(key: str, error: BuildError) -> BuildResult:
    return BuildResult(key=key, error=" ".join(str(error).split())[:_WORDS], reason=error.reason)
