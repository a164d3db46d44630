"""Addresses and folders of one local cluster: values only.

All clusters use the same addresses, since each has a network namespace of its own and nothing of it is routed outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster import paths

NODE_NAME = "node-1"
# On the loopback device of the cluster's namespace; not 127.*, which pods could not reach.
NODE_ADDRESS = "172.30.0.1"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
API_PORT = 6443
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Layout:
    """Where one cluster's files are."""

    name: str
    state: Path
    # containerd's root: images stay when the cluster goes.
    content: Path

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def config(self) -> Path:
        """Configuration files of the components."""
        return self.state / "config"

    @property
    def logs(self) -> Path:
        """What the components print, and the logs of pods."""
        return self.state / "logs"

    @property
    def records(self) -> Path:
        """One file a process: who it is, so that no other is ever taken for it."""
        return self.state / "processes"

    @property
    def relays(self) -> Path:
        """Two files a relay: its port, and its process."""
        return self.state / "relays"

    @property
    def etcd(self) -> Path:
        """The database."""
        return self.state / "etcd"

    @property
    def artifacts(self) -> Path:
        """What pods of this cluster find under paths.NODE_ARTIFACTS."""
        return self.state / "artifacts"

    @property
    def cache(self) -> Path:
        """What pods of this cluster find under paths.NODE_CACHE."""
        return self.state / "cache"

    @property
    def containerd_socket(self) -> Path:
        """Outside the mount namespace's own /run, so that it can be used from both sides."""
        return self.state / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, for this machine: through the relay."""
        return self.state / "kubeconfig"

    @property
    def cgroup(self) -> str:
        """The cgroup under which all containers of the cluster live, in every hierarchy."""
        return f"/tuneyard/{self.name}"

    @property
    def covers(self) -> dict[str, Path]:
        """Paths that programs have built in, and the folder mounted over each in the cluster's mount namespace."""
        return {
            "/var/lib/kubelet": self.state / "kubelet",
            "/var/lib/cni": self.state / "cni",
            "/var/log/containers": self.logs / "containers",
            str(paths.NODE_ARTIFACTS): self.artifacts,
            str(paths.NODE_CACHE): self.cache,
        }

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that must be there before the namespaces are made."""
        own = (self.config, self.logs, self.logs / "pods", self.records, self.relays, self.etcd, self.content)
        return (*own, *self.covers.values())


def layout_of(name: str) -> Layout:
    """The layout of the cluster called `name`."""
    return Layout(name=name, state=paths.STATES / name, content=paths.cache_root() / "containerd" / name)
