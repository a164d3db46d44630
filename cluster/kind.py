"""The provider for people with Docker: a kind cluster made from kind-config.yaml, with the same images and chart.

It drives the programs `kind`, `docker` and `kubectl` and keeps nothing but its kubeconfig and the records of port
forwards. What differs from the local provider: the node image brings its own Kubernetes and DNS, only the fake GPUs
are added; a Service is exposed by `kubectl port-forward`, which ends when the pod behind it does and is then started
anew by the next `expose`. A folder of this machine is mounted into the node as paths.NODE_ARTIFACTS, so that a hostPath
volume below it means the same with either provider.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from cluster import addons, gobuild, paths, scratch_image
from cluster.errors import ClusterError
from cluster.kubectl import Kubectl, service_port
from cluster.local import processes
from cluster.progress import Progress
from cluster.provider import ComponentStatus, Status

CONFIG = paths.SOURCE.parent / "kind-config.yaml"
_REMEDY = {
    "kind": "install kind (kind.sigs.k8s.io), or use CLUSTER=local on Linux as root",
    "docker": "install Docker and start it, or use CLUSTER=local on Linux as root",
}
_FORWARD_SECONDS = 20


class Run(Protocol):
    """Runs a program to its end and returns what it printed; `stdin` is fed to it."""

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> str:
        """Raises ClusterError when the program is missing or fails."""
        ...


def run_program(argv: Sequence[str], stdin: str | None = None) -> str:
    """The Run that really runs."""
    if shutil.which(argv[0]) is None:
        raise ClusterError(f"{argv[0]} is not installed: {_REMEDY.get(argv[0], 'install it')}")
    finished = subprocess.run(list(argv), input=stdin, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ClusterError(f"{' '.join(argv[:4])} failed: {finished.stderr.strip()}")
    return finished.stdout


class KindCluster:
    """A kind cluster (see provider.Provider)."""

    def __init__(self, progress: Progress, run: Run = run_program, state: Path | None = None) -> None:
        self._progress = progress
        self._run = run
        self.name = paths.cluster_name()
        self._state = state or paths.cache_root() / "kind" / self.name

    def up(self) -> None:
        """Create the cluster unless it is there, and add the fake GPUs."""
        with paths.locked(f"kind-{self.name}"):
            self._run(["docker", "version", "--format", "{{.Server.Version}}"])
            if not self._exists():
                mounts = {paths.NODE_ARTIFACTS: self.artifacts(), paths.NODE_CACHE: self._state / "cache"}
                for folder in mounts.values():
                    folder.mkdir(parents=True, exist_ok=True)
                mounts[paths.NODE_CACHE].chmod(0o777)
                with self._progress.step(f"create kind cluster {self.name}"):
                    config = with_mounts(CONFIG.read_text(), mounts)
                    create = ["kind", "create", "cluster", "--name", self.name, "--config", "-", "--wait", "180s"]
                    self._run([*create, *self._kubeconfig_flag()], stdin=config)
            self._state.mkdir(parents=True, exist_ok=True)
            self._run(["kind", "export", "kubeconfig", "--name", self.name, *self._kubeconfig_flag()])
            self._add_fake_gpus()

    def load_image(self, archive: Path) -> None:
        """Load all images of an archive; `-` is standard input."""
        with tempfile.NamedTemporaryFile(suffix=".tar") as copy, self._progress.step(f"load {archive}"):
            if str(archive) == "-":
                shutil.copyfileobj(sys.stdin.buffer, copy)
                copy.flush()
                archive = Path(copy.name)
            self._run(["kind", "load", "image-archive", str(archive), "--name", self.name])

    def images(self) -> dict[str, str]:
        """Image name to content id, as the node's runtime has them."""
        listed = json.loads(self._run(["docker", "exec", self._node, "crictl", "images", "-o", "json"]))
        return {tag: image["id"] for image in listed["images"] for tag in image["repoTags"]}

    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        if not self._exists():
            raise ClusterError(f"kind cluster {self.name} is not up; bring it up with: make cluster CLUSTER=kind")
        return self._state / "kubeconfig"

    def artifacts(self) -> Path:
        """This machine's folder that the node has as paths.NODE_ARTIFACTS."""
        return self._state / "artifacts"

    def expose(self, namespace: str, service: str, port: int) -> str:
        """A loopback address forwarded to the Service."""
        service_port(self._kubectl().get("service", service, "-n", namespace), port)
        stem = self._state / "forwards" / f"{namespace}_{service}_{port}"
        record, log = stem.with_suffix(".process"), stem.with_suffix(".log")
        running = processes.load(record)
        if running is not None and running.alive() and (local := forwarded_port(log.read_text())):
            return f"127.0.0.1:{local}"
        log.parent.mkdir(parents=True, exist_ok=True)
        argv = [str(self._kubectl().program), f"--kubeconfig={self.kubeconfig()}", "port-forward", "-n", namespace]
        with log.open("w") as output:
            command = [*argv, f"service/{service}", f":{port}", "--address=127.0.0.1"]
            started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        processes.save(processes.identify(started.pid), record)
        return f"127.0.0.1:{_wait_forward(log, started)}"

    def status(self) -> Status:
        """Whether the cluster is there, and what is forwarded."""
        exists = shutil.which("kind") is not None and self._exists()
        exposed = {}
        for record in sorted(self._state.glob("forwards/*.process")):
            process = processes.load(record)
            local = forwarded_port(record.with_suffix(".log").read_text())
            if process is not None and process.alive() and local:
                namespace, service, port = record.stem.split("_")
                exposed[f"{namespace}/{service}:{port}"] = f"127.0.0.1:{local}"
        return Status(self.name, exists, (ComponentStatus(self._node, "running" if exists else "dead"),), exposed)

    def down(self) -> None:
        """Delete the cluster and end the forwards."""
        for record in self._state.glob("forwards/*.process"):
            process = processes.load(record)
            if process is not None:
                process.end(2)
        self._run(["kind", "delete", "cluster", "--name", self.name, *self._kubeconfig_flag()])
        shutil.rmtree(self._state, ignore_errors=True)

    @property
    def _node(self) -> str:
        return f"{self.name}-control-plane"

    def _exists(self) -> bool:
        return self.name in self._run(["kind", "get", "clusters"]).split()

    def _kubeconfig_flag(self) -> list[str]:
        return ["--kubeconfig", str(self._state / "kubeconfig")]

    def _kubectl(self) -> Kubectl:
        installed = shutil.which("kubectl")
        program = Path(installed) if installed else gobuild.ensure(["kubectl"], self._progress)["kubectl"]
        return Kubectl(program, self.kubeconfig())

    def _add_fake_gpus(self) -> None:
        program = gobuild.ensure(["fake-gpu"], self._progress)["fake-gpu"]
        image = addons.image_name(program)
        if image not in self.images():
            with tempfile.NamedTemporaryFile(suffix=".tar") as file:
                scratch_image.write_archive(file, image, program)
                file.flush()
                self.load_image(Path(file.name))
        values: dict[str, Any] = {"FAKE_GPU_IMAGE": image, "FAKE_GPUS": str(addons.fake_gpus())}
        self._kubectl().apply(addons.render(("fake-gpu",), values))


def with_mounts(config: str, mounts: Mapping[Path, Path]) -> str:
    """The kind configuration with folders of this machine mounted into every node; `mounts`: by path on the node."""
    parsed = yaml.safe_load(config)
    added = [{"hostPath": str(folder), "containerPath": str(path)} for path, folder in mounts.items()]
    for node in parsed["nodes"]:
        node.setdefault("extraMounts", []).extend(added)
    dumped: str = yaml.safe_dump(parsed, sort_keys=False)
    return dumped


def forwarded_port(log: str) -> int | None:
    """The local port that `kubectl port-forward` says it listens on."""
    found = re.search(r"Forwarding from 127\.0\.0\.1:(\d+) ->", log)
    return int(found[1]) if found else None


def _wait_forward(log: Path, started: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + _FORWARD_SECONDS
    while started.poll() is None and time.monotonic() < until:
        port = forwarded_port(log.read_text())
        if port is not None:
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                return port
        time.sleep(0.05)
    raise ClusterError(f"kubectl port-forward did not start: {log.read_text().strip()}")
