"""The configuration of each component, as text. Pure: a layout and what the machine can do in, file contents out.

What differs from a default, and why:
- the kubelet authenticates and authorises by the API server, or isolation tests would mean nothing;
- images are never collected (threshold 100): none could be pulled again, for no registry is reachable;
- no cgroups per quality class and no allocatable enforcement: cgroup v1 machines and small VMs lack what those need;
- node changes (GPUs that a plugin brings, conditions) are reported within a second, unchanged status as rarely as ever;
- client rates are far above the defaults, which make thousands of pods take minutes;
- eviction starts late: the disk belongs to the machine's owner, who keeps it fuller than a node's would be;
- pods hang on point-to-point links, so that all traffic between them is routed and passes kube-proxy's rules.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import yaml

from cluster.local.layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    DNS_ADDRESS,
    NODE_ADDRESS,
    POD_CIDR,
    Layout,
)

QPS, BURST = 1000, 2000


def containerd(layout: Layout, sandbox_image: str, raise_oom_score: bool) -> str:
    """Configuration of containerd; without `raise_oom_score` it leaves alone what the kernel would refuse."""
    return f"""\
version = 3
root = "{layout.content}"
state = "/run/containerd"
# The first two want /opt, the rest want kernel features that nothing here uses.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile",
]
[grpc]
address = "{layout.containerd_socket}"
[debug]
level = "warn"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{sandbox_image}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = {str(not raise_oom_score).lower()}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{layout.config}/cni"
"""


def cni() -> str:
    """The pod network. Its leases lie in the namespaces' own /run and so end with the network they are about."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni/networks",
        "ranges": [[{"subnet": POD_CIDR}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "ptp", "ipMasq": False, "ipam": addresses}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}, indent=1)


def kubelet(layout: Layout) -> str:
    """KubeletConfiguration."""
    return _dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "healthzBindAddress": "127.0.0.1",
            "readOnlyPort": 0,
            "tlsCertFile": str(layout.pki / "kubelet-server.crt"),
            "tlsPrivateKeyFile": str(layout.pki / "kubelet-server.key"),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
            "podLogsDir": str(layout.logs / "pods"),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": layout.cgroup,
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "maxPods": 400,
            "nodeStatusUpdateFrequency": "1s",
            "nodeStatusReportFrequency": "5m",
            "kubeAPIQPS": QPS,
            "kubeAPIBurst": BURST,
            "eventRecordQPS": 100,
            "eventBurst": 200,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "0%",
                "imagefs.inodesFree": "0%",
            },
        }
    )


def kube_proxy(layout: Layout) -> str:
    """KubeProxyConfiguration. Connection tracking limits are the machine's, not a namespace's, to set."""
    return _dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(layout.config / "kube-proxy.kubeconfig")},
            "mode": "nftables",
            "clusterCIDR": POD_CIDR,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def scheduler(layout: Layout) -> str:
    """KubeSchedulerConfiguration."""
    return _dump(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {
                "kubeconfig": str(layout.config / "scheduler.kubeconfig"),
                "qps": QPS,
                "burst": BURST,
            },
        }
    )


def kubeconfig(layout: Layout, user: str, server: str) -> str:
    """A kubeconfig that stands alone: certificates are inside, so that the file can be copied."""
    return _dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": layout.name,
                    "cluster": {"server": server, "certificate-authority-data": _data(layout.pki / "ca.crt")},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _data(layout.pki / f"{user}.crt"),
                        "client-key-data": _data(layout.pki / f"{user}.key"),
                    },
                }
            ],
            "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": user}}],
            "current-context": layout.name,
        }
    )


def files(layout: Layout, sandbox_image: str, raise_oom_score: bool) -> dict[Path, str]:
    """Every configuration file that does not depend on chosen ports, and its contents."""
    inside = f"https://{NODE_ADDRESS}:{API_PORT}"
    users = ("controller-manager", "scheduler", "kubelet", "kube-proxy")
    return {
        layout.config / "containerd.toml": containerd(layout, sandbox_image, raise_oom_score),
        layout.config / "cni" / "pods.conflist": cni(),
        layout.config / "kubelet.yaml": kubelet(layout),
        layout.config / "kube-proxy.yaml": kube_proxy(layout),
        layout.config / "scheduler.yaml": scheduler(layout),
        **{layout.config / f"{user}.kubeconfig": kubeconfig(layout, user, inside) for user in users},
    }


def _data(file: Path) -> str:
    return b64encode(file.read_bytes()).decode()


def _dump(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False)
