"""What the machine must have, checked before anything is started: each lack is said at once, with its remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from cluster import paths
from cluster.errors import ClusterError
from cluster.progress import Progress

# A program or file that must be there, and the Debian package that brings it.
NEEDED = {
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "mount": "mount",
    "nsenter": "util-linux",
    "mmdebstrap": "mmdebstrap",
}
MEMORY_BYTES = 2 << 30
DISK_BYTES = 3 << 30
_CAP_SYS_RESOURCE = 24


def check(progress: Progress) -> None:
    """Raise ClusterError for what cannot be mended; install missing programs where apt-get is there."""
    if os.uname().sysname != "Linux":
        raise ClusterError("the local cluster runs on Linux only; use CLUSTER=kind, with Docker and kind installed")
    if os.geteuid() != 0:
        raise ClusterError("the local cluster needs root (namespaces, mounts); run with sudo, or use CLUSTER=kind")
    _check_memory(_available_memory(Path("/proc/meminfo").read_text()))
    _check_disk()
    missing = missing_packages()
    if missing:
        install(missing, progress)


def missing_packages() -> list[str]:
    """Debian packages whose programs are not there."""
    return sorted({package for program, package in NEEDED.items() if shutil.which(program) is None})


def may_raise_oom_score() -> bool:
    """Whether this machine lets root protect processes from the out-of-memory killer; small VMs often do not."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) >> _CAP_SYS_RESOURCE & 1)


def install(packages: list[str], progress: Progress) -> None:
    """Install Debian packages; raises ClusterError with what to do where that cannot be."""
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"these programs are missing: {wanted} (Debian names); install them with your package manager"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with progress.step(f"install with apt-get: {wanted}"):
        for command in (["update", "-qq"], ["install", "-qq", "--no-install-recommends", *packages]):
            finished = subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, check=False
            )
            if finished.returncode:
                raise ClusterError(f"apt-get {command[0]} failed; install {wanted} by hand:\n{finished.stderr}")
    if still := missing_packages():
        raise ClusterError(f"{' '.join(still)} installed, but the programs are not on PATH; add /usr/sbin to it")


def require_compilers(progress: Progress) -> None:
    """Install compilers for C and C++ where there are none."""
    missing = [package for package, program in (("gcc", "cc"), ("g++", "c++")) if shutil.which(program) is None]
    if missing:
        install(missing, progress)


def require_memory(needed: int, what: str) -> None:
    """Raise ClusterError when less memory than that many bytes is available."""
    available = _available_memory(Path("/proc/meminfo").read_text())
    if available < needed:
        raise ClusterError(
            f"{what} needs {needed >> 30} GiB of memory, {available / (1 << 30):.1f} GiB are free: end other programs "
            "(another cluster of this kind goes with `make down`) or use a larger machine"
        )


def require_disk(needed: int, what: str) -> None:
    """Raise ClusterError when less disk than that many bytes is free where builds are cached."""
    folder = paths.cache_root()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ClusterError(
            f"{what} needs {needed >> 30} GiB of disk at {folder}, {_gib(free)} GiB are free: make room, or set "
            "TUNEYARD_CACHE (and GOCACHE, GOMODCACHE, UV_CACHE_DIR) to a larger disk"
        )


def available_memory() -> int:
    """Bytes that programs may still take."""
    return _available_memory(Path("/proc/meminfo").read_text())


def _available_memory(meminfo: str) -> int:
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _check_memory(available: int) -> None:
    if available < MEMORY_BYTES:
        raise ClusterError(
            f"the cluster needs {_gib(MEMORY_BYTES)} GiB of memory, {_gib(available)} GiB are available: "
            "end other programs, or another cluster (TUNEYARD_CLUSTER=NAME make down)"
        )


def _check_disk() -> None:
    for folder, what in ((paths.cache_root(), "set TUNEYARD_CACHE to a larger disk"), (Path("/var/lib"), "make room")):
        free = shutil.disk_usage(folder).free
        if free < DISK_BYTES:
            raise ClusterError(
                f"the cluster needs {_gib(DISK_BYTES)} GiB of disk at {folder}, {_gib(free)} GiB are free: {what}"
            )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
