"""The processes of one cluster: which run, starting and stopping them.

The first is the anchor, which holds the namespaces; its record is called `namespaces`. A component that was stopped by
request leaves a mark, which tells it from one that died.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ClusterError
from cluster.local import processes
from cluster.local.components import Component
from cluster.local.layout import NODE_ADDRESS, SERVICE_CIDR, Layout
from cluster.local.processes import Process, Program
from cluster.provider import ComponentStatus

ANCHOR = "namespaces"
_NETWORK = [
    "link set lo up",
    f"address add {NODE_ADDRESS}/32 dev lo",
    # So that the node itself reaches Services: the packet needs a route before kube-proxy's rules give it a target.
    f"route add {SERVICE_CIDR} dev lo src {NODE_ADDRESS}",
]
_SYSCTLS = {"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/net/ipv4/ip_local_port_range": "10240 65535"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Members:
    """The processes of the cluster at `layout`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def anchor(self) -> Process | None:
        """The process that holds the namespaces, if it runs: then the cluster is at least partly up."""
        process = self._recorded(ANCHOR)
        return process if process is not None and process.alive() else None

    def require(self) -> Process:
        """The anchor; raises ClusterError when the cluster is not up."""
        anchor = self.anchor()
        if anchor is None:
            raise ClusterError(f"cluster {self._layout.name} is not up; bring it up with: make cluster")
        return anchor

    def ensure_anchor(self, init: Path) -> Process:
        """The anchor, started with new namespaces if there is none."""
        anchor = self.anchor()
        if anchor is not None:
            return anchor
        for folder in (*self._layout.folders, *map(Path, self._layout.covers)):
            folder.mkdir(parents=True, exist_ok=True)
        # pods write into it, each namespace in a folder that the kubelet makes there
        self._layout.cache.chmod(0o777)
        spec = {
            "init": str(init),
            "covers": {path: str(folder) for path, folder in self._layout.covers.items()},
            "network": _NETWORK,
            "sysctls": _SYSCTLS,
        }
        return processes.start_anchor(spec, self._record(ANCHOR))

    def is_current(self, part: Component, contents: Mapping[Path, str]) -> bool:
        """Whether the component runs, and with the command line and configuration wanted now."""
        process = self._recorded(part.name)
        return process is not None and process.alive() and process.fingerprint == part.fingerprint(contents)

    def ensure(self, part: Component, contents: Mapping[Path, str], programs: Mapping[str, Path]) -> None:
        """Start the component unless it runs as wanted; one that runs otherwise is started anew."""
        if self.is_current(part, contents):
            return
        process = self._recorded(part.name)
        if process is not None:
            process.end(part.patience)
        self._mark(part.name).unlink(missing_ok=True)
        # containerd looks for its shim by name.
        path = f"{programs['containerd-shim-runc-v2'].parent}:{_PATH}"
        environment = {"PATH": path, "TMPDIR": "/run/tmp", "HOME": "/root"}
        program = Program(part.argv, self.log(part.name), environment)
        processes.start_inside(program, self.require(), self._record(part.name), part.fingerprint(contents))

    def stop(self, part: Component) -> None:
        """Stop the component and remember that it was asked for."""
        self._mark(part.name).touch()
        process = self._recorded(part.name)
        if process is not None:
            process.end(part.patience)

    def kill(self, name: str, patience: float = 0) -> None:
        """End a process that is not needed any more, if it runs."""
        process = self._recorded(name)
        if process is not None:
            process.end(patience)
            self.forget_dead(name)

    def forget_dead(self, name: str) -> None:
        """Drop the record of a process that is about to be started anew, so that nobody waits for it in vain.

        After a machine was switched off there is one for every process.
        """
        process = self._recorded(name)
        if process is not None and not process.alive():
            self._record(name).unlink(missing_ok=True)

    def status(self, name: str) -> ComponentStatus:
        """How the process called `name` is."""
        process = self._recorded(name)
        if process is not None and process.alive():
            return ComponentStatus(name, "running", f"pid {process.pid}")
        if self._mark(name).exists():
            return ComponentStatus(name, "stopped")
        return ComponentStatus(name, "dead", "" if process is None else f"see {self.log(name)}")

    def check_alive(self) -> None:
        """Raise ClusterError with the last words of a process that died."""
        for record in sorted(self._layout.records.glob("*.json")):
            if self.status(record.stem).state == "dead":
                log = self.log(record.stem)
                last = "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else ""
                raise ClusterError(f"{record.stem} died; its log {log} ends with:\n{last}")

    def log(self, name: str) -> Path:
        """Where the process's output goes."""
        return self._layout.logs / f"{name}.log"

    def _recorded(self, name: str) -> Process | None:
        return processes.load(self._record(name))

    def _record(self, name: str) -> Path:
        return self._layout.records / f"{name}.json"

    def _mark(self, name: str) -> Path:
        return self._layout.records / f"{name}.stopped"
