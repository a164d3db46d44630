"""A real etcd and kube-apiserver on loopback, without kubelet, scheduler or controllers: what is written stays so.

The programs are the ones the local cluster runs, built by `python -m cluster build` where they are missing. Everything
lies in one folder and dies with the process that started it. Pods are objects here: who needs one that is Ready writes
its status.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import config
from kubernetes.client.configuration import Configuration

from tests.contract.dying import die_with_parent
from tests.contract.ports import free_port
from tuneyard.api.crds import KINDS, crd
from tuneyard.systems.kube.client import Api, ApiError

ROOT = Path(__file__).resolve().parents[2]
ADMIN_TOKEN = "admin-of-the-tests"
_PATIENCE = 60.0

Object = dict[str, Any]


def program(name: str) -> Path:
    """Path of kube-apiserver, etcd or kubectl; builds it when it was never built (minutes, once)."""
    found = subprocess.run(
        [sys.executable, "-m", "cluster", "bin", name], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(found.stdout.strip())


class ApiServer:
    """etcd and kube-apiserver; `with ApiServer() as server:` starts both and ends both."""

    def __init__(self, *arguments: str, folder: Path | None = None) -> None:
        """`arguments`: further flags of kube-apiserver."""
        self._owned = tempfile.TemporaryDirectory(prefix="apiserver-") if folder is None else None
        self.folder = Path(self._owned.name) if self._owned else folder or Path()
        self._arguments = arguments
        self._etcd_port, self._etcd_peer_port, self.port = free_port(), free_port(), free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        self._installed = False
        self.audit_log = self.folder / "audit.jsonl"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._start_etcd()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End both and remove their files."""
        self.stop()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()
            self._etcd = None
        if self._owned:
            self._owned.cleanup()

    def stop(self) -> None:
        """Kill kube-apiserver alone; etcd keeps what was written."""
        if self._apiserver is not None:
            self._apiserver.kill()
            self._apiserver.wait()
            self._apiserver = None

    def start(self) -> None:
        """Start kube-apiserver, on the same port as before, and wait until it is ready."""
        self._apiserver = self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder / 'certs'}",
            f"--service-account-key-file={self.folder / 'sa.key'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.97.0.0/16",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            # no controller makes the default service account that this one asks for
            "--disable-admission-plugins=ServiceAccount",
            f"--audit-log-path={self.audit_log}",
            f"--audit-policy-file={self.folder / 'audit.yaml'}",
            "--audit-log-mode=blocking",
            "--watch-cache=true",
            "--profiling=false",
            *self._arguments,
        )
        self._wait(self._ready, "kube-apiserver")
        self._wait_served()

    def api(self, token: str = ADMIN_TOKEN) -> Api:
        """A client with that token; without another one: of an administrator."""
        configuration = Configuration()
        config.load_kube_config(config_file=str(self.kubeconfig(token)), client_configuration=configuration)
        return Api(configuration)

    def kubeconfig(self, token: str = ADMIN_TOKEN, host: str | None = None) -> Path:
        """Path of a kubeconfig with that token; `host`: another URL, of a proxy for example."""
        certificate = base64.b64encode((self.folder / "certs" / "apiserver.crt").read_bytes()).decode()
        cluster = {"server": host or self.url, "certificate-authority-data": certificate}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
            "current-context": "it",
        }
        text = yaml.safe_dump(content)
        path = self.folder / f"kubeconfig-{abs(hash(text))}"
        path.write_text(text)
        return path

    def kubectl(self, *arguments: str, stdin: Object | str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator; returns what it said and its exit code."""
        text = stdin if isinstance(stdin, str | None) else json.dumps(stdin)
        command: Sequence[str] = [str(program("kubectl")), f"--kubeconfig={self.kubeconfig()}", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def install_crds(self) -> None:
        """The three kinds; returns when they are served."""
        api = self.api()
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for kind in KINDS:
            api.request("POST", crds, body=crd(kind))
        self._installed = True
        self._wait_served()

    def namespace(self, name: str) -> str:
        """Make a namespace; returns its name."""
        self.api().request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        return name

    def fresh_namespace(self, name: str) -> str:
        """The same with a number behind the name where it is there: of a test that runs once more."""
        for found in (name, *(f"{name}-{number}" for number in range(2, 9))):
            try:
                return self.namespace(found)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
        raise AssertionError(f"namespaces {name} to {name}-8 are there")

    def writes(self, user: str | None = None) -> list[Object]:
        """What was written so far, by whom (`user` in part), from the audit log: one entry a request."""
        text = self.audit_log.read_text() if self.audit_log.exists() else ""
        # the API server may be in the middle of a line
        whole = text[: text.rfind("\n") + 1].splitlines()
        entries: list[Object] = [json.loads(line) for line in whole]
        return [e for e in entries if user is None or user in e["user"]["username"]]

    def _wait_served(self) -> None:
        """After a restart the API server answers before it knows its custom resources again."""
        api = self.api()
        for kind in KINDS if self._installed else ():
            self._wait(lambda plural=kind.plural: self._served(api, plural), kind.plural)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        subprocess.run(
            ["openssl", "genrsa", "-out", str(self.folder / "sa.key"), "2048"], check=True, capture_output=True
        )
        (self.folder / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n' + self._operators())
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]}],
        }
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(policy))

    @staticmethod
    def _operators() -> str:
        return "".join(f'operator-{n},operator-{n},operator-{n},"system:masters"\n' for n in range(4))

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._etcd_peer_port}"
        self._etcd = self._spawn(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(program(name)), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
            )

    def _ready(self) -> bool:
        if self._apiserver is not None and self._apiserver.poll() is not None:
            raise AssertionError(f"kube-apiserver ended: {self._tail('kube-apiserver')}")
        if not (self.folder / "certs" / "apiserver.crt").exists():
            return False
        try:
            self.api().request("GET", "/api/v1/namespaces/default")
        except ApiError:
            return False
        return True

    @staticmethod
    def _served(api: Api, plural: str) -> bool:
        try:
            api.request("GET", f"/apis/tuneyard.dev/v1alpha1/{plural}")
        except ApiError:
            return False
        return True

    def _wait(self, check: Any, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not check():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} is not there after {_PATIENCE:.0f} s: {self._tail('kube-apiserver')}")
            time.sleep(0.1)

    def _tail(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else "(no log)"
