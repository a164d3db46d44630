"""The real LeaderWorkerSet controller on a real API server, with the controllers it builds on, and what plays kubelets.

Pods are objects: `Kubelets` says of each that it runs, and takes it away when it has been deleted. A leader is ready
only while all pods of its group run, as an engine is that needs all of its ranks; what else a pod's status says is a
test's own business.
"""

from __future__ import annotations

import base64
import contextlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.gobuild import module_files
from tests.contract.apiserver import ApiServer, program
from tests.contract.certificates import Authority
from tests.contract.chart import install
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tests.contract.processes import answers, running
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE, Api, ApiError

Object = dict[str, Any]

LABELS = "leaderworkerset.sigs.k8s.io"
_CONTROLLERS = "statefulset-controller,garbage-collector-controller,disruption-controller,deployment-controller"
_CONTROLLERS += ",replicaset-controller"


def crds() -> list[Object]:
    """What makes an API server know the kind."""
    folder = _module() / "config" / "crd" / "bases"
    return [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))]


def install_crds(server: ApiServer) -> None:
    """The kind, without anybody who acts on it."""
    install(server, crds())
    done = server.kubectl("wait", "--for=condition=Established", f"crd/{crds()[0]['metadata']['name']}")
    assert done.returncode == 0, done.stderr


@contextmanager
def controllers(server: ApiServer, folder: Path) -> Iterator[None]:
    """Kubernetes' own controllers and the LeaderWorkerSet's, with its webhooks."""
    kubeconfig = server.kubeconfig()
    port, health = free_port(), free_port()
    authority = Authority(folder, "lws")
    served = folder / "served"
    served.mkdir()
    for name, content in authority.issue("lws").items():
        (served / name).write_bytes(content)
    config = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "webhook": {"port": port, "host": "127.0.0.1", "certDir": str(served)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }
    (folder / "lws.yaml").write_text(yaml.safe_dump(config))
    install_crds(server)
    manager = (
        *(program("kube-controller-manager"), f"--kubeconfig={kubeconfig}", f"--controllers={_CONTROLLERS}"),
        *("--leader-elect=false", "--bind-address=127.0.0.1", f"--secure-port={free_port()}"),
        f"--cert-dir={folder / 'manager'}",
        *("--kube-api-qps=200", "--kube-api-burst=400", f"--authentication-kubeconfig={kubeconfig}"),
        f"--authorization-kubeconfig={kubeconfig}",
    )
    groups = (program("lws"), f"--config={folder / 'lws.yaml'}", f"--kubeconfig={kubeconfig}", "--leader-elect=false")
    log = folder / "lws.log"
    with running(folder / "controller-manager.log", *manager), running(log, *groups):
        eventually(lambda: answers(f"http://127.0.0.1:{health}/readyz"), lambda: log.read_text()[-3000:])
        eventually(lambda: "Serving webhook server" in log.read_text(), lambda: log.read_text()[-3000:])
        install(server, list(_webhooks(port, authority.path.read_bytes())))
        yield


def _module() -> Path:
    return module_files("lws", "sigs.k8s.io/lws")


def _webhooks(port: int, authority: bytes) -> Iterator[Object]:
    """The module's own, which ask a Service, made to ask this port; of pods only those of groups are asked about, as
    its patches have it.
    """
    folder = _module() / "config" / "webhook"
    for webhooks in yaml.safe_load_all((folder / "manifests.yaml").read_text()):
        webhooks["metadata"]["name"] = f"lws-{webhooks['metadata']['name']}"
        for webhook in webhooks["webhooks"]:
            path = webhook["clientConfig"].pop("service")["path"]
            bundle = base64.b64encode(authority).decode()
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
            if "pods" in webhook["rules"][0]["resources"]:
                expression = {"key": f"{LABELS}/name", "operator": "Exists"}
                webhook["objectSelector"] = {"matchExpressions": [expression]}
        yield webhooks


class Kubelets:
    """Moves the pods of one namespace as their nodes would; `with` starts a thread that does."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.namespace = namespace
        self.history: list[tuple[frozenset[str], dict[str, str]]] = []
        """At each look: the leaders that are ready, and of each leader which template it is made from."""
        self._api: Api = server.api()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None

    def pods(self) -> dict[str, Object]:
        """All of the namespace, by name."""
        found = self._api.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")
        return {pod["metadata"]["name"]: pod for pod in found["items"]}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(10)
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.1):
                self._look()
        except BaseException as error:  # noqa: BLE001 -- told where the test ends
            self._failure = error

    def _look(self) -> None:
        pods = self.pods()
        ready = set()
        for name, pod in pods.items():
            with contextlib.suppress(ApiError):  # it has changed or gone since
                if pod["metadata"].get("deletionTimestamp"):
                    self._gone(name, pod)
                elif self._moved(name, pod, pods):
                    ready.add(name)
        leaders = {n: _template(p) for n, p in pods.items() if names.LABEL_POOL in p["metadata"]["labels"]}
        self.history.append((frozenset(ready & leaders.keys()), leaders))

    def _gone(self, name: str, pod: Object) -> None:
        if pod["metadata"].get("finalizers"):
            return  # garbage collection takes what belongs to it first
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        self._api.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}", body=body)

    def _moved(self, name: str, pod: Object, pods: dict[str, Object]) -> bool:
        """Whether it is ready now."""
        if "nodeName" not in pod["spec"]:
            # one without a node is gone as soon as it is deleted
            where = f"/api/v1/namespaces/{self.namespace}/pods/{name}/binding"
            target = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
            self._api.request("POST", where, body={"metadata": {"name": name}, "target": target})
            return False
        runs, ready = pod.get("status", {}).get("phase") == "Running", is_ready(pod)
        whole = not _waits_for_others(name, pod, pods)
        if not runs or ready != whole:
            conditions = [{"type": "Ready", "status": "True" if runs and whole else "False"}]
            status = {"phase": "Running", "conditions": conditions}
            where = f"/api/v1/namespaces/{self.namespace}/pods/{name}/status"
            body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
            self._api.request("PATCH", where, body=body, content_type=MERGE)
        return ready and whole


def is_ready(pod: Object) -> bool:
    """By its condition."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _template(pod: Object) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_TEMPLATE, ""))


def _waits_for_others(name: str, pod: Object, pods: dict[str, Object]) -> bool:
    """Whether a leader's group is not whole: its workers do not all run, or are an earlier leader's."""
    size = (pod["metadata"].get("annotations") or {}).get(f"{LABELS}/size")
    if size is None or pod["metadata"]["labels"].get(f"{LABELS}/worker-index") != "0":
        return False
    revision = pod["metadata"]["labels"][f"{LABELS}/template-revision-hash"]
    mine = [p for n, p in pods.items() if re.fullmatch(rf"{re.escape(name)}-[0-9]+", n)]
    running = [
        p
        for p in mine
        if p.get("status", {}).get("phase") == "Running"
        and not p["metadata"].get("deletionTimestamp")
        and p["metadata"]["labels"][f"{LABELS}/template-revision-hash"] == revision
    ]
    return len(running) < int(size) - 1
