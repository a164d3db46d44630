"""Python packages from the hashed locks, for images and for programs beside the cluster.

Rules:
- A lock (`requirements/<name>.txt`) names every package with its hashes and no index, so what
  is installed is what was tested wherever the index is; nothing outside the lock gets in
  (`--no-deps`).
- `uv` links files out of its own cache: a virtual environment costs the disk nothing more. Linked
  files are shared with that cache, so nobody may write into them; byte code goes beside them.
- A folder in the cache exists only when it is complete: it is built under another name and
  renamed. The key in its name is over everything that went into it.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


class BuildError(RuntimeError):
    """Something an image or environment needs is missing or failed; the message says the remedy."""


def cache_root() -> Path:
    """$TUNEYARD_CACHE, by default ~/.cache/tuneyard; made when it is not there."""
    root = Path(os.environ.get("TUNEYARD_CACHE") or Path.home() / ".cache" / "tuneyard")
    root.mkdir(parents=True, exist_ok=True)
    return root


def say(text: str) -> None:
    """One line of progress, on stderr: stdout carries results only."""
    print(f"    {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Say what begins, and how long it took when it ends well."""
    say(f"{text} ...")
    began = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time build what `name` names; the lock goes with the process."""
    path = cache_root() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder on the same file system as `beside`, removed at the end whatever happens."""
    beside.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=".building-", dir=beside))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(command: list[str], *, env: Mapping[str, str] | None = None) -> str:
    """Run to the end and return stdout.

    Raises BuildError with the end of what the command said when it fails or is not there.
    """
    try:
        done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise BuildError(f"{' '.join(command[:6])} ended with {done.returncode}:\n{tail}")
    return done.stdout


def key_over(*parts: str) -> str:
    """12 hex digits that change when any part changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()[:12]


def uv() -> str:
    """The uv of this environment, else the one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise BuildError("uv is missing: it is in requirements/dev.txt, `make venv` installs it")
    return found


def lock_path(name: str) -> Path:
    """The lock called `name`."""
    path = CHECKOUT / "requirements" / f"{name}.txt"
    if not path.exists():
        raise BuildError(f"there is no requirements/{name}.txt")
    return path


def venv(name: str) -> Path:
    """The Python of an environment that holds exactly the lock `name`, built when missing."""
    lock = lock_path(name).read_text()
    key = key_over("venv-1", lock, platform.python_version(), platform.machine())
    home = cache_root() / "venvs" / f"{name}-{key}"
    python = home / "bin" / "python"
    with locked(f"venv-{name}"):
        if python.exists():
            return python
        with scratch(home.parent) as temporary, progress(f"environment {name}"):
            built = temporary / "venv"
            run([uv(), "venv", "--quiet", "--relocatable", "--python", sys.executable, str(built)])
            install = [uv(), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
            run([*install, "--python", str(built / "bin" / "python"), "-r", str(lock_path(name))])
            built.rename(home)
    return python
