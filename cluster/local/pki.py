"""The cluster's certificates, made by openssl when the cluster is new.

Two authorities: `ca` for everybody who talks to the API server and for the kubelet, and `etcd-ca` for etcd and its one
client. They are apart because etcd lets in whoever its authority signed, and a kubelet's certificate must not open it.
The folder appears by rename when it is complete, so it is either whole or not there.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.local.layout import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, NODE_ADDRESS, NODE_NAME

_DAYS = "3650"


@dataclass(frozen=True)
class Certificate:
    """One certificate: subject, alternative names, and who signs it. No alternative names: it is a client's."""

    name: str
    common_name: str
    organization: str = ""
    alternatives: tuple[str, ...] = ()
    authority: str = "ca"

    @property
    def subject(self) -> str:
        """The subject as openssl takes it: /O=.../CN=..."""
        return (f"/O={self.organization}" if self.organization else "") + f"/CN={self.common_name}"


AUTHORITIES = ("ca", "etcd-ca")
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
CERTIFICATES = (
    Certificate(
        "apiserver",
        "kube-apiserver",
        alternatives=(
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "IP:127.0.0.1",
            f"IP:{NODE_ADDRESS}",
            f"IP:{API_SERVICE_ADDRESS}",
        ),
    ),
    Certificate("apiserver-kubelet-client", KUBELET_CLIENT),
    Certificate("kubelet-server", NODE_NAME, alternatives=(f"DNS:{NODE_NAME}", f"IP:{NODE_ADDRESS}")),
    Certificate("kubelet", f"system:node:{NODE_NAME}", "system:nodes"),
    Certificate("admin", "kubernetes-admin", "system:masters"),
    Certificate("controller-manager", "system:kube-controller-manager"),
    Certificate("scheduler", "system:kube-scheduler"),
    Certificate("kube-proxy", "system:kube-proxy"),
    Certificate("etcd-server", "etcd", alternatives=("DNS:localhost", "IP:127.0.0.1"), authority="etcd-ca"),
    Certificate("etcd-client", "kube-apiserver", authority="etcd-ca"),
)


def ensure(folder: Path) -> None:
    """Make all keys and certificates in `folder`, `NAME.crt` and `NAME.key` each, unless they are there."""
    if folder.is_dir():
        return
    scratch = folder.with_name(folder.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    for authority in AUTHORITIES:
        _issue(scratch, authority, f"/CN=tuneyard-{authority}", ["basicConstraints=critical,CA:TRUE"], None)
    for certificate in CERTIFICATES:
        _issue(scratch, certificate.name, certificate.subject, _extensions(certificate), certificate.authority)
    # Signs the tokens of service accounts; RSA, since every client library verifies that.
    _openssl(["genrsa", "-out", str(scratch / "service-accounts.key"), "2048"])
    scratch.rename(folder)


def _extensions(certificate: Certificate) -> list[str]:
    usage = "serverAuth" if certificate.alternatives else "clientAuth"
    extensions = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
    if certificate.alternatives:
        extensions.append(f"subjectAltName={','.join(certificate.alternatives)}")
    return extensions


def _issue(folder: Path, name: str, subject: str, extensions: list[str], authority: str | None) -> None:
    signer = (
        []
        if authority is None
        else ["-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key")]
    )
    key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-noenc",
        "-keyout",
        str(folder / f"{name}.key"),
    ]
    # An empty configuration: the machine's own would add extensions of its own.
    output = ["-config", "/dev/null", "-days", _DAYS, "-subj", subject, "-out", str(folder / f"{name}.crt")]
    added = [argument for extension in extensions for argument in ("-addext", extension)]
    _openssl(["req", "-x509", *signer, *key, *output, *added])


def _openssl(arguments: list[str]) -> None:
    finished = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed; OpenSSL 3 or newer is needed:\n{finished.stderr}")
