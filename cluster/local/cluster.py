"""The local provider: observe what runs, start what does not, in the order that things need each other.

Invariants:
- every process of the cluster lives in its process namespace, so the end of its first process (the anchor) is the end
  of all of them, of their mounts and of their network; `down` rests on that and on nothing else;
- each step looks before it acts, so an `up` that was cut short anywhere goes on with the next one;
- one command at a time changes a cluster (a lock by its name).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from cluster import addons, gobuild, paths
from cluster.errors import ClusterError
from cluster.kubectl import Kubectl, service_port
from cluster.local import cgroups, components, pki, preflight, readiness, relays, settings
from cluster.local.api import Api
from cluster.local.components import Component
from cluster.local.cri import Runtime
from cluster.local.images import Images
from cluster.local.layout import API_PORT, CLUSTER_DOMAIN, DNS_ADDRESS, NODE_ADDRESS, NODE_NAME, layout_of
from cluster.local.members import ANCHOR, Members
from cluster.local.processes import Process
from cluster.progress import Progress
from cluster.provider import Status

_OWN_IMAGES = ("pause", "coredns", "fake-gpu")
_POLL = 0.05


class LocalCluster:
    """A Kubernetes on this machine (see provider.Provider); `stop`, `start` and `inside` exist only here."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._layout = layout_of(paths.cluster_name())
        self._members = Members(self._layout)

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._layout.name

    def up(self) -> None:
        """Bring up what is not up; return when pods can run."""
        with paths.locked(f"cluster-{self.name}"):
            if self._members.anchor() is None:
                preflight.check(self._progress)
            programs = gobuild.ensure(components.PROGRAMS, self._progress)
            anchor = self._members.ensure_anchor(programs["pause"])
            parts, contents = self._configure(programs)
            missing = [part for part in parts if not self._members.is_current(part, contents)]
            since = 0.0
            if any(part.name == "kubelet" for part in missing):
                since = time.time()
                # One that has begun without the node ends as soon as the node gets its address.
                self._members.kill("kube-proxy")
                missing = [part for part in parts if part in missing or part.name == "kube-proxy"]
            for part in missing:
                self._members.forget_dead(part.name)
            if missing:
                self._progress.note(f"start {', '.join(part.name for part in missing)}")
            for part in missing:
                if part.name == "kubelet":
                    # It ends at once when it cannot connect, and on a quiet machine it would be the faster one.
                    self._wait("containerd", 30, self._containerd_listens)
                self._members.ensure(part, contents, programs)
            api = self._ensure_api(anchor, programs)
            relays.restart(self._layout, anchor, programs["relay"])
            self._ensure_ready(programs, api, since)
            if not missing:
                self._progress.note(f"cluster {self.name} is up already")

    def load_image(self, archive: Path) -> None:
        """Load all images of an archive; `-` is standard input."""
        self._members.require()
        images = self._images(gobuild.ensure(["ctr"], self._progress))
        if str(archive) == "-":
            images.load(sys.stdin.fileno(), "standard input")
            return
        try:
            with archive.open("rb") as file:
                images.load(file.fileno(), archive.name)
        except FileNotFoundError as error:
            raise ClusterError(f"there is no image archive {archive}") from error

    def images(self) -> dict[str, str]:
        """Image name to content id."""
        self._members.require()
        return self._images(gobuild.ensure(["ctr"], self._progress)).named()

    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it goes when the cluster does."""
        self._members.require()
        return self._layout.kubeconfig

    def artifacts(self) -> Path:
        """This machine's folder behind paths.NODE_ARTIFACTS."""
        return self._layout.artifacts

    def expose(self, namespace: str, service: str, port: int) -> str:
        """A loopback address that reaches the Service's cluster address."""
        with paths.locked(f"cluster-{self.name}"):
            anchor = self._members.require()
            target = service_port(self._kubectl().get("service", service, "-n", namespace), port)
            program = gobuild.ensure(["relay"], self._progress)["relay"]
            return relays.ensure(self._layout, anchor, program, f"{namespace}/{service}:{port}", target)

    def status(self) -> Status:
        """What runs."""
        parts = components.components(self._layout, {name: Path(name) for name in components.PROGRAMS})
        states = tuple(self._members.status(name) for name in (ANCHOR, *(part.name for part in parts)))
        addresses = relays.addresses(self._layout)
        api = addresses.pop(relays.API, None)
        up = api is not None and all(state.state == "running" for state in states)
        return Status(self.name, up, states, addresses)

    def down(self) -> None:
        """Remove everything but caches."""
        with paths.locked(f"cluster-{self.name}"):
            if not self._layout.state.exists() and not cgroups.existing(self._layout.cgroup):
                self._progress.note(f"cluster {self.name} is down already")
                return
            with self._progress.step(f"take cluster {self.name} down"):
                anchor = self._members.anchor()
                if anchor is not None:
                    self._empty_containerd()
                    anchor.end(0)
                cgroups.remove(self._layout.cgroup)
                self._remove_folders()

    def stop(self, name: str) -> None:
        """Stop one component until `start` or `up`."""
        programs = gobuild.ensure(components.PROGRAMS, self._progress)
        with paths.locked(f"cluster-{self.name}"):
            self._members.require()
            self._members.stop(components.named(components.components(self._layout, programs), name))

    def start(self, name: str) -> None:
        """Start one component that was stopped; return when it does its work again.

        After an outage of the API server its clients come back by themselves, with a back-off of up to 30 s each.
        """
        programs = gobuild.ensure(components.PROGRAMS, self._progress)
        with paths.locked(f"cluster-{self.name}"):
            anchor = self._members.require()
            parts, contents = self._configure(programs)
            since = time.time()
            self._members.ensure(components.named(parts, name), contents, programs)
            api = self._ensure_api(anchor, programs)
            if name in ("apiserver", "etcd"):
                self._wait("the API server", 60, api.ready)
            if name == "kubelet":
                self._wait_node(api, since)

    def inside(self, argv: list[str], everything: bool = False) -> list[str]:
        """The command line that runs `argv` in the cluster's network namespace, or in all its namespaces."""
        anchor = self._members.require()
        spaces = ["--net", "--mount", "--pid"] if everything else ["--net"]
        return ["nsenter", f"--target={anchor.pid}", *spaces, "--", *argv]

    def _images(self, programs: dict[str, Path]) -> Images:
        return Images(self._layout.containerd_socket, programs["ctr"], self._progress)

    def _kubectl(self) -> Kubectl:
        return Kubectl(gobuild.ensure(["kubectl"], self._progress)["kubectl"], self._layout.kubeconfig)

    def _configure(self, programs: dict[str, Path]) -> tuple[tuple[Component, ...], dict[Path, str]]:
        pki.ensure(self._layout.pki)
        sandbox = addons.image_name(programs["pause"])
        contents = settings.files(self._layout, sandbox, preflight.may_raise_oom_score())
        for file, text in contents.items():
            _write(file, text)
        return components.components(self._layout, programs), contents

    def _ensure_api(self, anchor: Process, programs: dict[str, Path]) -> Api:
        address = relays.ensure(self._layout, anchor, programs["relay"], relays.API, f"{NODE_ADDRESS}:{API_PORT}")
        _write(self._layout.kubeconfig, settings.kubeconfig(self._layout, "admin", f"https://{address}"))
        return Api(address, self._layout.pki)

    def _ensure_ready(self, programs: dict[str, Path], api: Api, since: float) -> None:
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
        self._wait("containerd", 30, self._containerd_listens)
        self._images(programs).ensure_programs([programs[name] for name in _OWN_IMAGES])
        self._wait("the API server", 60, api.ready)
        if not applied.exists() or applied.read_text() != manifest:
            # The API server makes its namespaces moments after it is ready.
            self._wait("the built-in namespaces", 60, lambda: api.get("/api/v1/namespaces/kube-system") is not None)
            self._kubectl().apply(manifest)
            _write(applied, manifest)
        self._wait_node(api, since)
        dns = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
        self._wait("cluster DNS", 90, lambda: readiness.deployment_available(api.get(dns)))

    def _containerd_listens(self) -> bool:
        """Whether somebody takes connections; the socket of a containerd that was killed is there too."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._layout.containerd_socket)) == 0

    def _wait_node(self, api: Api, since: float) -> None:
        def ready() -> bool:
            return readiness.node_can_run(api.get(f"/api/v1/nodes/{NODE_NAME}"), addons.fake_gpus(), since)

        self._wait(f"node {NODE_NAME}", 90, ready)

    def _wait(self, what: str, seconds: float, ready: Callable[[], bool]) -> None:
        """Wait for `ready`; a component that died meanwhile ends the wait with its last words."""
        if ready():
            return
        with self._progress.step(f"wait for {what}"):
            until = time.monotonic() + seconds
            while not ready():
                self._members.check_alive()
                if time.monotonic() > until:
                    raise ClusterError(f"{what} was not ready within {seconds:.0f} s; see {self._layout.logs}")
                time.sleep(_POLL)

    def _empty_containerd(self) -> None:
        """Remove all pods through the runtime, so that their containers do not lie in the cache for ever."""
        for name in ("controller-manager", "scheduler", "kubelet", "apiserver"):
            self._members.kill(name)
        if self._members.status("containerd").state != "running":
            return
        try:
            with Runtime(self._layout.containerd_socket) as runtime:
                runtime.remove_sandboxes(30)
        except grpc.RpcError as error:
            self._progress.note(f"some pods did not end in order and are killed ({error})")
        self._members.kill("containerd", 5)

    def _remove_folders(self) -> None:
        if self._layout.state.exists():
            shutil.rmtree(self._layout.state)
        if set(paths.STATES.glob("*")) - {paths.NODE_ARTIFACTS, paths.NODE_CACHE}:
            # Another cluster has mounts over these folders: removing one would take them away in its namespace too.
            return
        for cover in self._layout.covers:
            with contextlib.suppress(OSError):
                Path(cover).rmdir()
        with contextlib.suppress(FileNotFoundError):
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
