"""The local provider: observe what runs, start what does not, in the order that things need each other.

Invariants:
- every process but this command's own lives in the cluster's process namespace, so the end of its first process (the anchor)
  is the end of all of them, of their mounts and of their network; `down` rests on that and on nothing else;
- each step looks before it acts, so an `up` that was cut short anywhere goes on with the next one;
- one command at a time changes a cluster (a lock by its name).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from cluster import addons, gobuild, paths, scratch_image
from cluster.errors import ClusterError
from cluster.kubectl import Kubectl, service_port
from cluster.local import cgroups, components, pki, preflight, processes, relays, settings
from cluster.local.components import Component
from cluster.local.cri import Runtime
from cluster.local.layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    DNS_ADDRESS,
    NODE_ADDRESS,
    NODE_NAME,
    SERVICE_CIDR,
    Layout,
    layout_of,
)
from cluster.local.processes import Process
from cluster.progress import Progress
from cluster.provider import ComponentStatus, Status

_NETWORK = [
    "link set lo up",
    f"address add {NODE_ADDRESS}/32 dev lo",
    # So that the node itself reaches Services: the packet needs a route before kube-proxy's rules give it a target.
    f"route add {SERVICE_CIDR} dev lo src {NODE_ADDRESS}",
]
_SYSCTLS = {"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/net/ipv4/ip_local_port_range": "10240 65535"}
_IMAGES = ("pause", "coredns", "fake-gpu")
_POLL = 0.05


class LocalCluster:
    """A Kubernetes on this machine (see provider.Provider); `stop`, `start` and `inside` exist only here."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._layout = layout_of(paths.cluster_name())

    @property
    def name(self) -> str:
        return self._layout.name

    # -- Provider

    def up(self) -> None:
        with paths.locked(f"cluster-{self.name}"):
            if self._anchor() is None:
                preflight.check(self._progress)
            programs = gobuild.ensure(components.PROGRAMS, self._progress)
            anchor = self._ensure_anchor(programs)
            parts, contents = self._configure(programs)
            dead = [part.name for part in parts if not self._is_current(part, contents)]
            if dead:
                self._progress.note(f"start {', '.join(dead)}")
            for part in parts:
                self._ensure_component(part, contents, anchor)
            self._ensure_kubeconfig(anchor, programs)
            relays.restart(self._layout, anchor, programs["relay"])
            self._ensure_ready(programs)

    def load_image(self, archive: Path) -> None:
        self._require_up()
        if str(archive) == "-":
            self._import(sys.stdin.fileno(), "standard input")
            return
        try:
            with archive.open("rb") as file:
                self._import(file.fileno(), archive.name)
        except FileNotFoundError as error:
            raise ClusterError(f"there is no image archive {archive}") from error

    def images(self) -> dict[str, str]:
        self._require_up()
        with Runtime(self._layout.containerd_socket) as runtime:
            return runtime.images()

    def kubeconfig(self) -> Path:
        self._require_up()
        return self._layout.kubeconfig

    def expose(self, namespace: str, service: str, port: int) -> str:
        with paths.locked(f"cluster-{self.name}"):
            anchor = self._require_up()
            target = service_port(self._kubectl().get("service", service, "-n", namespace), port)
            program = gobuild.ensure(["relay"], self._progress)["relay"]
            return relays.ensure(self._layout, anchor, program, f"{namespace}/{service}:{port}", target)

    def status(self) -> Status:
        anchor = self._anchor()
        names = ["namespaces", *(part.name for part in self._parts({name: Path(name) for name in components.PROGRAMS}))]
        states = tuple(self._component_status(name) for name in names)
        addresses = relays.addresses(self._layout)
        api = addresses.pop(relays.API, None)
        up = anchor is not None and api is not None and all(state.state == "running" for state in states)
        return Status(self.name, up, states, addresses)

    def down(self) -> None:
        with paths.locked(f"cluster-{self.name}"):
            if not self._layout.state.exists() and not cgroups.existing(self._layout.cgroup):
                self._progress.note(f"cluster {self.name} is down already")
                return
            with self._progress.step(f"take cluster {self.name} down"):
                anchor = self._anchor()
                if anchor is not None:
                    self._empty_containerd()
                    anchor.end(0)
                cgroups.remove(self._layout.cgroup)
                self._remove_folders()

    # -- only here

    def stop(self, name: str) -> None:
        """Stop one component until `start` or `up`."""
        part = components.named(self._parts(gobuild.ensure(components.PROGRAMS, self._progress)), name)
        with paths.locked(f"cluster-{self.name}"):
            self._require_up()
            process = processes.load(self._record(name))
            self._stopped(name).touch()
            if process is not None:
                process.end(part.patience)

    def start(self, name: str) -> None:
        """Start one component that was stopped, and wait until it works."""
        programs = gobuild.ensure(components.PROGRAMS, self._progress)
        with paths.locked(f"cluster-{self.name}"):
            anchor = self._require_up()
            parts, contents = self._configure(programs)
            self._ensure_component(components.named(parts, name), contents, anchor)
            if name in ("apiserver", "etcd"):
                self._wait("the API server", 60, self._api_ready)

    def inside(self, argv: list[str], everything: bool = False) -> list[str]:
        """The command line that runs `argv` in the cluster's network namespace, or in all its namespaces."""
        anchor = self._require_up()
        spaces = ["--net", "--mount", "--pid"] if everything else ["--net"]
        return ["nsenter", f"--target={anchor.pid}", *spaces, "--", *argv]

    # -- observing

    def _record(self, name: str) -> Path:
        return self._layout.records / f"{name}.json"

    def _stopped(self, name: str) -> Path:
        return self._layout.records / f"{name}.stopped"

    def _anchor(self) -> Process | None:
        process = processes.load(self._record("namespaces"))
        return process if process is not None and process.alive() else None

    def _require_up(self) -> Process:
        anchor = self._anchor()
        if anchor is None:
            raise ClusterError(f"cluster {self.name} is not up; bring it up with: python -m cluster up")
        return anchor

    def _component_status(self, name: str) -> ComponentStatus:
        process = processes.load(self._record(name))
        if process is not None and process.alive():
            return ComponentStatus(name, "running", f"pid {process.pid}")
        if self._stopped(name).exists():
            return ComponentStatus(name, "stopped")
        return ComponentStatus(name, "dead", "" if process is None else f"see {self._log(name)}")

    def _is_current(self, part: Component, contents: dict[Path, str]) -> bool:
        process = processes.load(self._record(part.name))
        return process is not None and process.alive() and process.fingerprint == part.fingerprint(contents)

    def _log(self, name: str) -> Path:
        return self._layout.logs / f"{name}.log"

    def _kubectl(self) -> Kubectl:
        return Kubectl(gobuild.ensure(["kubectl"], self._progress)["kubectl"], self._layout.kubeconfig)

    # -- starting

    def _ensure_anchor(self, programs: dict[str, Path]) -> Process:
        anchor = self._anchor()
        if anchor is not None:
            return anchor
        for folder in (*self._layout.folders, *map(Path, self._layout.covers)):
            folder.mkdir(parents=True, exist_ok=True)
        self._layout.state.chmod(0o755)
        spec = {
            "init": str(programs["pause"]),
            "covers": {path: str(folder) for path, folder in self._layout.covers.items()},
            "network": _NETWORK,
            "sysctls": _SYSCTLS,
        }
        anchor = processes.start_anchor(spec)
        processes.save(anchor, self._record("namespaces"))
        return anchor

    def _parts(self, programs: dict[str, Path]) -> tuple[Component, ...]:
        return components.components(self._layout, programs)

    def _configure(self, programs: dict[str, Path]) -> tuple[tuple[Component, ...], dict[Path, str]]:
        pki.ensure(self._layout.pki)
        sandbox = addons.image_name(programs["pause"])
        contents = settings.files(self._layout, sandbox, preflight.may_raise_oom_score())
        for file, text in contents.items():
            _write(file, text)
        return self._parts(programs), contents

    def _ensure_component(self, part: Component, contents: dict[Path, str], anchor: Process) -> None:
        if self._is_current(part, contents):
            return
        process = processes.load(self._record(part.name))
        if process is not None:
            process.end(part.patience)
        self._stopped(part.name).unlink(missing_ok=True)
        folders = dict.fromkeys(str(Path(program).parent) for program in self._programs_on_path())
        environment = {
            "PATH": ":".join([*folders, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
            "TMPDIR": "/run/tmp",
            "HOME": "/root",
        }
        started = processes.start_inside(
            anchor, list(part.argv), self._log(part.name), environment, fingerprint=part.fingerprint(contents)
        )
        processes.save(started, self._record(part.name))

    def _programs_on_path(self) -> list[Path]:
        # containerd looks for its shim by name.
        shim = gobuild.built("containerd-shim-runc-v2")
        return [shim] if shim else []

    def _ensure_kubeconfig(self, anchor: Process, programs: dict[str, Path]) -> None:
        address = relays.ensure(self._layout, anchor, programs["relay"], relays.API, f"{NODE_ADDRESS}:{API_PORT}")
        _write(self._layout.kubeconfig, settings.kubeconfig(self._layout, "admin", f"https://{address}"))

    # -- until pods can run

    def _ensure_ready(self, programs: dict[str, Path]) -> None:
        manifest = addons.render(
            ("node", "coredns", "fake-gpu"),
            {
                "CLUSTER_DOMAIN": CLUSTER_DOMAIN,
                "DNS_ADDRESS": DNS_ADDRESS,
                "COREDNS_IMAGE": addons.image_name(programs["coredns"]),
                "FAKE_GPU_IMAGE": addons.image_name(programs["fake-gpu"]),
                "FAKE_GPUS": str(addons.fake_gpus()),
            },
        )
        applied = self._layout.state / "applied.yaml"
        self._wait("containerd", 30, self._layout.containerd_socket.is_socket)
        self._ensure_images(programs)
        self._wait("the API server", 60, self._api_ready)
        if not applied.exists() or applied.read_text() != manifest:
            # The namespace and the roles that it refers to appear moments after the API server is ready.
            self._wait("the built-in namespaces", 60, lambda: self._found("namespace", "kube-system"))
            self._kubectl().apply(manifest)
            _write(applied, manifest)
        self._wait(f"node {NODE_NAME}", 60, self._node_ready)
        self._wait("cluster DNS", 90, self._dns_ready)

    def _ensure_images(self, programs: dict[str, Path]) -> None:
        present = self.images()
        for name in _IMAGES:
            image = addons.image_name(programs[name])
            if image in present:
                continue
            with tempfile.TemporaryFile() as file:
                scratch_image.write_archive(file, image, programs[name])
                file.seek(0)
                self._import(file.fileno(), image)

    def _import(self, descriptor: int, what: str) -> None:
        program = gobuild.ensure(["ctr"], self._progress)["ctr"]
        ctr = [str(program), f"--address={self._layout.containerd_socket}", "--namespace=k8s.io", "images"]
        with self._progress.step(f"load {what}"):
            finished = subprocess.run(
                [*ctr, "import", "--snapshotter=overlayfs", "-"],
                stdin=descriptor,
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode:
                raise ClusterError(f"{what} is no image archive that containerd can read: {finished.stderr.strip()}")
            listed = subprocess.run([*ctr, "list", "-q"], capture_output=True, text=True, check=True).stdout.split()
            names = {name for name in listed if not name.startswith("sha256:") and "@" not in name}
            # The kubelet's view of images follows containerd's by events.
            self._wait(f"the kubelet to see {what}", 30, lambda: names <= self.images().keys())

    def _api_ready(self) -> bool:
        try:
            self._kubectl().run("get", "--raw=/readyz", "--request-timeout=5s")
        except ClusterError:
            return False
        return True

    def _found(self, kind: str, name: str) -> bool:
        return bool(self._kubectl().run("get", kind, name, "--ignore-not-found", "-o", "name"))

    def _node_ready(self) -> bool:
        if not self._found("node", NODE_NAME):
            return False
        conditions = self._kubectl().get("node", NODE_NAME)["status"].get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

    def _dns_ready(self) -> bool:
        status = self._kubectl().get("deployment", "coredns", "-n", "kube-system").get("status", {})
        return bool(status.get("availableReplicas"))

    def _wait(self, what: str, seconds: float, ready: Callable[[], bool]) -> None:
        """Wait for `ready`; a component that died meanwhile ends the wait with its last words."""
        if ready():
            return
        with self._progress.step(f"wait for {what}"):
            until = time.monotonic() + seconds
            while not ready():
                self._check_alive()
                if time.monotonic() > until:
                    raise ClusterError(f"{what} was not ready within {seconds:.0f} s; see {self._layout.logs}")
                time.sleep(_POLL)

    def _check_alive(self) -> None:
        for record in sorted(self._layout.records.glob("*.json")):
            state = self._component_status(record.stem)
            if state.state == "dead":
                last = _last_lines(self._log(state.name))
                raise ClusterError(f"{state.name} died; its log {self._log(state.name)} ends with:\n{last}")

    # -- taking down

    def _empty_containerd(self) -> None:
        """Remove all pods through the runtime, so that their containers do not lie in the cache for ever."""
        for name in ("controller-manager", "scheduler", "kubelet", "apiserver"):
            process = processes.load(self._record(name))
            if process is not None:
                process.end(0)
        containerd = processes.load(self._record("containerd"))
        if containerd is None or not containerd.alive():
            return
        try:
            with Runtime(self._layout.containerd_socket) as runtime:
                runtime.remove_sandboxes(30)
        except grpc.RpcError as error:
            self._progress.note(f"some pods did not end in order and are killed ({error})")
        containerd.end(5)

    def _remove_folders(self) -> None:
        shutil.rmtree(self._layout.state)
        others = [state for state in paths.STATES.iterdir() if state.is_dir()]
        if others:
            # They have mounts over these folders, which removing one would take away even in their namespaces.
            return
        for cover in self._layout.covers:
            with contextlib.suppress(OSError):
                Path(cover).rmdir()
        paths.STATES.rmdir()


def _write(file: Path, text: str) -> None:
    """Write a file that only root may read, whole or not at all, and only when it changes."""
    if file.exists() and file.read_text() == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)
    scratch.rename(file)


def _last_lines(file: Path, count: int = 12) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-count:]) if file.exists() else ""
