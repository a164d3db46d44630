"""Where the cluster keeps things, and how it is named.

Two roots. The cache (`$TUNEYARD_CACHE`) holds what is costly to make and true for ever: binaries and images. The state
folder (`/var/lib/tuneyard/<name>`) holds what belongs to one running cluster and is removed by `down`.
Everything is named by a content key or by the cluster's name, so two checkouts and two clusters do not meet.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError

SOURCE = Path(__file__).resolve().parent
STATES = Path("/var/lib/tuneyard")
# The node's folder of models and adapters, for hostPath volumes: the same in every cluster, so that manifests are.
NODE_ARTIFACTS = STATES / "artifacts"
# The node's folder for what pods fetch over the network; it may be written by them.
NODE_CACHE = STATES / "cache"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def cache_root() -> Path:
    """The cache folder, made when it is not there."""
    root = Path(os.environ.get("TUNEYARD_CACHE") or Path.home() / ".cache" / "tuneyard").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root


def cluster_name() -> str:
    """The name of the cluster to work on, from `$TUNEYARD_CLUSTER`; raises ClusterError when it is no name."""
    name = os.environ.get("TUNEYARD_CLUSTER") or "tuneyard"
    if not _NAME.fullmatch(name) or name in (NODE_ARTIFACTS.name, NODE_CACHE.name):
        raise ClusterError(
            f"TUNEYARD_CLUSTER={name!r} is no cluster name: use up to 32 lower-case letters, digits and dashes"
        )
    return name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock `name` against every other process on this machine; the kernel frees it if we die."""
    folder = cache_root() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
