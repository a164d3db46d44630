"""`tuneyard agent keep` as a real process: with a pod's own token and what the chart and the operator allow it, and a
real S3 server.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.tiny import build_tiny
from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.chart import NAMESPACE, install, rendered, token
from tests.contract.operator_process import eventually
from tests.contract.s3server import S3Server
from tests.contract.test_admission import ACCESS, make_pod, pod_path
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import KeepReport, PlannedAdapter
from tuneyard.api.sources import Source
from tuneyard.planning.children import namespace_access
from tuneyard.planning.prewarm import prewarm_objects
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.settings import Settings
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.artifacts.store import Store
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, Object

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

MODELS = "models"
SETTINGS = Settings(tuneyard_namespace=NAMESPACE)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("models")
        for folder in ("base", "adapter-a"):
            for path in (build_tiny() / folder).iterdir():
                server.client.upload_file(str(path), "models", f"{folder}/{path.name}")
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as started:
        started.install_crds()
        started.namespace(NAMESPACE)
        started.namespace(MODELS)
        install(started, [o for o in rendered() if o["kind"] in ACCESS or o["kind"].startswith("ValidatingAdmission")])
        yield started


def source(s3: S3Server, folder: str) -> Source:
    found = s3.source(f"models/{folder}/").to_dict()
    return Source.from_dict({"s3": {**found, "credentials": {"name": "models-reader"}}})


def base(s3: S3Server) -> BaseModelResource:
    cache = {"hostPath": {"path": "/var/cache/tuneyard"}, "prewarm": {}}
    spec = {"source": source(s3, "base").to_dict(), "serving": {"cache": cache}}
    metadata = {"name": "tiny", "namespace": MODELS, "uid": "0b5e2f5c-52a8-4f5b-8b71-2c3f2a9d7e11"}
    return BaseModelResource.from_dict({"metadata": metadata, "spec": spec})


def secret(s3: S3Server) -> Object:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in s3.root.data.items()}
    labels = {names.LABEL_CREDENTIALS: "true"}
    metadata = {"name": "models-reader", "namespace": MODELS, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def planned(s3: S3Server, *adapters: str) -> tuple[Object, ...]:
    """What the operator would apply, with these adapters in the plan."""
    found = [PlannedAdapter(name=name, source=source(s3, name)) for name in adapters]
    return prewarm_objects(base(s3), resolved_serving(base(s3).spec.serving), found, None, SETTINGS)


class KeepProcess:
    """The process, in a pod that is an object of the API server."""

    def __init__(self, server: ApiServer, folder: Path, name: str = "keep-0") -> None:
        self._admin: Api = server.api()
        self.name = name
        self.folder = folder
        self.mark, self.log = folder / "kept", folder / "log"
        pod = make_pod(self._admin, name)
        own = token(self._admin, MODELS, names.AGENT_SERVICE_ACCOUNT, pod)
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig(own)),
            "POD_NAME": name,
            "POD_NAMESPACE": MODELS,
            "POD_UID": str(pod["metadata"]["uid"]),
            "POD_IP": "10.0.0.1",
            "TUNEYARD_PREWARM_PLAN": "tiny-prewarm",
            "PYTHONPATH": str(ROOT / "operator"),
        }

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """`arguments`: those of another of the agent's commands."""
        command = [sys.executable, "-m", "tuneyard", "agent", *(arguments or ("keep", "--mark", str(self.mark)))]
        command += ["--cache", str(self.folder / "cache")]
        with (
            self.log.open("ab") as log,
            subprocess.Popen(command, env=self._environment, stdout=log, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def told(self) -> KeepReport | None:
        pod: dict[str, Any] = self._admin.request("GET", pod_path(self.name))
        text = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_ADAPTERS)
        return KeepReport.from_dict(json.loads(text)) if text else None

    def kept(self) -> dict[str, bool]:
        """Digest -> whether nothing may evict it."""
        return {entry.digest: entry.in_use for entry in Store(self.folder / "cache").entries()}


def test_it_fetches_holds_and_lets_go(server: ApiServer, s3: S3Server, tmp_path: Path) -> None:
    access = namespace_access(MODELS, [base(s3)], ["models-reader"], SETTINGS)
    install(server, [*access, *planned(s3, "adapter-a")])
    (tmp_path / "cache").mkdir()
    keep, tiny, adapter = (
        KeepProcess(server, tmp_path),
        *(digest_of(build_tiny() / f).digest for f in ("base", "adapter-a")),
    )
    with keep.running() as process:

        def told(report: KeepReport) -> bool:
            return keep.told() == report

        def refused() -> bool:
            report = keep.told()
            return report is not None and report.reason == "CredentialsMissing"

        eventually(refused, f"without the Secret nothing comes: {keep.log.read_text()}", 30)
        report = keep.told()
        assert report is not None
        assert "models-reader" in str(report.message)
        install(server, [secret(s3)])
        eventually(lambda: told(KeepReport(kept=2, wanted=2)), f"all is there: {keep.log.read_text()}", 90)
        assert keep.kept() == {tiny: True, adapter: True}
        assert keep.mark.exists()

        (plan, *_) = planned(s3)
        objects.apply(server.api(), plan)
        eventually(lambda: told(KeepReport(kept=1, wanted=1)), "the adapter is not wanted any more", 30)
        assert keep.kept() == {tiny: True, adapter: False}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, keep.log.read_text()
    assert keep.kept() == {tiny: False, adapter: False}
    assert not keep.mark.exists()
    for text in s3.root.data.values():
        assert text not in keep.log.read_text()


def test_a_pod_without_an_agent_holds_its_base_and_fetches_what_has_gone(
    server: ApiServer, s3: S3Server, tmp_path: Path
) -> None:
    install(server, [*namespace_access(MODELS, [base(s3)], ["models-reader"], SETTINGS), secret(s3)])
    tiny = digest_of(build_tiny() / "base").digest
    (tmp_path / "cache").mkdir()
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "cache" / tiny.removeprefix("sha256:") / "files")  # as `verify` left it, now evicted
    holder = KeepProcess(server, tmp_path, "worker-0")
    given = ("hold", "--path", str(link), "--source", json.dumps(source(s3, "base").to_dict()))
    with holder.running(*given) as process:
        eventually(lambda: holder.kept() == {tiny: True}, holder.log.read_text, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, holder.log.read_text()
    assert holder.kept() == {tiny: False}
