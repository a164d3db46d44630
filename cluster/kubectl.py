"""kubectl, run with one kubeconfig; what it says goes into the error."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError


@dataclass(frozen=True)
class Kubectl:
    """A kubectl program and the cluster it talks to."""

    program: Path
    kubeconfig: Path

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run one command and return what it printed; raises ClusterError with its complaint."""
        finished = subprocess.run(
            [str(self.program), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments[:4])}: {finished.stderr.strip()}")
        return finished.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ... -o json`."""
        answer: dict[str, Any] = json.loads(self.run("get", *arguments, "-o", "json"))
        return answer

    def apply(self, manifest: str) -> None:
        """Server-side apply, with one field manager for all that the cluster brings."""
        self.run("apply", "--server-side", "--force-conflicts", "--field-manager=cluster", "-f", "-", stdin=manifest)


def service_port(service: dict[str, Any], port: int) -> str:
    """`ADDRESS:PORT` of a Service object's port inside the cluster; raises ClusterError when it has no such port."""
    name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
    ports = [entry["port"] for entry in service["spec"].get("ports", ())]
    if port not in ports:
        raise ClusterError(f"Service {name} has no port {port}; it has {', '.join(map(str, ports)) or 'none'}")
    address = service["spec"].get("clusterIP", "None")
    if address in ("None", ""):
        raise ClusterError(
            f"Service {name} is headless: it has no address to expose; expose one with a cluster address"
        )
    return f"{address}:{port}"
