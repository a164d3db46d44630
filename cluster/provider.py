"""The one interface to a cluster, whichever it is. Everything above it is the same on each.

Rules of the interface:
- every method may be called again: `up` on a cluster that is up changes nothing;
- methods that need the cluster up raise ClusterError when it is not, and the message says how to bring it up;
- addresses that are handed out are loopback addresses of this machine.

`CLUSTER=local` (the default) is a Kubernetes built and run on this machine (Linux, root, no Docker), `CLUSTER=kind` is
kind. `TUNEYARD_CLUSTER` names the cluster, so that several may exist.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster.errors import ClusterError
from cluster.progress import Progress


@dataclass(frozen=True)
class ComponentStatus:
    """One part of the cluster: `state` is "running", "stopped" (by request) or "dead"; `detail` is for people."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class Status:
    """What there is of a cluster: `up` when all runs; `exposed` maps namespace/service:port to a loopback address."""

    name: str
    up: bool
    components: tuple[ComponentStatus, ...] = ()
    exposed: dict[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """A cluster. All methods block; all raise ClusterError with a remedy in the message."""

    @property
    def name(self) -> str:
        """The cluster's name."""
        ...

    def up(self) -> None:
        """Bring the cluster up, reuse what is up, resume what was interrupted; return when pods can run."""
        ...

    def load_image(self, archive: Path) -> None:
        """Load every image of an archive (docker-archive or OCI tar; `-` is standard input) under its names."""
        ...

    def images(self) -> dict[str, str]:
        """Image name to content id (`sha256:` of its configuration), for all images the node has."""
        ...

    def kubeconfig(self) -> Path:
        """A kubeconfig file with the rights of an administrator, for use on this machine."""
        ...

    def artifacts(self) -> Path:
        """This machine's folder that pods find on their node as paths.NODE_ARTIFACTS; known even before `up`."""
        ...

    def expose(self, namespace: str, service: str, port: int) -> str:
        """The loopback `127.0.0.1:PORT` that reaches a Service's port; the same one when asked again."""
        ...

    def status(self) -> Status:
        """What runs; never raises for a cluster that is down."""
        ...

    def down(self) -> None:
        """Remove the cluster and all it left on the machine, except caches. On a cluster that is down: nothing."""
        ...


def open_provider(kind: str | None = None, progress: Progress | None = None) -> Provider:
    """The provider named by `kind` or `$CLUSTER` ("local", "kind"; default "local")."""
    kind = kind or os.environ.get("CLUSTER") or "local"
    progress = progress or Progress()
    if kind == "local":
        from cluster.local.cluster import LocalCluster  # noqa: PLC0415 -- each provider needs other programs

        return LocalCluster(progress)
    if kind == "kind":
        from cluster.kind import KindCluster  # noqa: PLC0415

        return KindCluster(progress)
    raise ClusterError(f"CLUSTER={kind!r} is no provider: use CLUSTER=local (this machine) or CLUSTER=kind")
