"""The cgroups of a cluster's containers: found in every mounted hierarchy, removed when their processes are gone."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from cluster.errors import ClusterError

_MOUNTS = Path("/proc/self/mounts")


def hierarchies(mounts: str) -> list[Path]:
    """Mount points of all cgroup hierarchies (v1 and v2) in the text of /proc/self/mounts."""
    fields = [line.split() for line in mounts.splitlines()]
    return [Path(field[1]) for field in fields if field[2] in ("cgroup", "cgroup2")]


def existing(cgroup: str) -> list[Path]:
    """The folders of `cgroup` ("/a/b") that are there."""
    folders = [root / cgroup.lstrip("/") for root in hierarchies(_MOUNTS.read_text())]
    return [folder for folder in folders if folder.is_dir()]


def remove(cgroup: str, patience: float = 10) -> None:
    """Remove `cgroup`, all below it, and its parent if that is empty then. Its processes have been killed already."""
    until = time.monotonic() + patience
    while folders := existing(cgroup):
        for folder in folders:
            _remove_tree(folder)
        if existing(cgroup) and time.monotonic() > until:
            raise ClusterError(f"{folders[0]} still holds processes; end those in its cgroup.procs and run down again")
        time.sleep(0.02)
    for parent in existing(cgroup.rpartition("/")[0]):
        _rmdir(parent)


def _remove_tree(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        _rmdir(Path(path))


def _rmdir(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        # Busy: the last process is still on its way out, or another cluster lives below. Gone: somebody else did it.
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
            raise
