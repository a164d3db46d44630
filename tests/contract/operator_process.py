"""The operator as a real process against a real API server, and what stands in for the rest of the cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.contract.apiserver import ADMIN_TOKEN, ROOT, ApiServer
from tests.contract.fakegateway import MASTER, FakeGateway
from tests.contract.ports import free_port
from tuneyard.api import names
from tuneyard.systems.kube.client import MERGE, Api, ApiError

Object = dict[str, Any]

NAMESPACE = "tuneyard-system"
_CRDS = "/apis/tuneyard.dev/v1alpha1"


def eventually(check: Callable[[], Any], what: str | Callable[[], str], within: float = 60.0) -> Any:
    """The first true answer of `check`; fails with `what`, said then, when there is none in that many seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.03)


class OperatorProcess:
    """`tuneyard operator` in a process of its own; it dies with the block that started it."""

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        *,
        token: str = ADMIN_TOKEN,
        identity: str = "operator-0",
        host: str | None = None,
        gateways: str = "",
        settings: Object | None = None,
        prelude: str = "",
    ) -> None:
        """`prelude`: Python that its process runs first."""
        self._prelude = prelude
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{identity}.log"
        self.health_port = free_port()
        self._config, master = folder / "config.yaml", folder / "master"
        self._config.write_text(yaml.safe_dump({"tuneyardNamespace": NAMESPACE, **(settings or {})}))
        master.write_bytes(MASTER)
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig(token, host)),
            "TUNEYARD_MASTER_FILE": str(master),
            "TUNEYARD_HEALTH_PORT": str(self.health_port),
            "TUNEYARD_GATEWAYS": gateways,
            "POD_NAME": identity,
            "PYTHONPATH": str(ROOT / "operator"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        command = [
            sys.executable,
            "-c",
            self._prelude + "import sys; from pathlib import Path; from tuneyard.handlers.main import run;",
        ]
        command[-1] += "sys.exit(run(Path(sys.argv[1])))"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self._config)], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def terminate(self, within: float = 15.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(within)
        self.process = None
        return status

    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def said(self) -> str:
        """Its log."""
        return self.log.read_text() if self.log.exists() else ""

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, or over the series with this one; 0 where there is none."""
        lines = self.ask("/metrics")[1].splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line.startswith(name) and label in line]
        return sum(float(value) for series, value in values if series.partition("{")[0] == name)

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of its health server."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)


class Cluster:
    """One namespace of an API server, in the words of the tests."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server = server
        self.namespace = server.fresh_namespace(namespace)
        self.api: Api = server.api()

    @classmethod
    def of(cls, server: ApiServer, request: pytest.FixtureRequest) -> Self:
        """With a namespace that is named after the test."""
        return cls(server, re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:60].strip("-"))

    def path(self, plural: str, name: str = "") -> str:
        return f"{_CRDS}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def apply(self, kind: str, name: str, spec: Object) -> Object:
        """Server-side apply, as a user. Model names are one per cluster, so they get the namespace in front."""
        if kind == "ModelDeployment":
            spec = {"modelName": f"{self.namespace}/{name}", **spec}
        plural = f"{kind.lower()}s"
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        return self.api.request(
            "PATCH",
            self.path(plural, name),
            query={"fieldManager": "user", "force": "true"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    def delete(self, kind: str, name: str) -> None:
        self.api.request("DELETE", self.path(f"{kind.lower()}s", name))

    def get(self, kind: str, name: str) -> Object:
        return self.api.request("GET", self.path(f"{kind.lower()}s", name))

    def status(self, kind: str, name: str) -> Object:
        status: Object = self.get(kind, name).get("status") or {}
        return status

    def condition(self, kind: str, name: str, type_: str) -> tuple[str, str]:
        """(status, reason) of a condition; empty texts while it is not there."""
        for condition in self.status(kind, name).get("conditions") or ():
            if condition["type"] == type_:
                return condition["status"], condition["reason"]
        return "", ""

    def child(self, path: str) -> Object | None:
        """An object under /api/v1/namespaces/<namespace>/ or (with a group) /apis/<group>/namespaces/<namespace>/."""
        group, _, rest = path.rpartition(":")
        root = f"/apis/{group}" if group else "/api/v1"
        try:
            return self.api.request("GET", f"{root}/namespaces/{self.namespace}/{rest}")
        except ApiError as error:
            if error.not_found:
                return None
            raise

    # -- pods, made and moved by hand --------------------------------------------------------------------------------

    def pod(self, name: str, base: str, pool: str | None = None) -> None:
        """A pod of a pool, as its Deployment's controller would make it."""
        labels = {
            names.LABEL_POOL: pool or names.pool_name(base),
            names.LABEL_BASE_MODEL: base,
            names.LABEL_COMPONENT: "pool",
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
        }
        spec = {"containers": [{"name": "engine", "image": "engine"}]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        self.api.request("POST", f"/api/v1/namespaces/{self.namespace}/pods", body=body)

    def pod_status(self, name: str, status: Object) -> None:
        where = f"/api/v1/namespaces/{self.namespace}/pods/{name}/status"
        self.api.request("PATCH", where, body={"status": status}, content_type=MERGE)

    def verified(self, name: str, digest: str) -> None:
        """The pod's init container has read the base."""
        report = {"ok": True, "digest": digest, "sizeBytes": 1000, "architecture": "LlamaForCausalLM"}
        ended = {"exitCode": 0, "reason": "Completed", "message": json.dumps(report)}
        container = {"name": "verify", "image": "t", "imageID": "", "ready": True, "restartCount": 0}
        self.pod_status(
            name, {"phase": "Running", "initContainerStatuses": [{**container, "state": {"terminated": ended}}]}
        )

    def report(
        self,
        name: str,
        base: str,
        adapters: dict[str, str] | None = None,
        engine: str = "Ready",
        address: str = "10.0.0.9:8080",
        *,
        failed: Mapping[str, Object] | None = None,
    ) -> None:
        """The pod's agent says what it has: adapter name -> digest, all loaded but those that it says more of."""
        said = {
            "address": address,
            "engine": engine,
            "baseModel": base,
            "adapters": {
                a: {"state": "Loaded", "digest": d, "engineName": names.engine_adapter_name(a, d), "rank": 8}
                for a, d in (adapters or {}).items()
            }
            | {a: {"state": "Failed", **why} for a, why in (failed or {}).items()},
        }
        where = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        annotations = {names.ANNOTATION_ADAPTERS: json.dumps(said)}
        self.api.request("PATCH", where, body={"metadata": {"annotations": annotations}}, content_type=MERGE)


@contextmanager
def all_of(operators: Iterable[OperatorProcess]) -> Iterator[list[OperatorProcess]]:
    """Several operators, started one after the other."""
    started: list[OperatorProcess] = []
    try:
        for operator in operators:
            started.append(operator)
            operator.start()
        yield started
    finally:
        for operator in started:
            operator.kill()


@contextmanager
def operating(server: ApiServer, folder: Path, **options: Any) -> Iterator[tuple[FakeGateway, OperatorProcess]]:
    """An operator beside one gateway; `options` are those of OperatorProcess."""
    with FakeGateway("g1") as gateway, OperatorProcess(server, folder, gateways=gateway.entry, **options) as process:
        yield gateway, process


BASE_SPEC: Object = {
    "source": {"volume": {"name": "models", "path": "smollm2"}},
    "serving": {
        "artifactVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "replicas": 1,
    },
}
"""A base that every check of the plan lets through."""


def adapter_spec(base: str, path: str = "adapter") -> Object:
    return {"baseModel": base, "source": {"volume": {"name": "models", "path": path}}}


def deployment_spec(base: str, weights: dict[str, int], adapters: dict[str, str | None] | None = None) -> Object:
    """A deployment with a revision per weight; `adapters`: revision -> adapter."""
    found = adapters or {}
    revisions = [{"name": r, "baseModel": base, **({"adapter": found[r]} if found.get(r) else {})} for r in weights]
    return {"revisions": revisions, "traffic": [{"revision": r, "weight": w} for r, w in weights.items()]}
