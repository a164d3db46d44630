"""The processes that make the cluster: their command lines, in the order of starting. Pure.

None waits for another: each retries until what it needs is there. Nobody restarts them either; the next `up` does,
since a process that dies in a test is something the test is about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.local.layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    NODE_ADDRESS,
    NODE_NAME,
    POD_CIDR,
    SERVICE_CIDR,
    Layout,
)
from cluster.local.settings import BURST, QPS

# Programs that `up` needs; helm and the probe are built when somebody asks for them.
PROGRAMS = (
    "kube-apiserver",
    "etcd",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "coredns",
    "pause",
    "relay",
    "fake-gpu",
)


@dataclass(frozen=True)
class Component:
    """One process. `files` are the configurations it reads; `patience` the seconds it gets to end by itself."""

    name: str
    argv: tuple[str, ...]
    files: tuple[Path, ...] = ()
    patience: float = 5

    def fingerprint(self, contents: Mapping[Path, str]) -> str:
        """Changes when the command line or a configuration does."""
        material = json.dumps([self.argv, [contents[file] for file in self.files]])
        return hashlib.sha256(material.encode()).hexdigest()[:16]


def components(layout: Layout, programs: Mapping[str, Path]) -> tuple[Component, ...]:
    """All components, in the order in which to start them."""
    config, pki = layout.config, layout.pki
    return (
        _etcd(layout, programs),
        Component(
            "containerd",
            (str(programs["containerd"]), "--config", str(config / "containerd.toml")),
            (config / "containerd.toml",),
        ),
        _apiserver(layout, programs),
        Component(
            "controller-manager",
            (
                str(programs["kube-controller-manager"]),
                f"--kubeconfig={config / 'controller-manager.kubeconfig'}",
                f"--root-ca-file={pki / 'ca.crt'}",
                f"--service-account-private-key-file={pki / 'service-accounts.key'}",
                f"--cluster-signing-cert-file={pki / 'ca.crt'}",
                f"--cluster-signing-key-file={pki / 'ca.key'}",
                "--use-service-account-credentials",
                "--leader-elect=false",
                f"--cluster-cidr={POD_CIDR}",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
                f"--kube-api-qps={QPS}",
                f"--kube-api-burst={BURST}",
                "--bind-address=127.0.0.1",
            ),
            (config / "controller-manager.kubeconfig",),
        ),
        Component(
            "scheduler",
            (
                str(programs["kube-scheduler"]),
                f"--config={config / 'scheduler.yaml'}",
                "--bind-address=127.0.0.1",
            ),
            (config / "scheduler.yaml", config / "scheduler.kubeconfig"),
        ),
        Component(
            "kubelet",
            (
                str(programs["kubelet"]),
                f"--config={config / 'kubelet.yaml'}",
                f"--kubeconfig={config / 'kubelet.kubeconfig'}",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={NODE_ADDRESS}",
            ),
            (config / "kubelet.yaml", config / "kubelet.kubeconfig"),
        ),
        Component(
            "kube-proxy",
            (
                str(programs["kube-proxy"]),
                f"--config={config / 'kube-proxy.yaml'}",
                f"--hostname-override={NODE_NAME}",
            ),
            (config / "kube-proxy.yaml", config / "kube-proxy.kubeconfig"),
        ),
    )


def named(all_of_them: tuple[Component, ...], name: str) -> Component:
    """The component called `name`."""
    for component in all_of_them:
        if component.name == name:
            return component
    known = ", ".join(component.name for component in all_of_them)
    raise ClusterError(f"no component is called {name!r}; there are: {known}")


def _etcd(layout: Layout, programs: Mapping[str, Path]) -> Component:
    pki = layout.pki
    return Component(
        "etcd",
        (
            str(programs["etcd"]),
            f"--data-dir={layout.etcd}",
            "--listen-client-urls=https://127.0.0.1:2379",
            "--advertise-client-urls=https://127.0.0.1:2379",
            # A member must listen for peers; port 0 is one that nobody knows.
            "--listen-peer-urls=http://127.0.0.1:0",
            "--client-cert-auth",
            f"--trusted-ca-file={pki / 'etcd-ca.crt'}",
            f"--cert-file={pki / 'etcd-server.crt'}",
            f"--key-file={pki / 'etcd-server.key'}",
            "--log-level=warn",
            # A cluster for trying out: speed over surviving a power cut.
            "--unsafe-no-fsync",
        ),
        patience=1,
    )


def _apiserver(layout: Layout, programs: Mapping[str, Path]) -> Component:
    pki = layout.pki
    return Component(
        "apiserver",
        (
            str(programs["kube-apiserver"]),
            "--etcd-servers=https://127.0.0.1:2379",
            f"--etcd-cafile={pki / 'etcd-ca.crt'}",
            f"--etcd-certfile={pki / 'etcd-client.crt'}",
            f"--etcd-keyfile={pki / 'etcd-client.key'}",
            f"--secure-port={API_PORT}",
            f"--advertise-address={NODE_ADDRESS}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            # On top of the defaults, which hold PodSecurity and ValidatingAdmissionPolicy.
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
        ),
        # Left to itself it waits for open watches, and what a test wants of it is to be away.
        patience=1,
    )
