"""`tuneyard agent run` as the process it is in a pod: a real API server gives the plan and takes the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.tiny import build_tiny
from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.engines import BASE, KEY, EngineProcess, adapters, own_engine
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tuneyard.api import names
from tuneyard.api.documents import PLAN_KEY, PlannedAdapter, PodReport, PoolPlan
from tuneyard.api.sources import Source, VolumeSource
from tuneyard.systems.kube.client import MERGE, ApiError

pytestmark = pytest.mark.apiserver

MOST_MEMORY = 128 << 20
"""Bytes of resident memory: what the pod template asks for."""

# the agent's addresses and folders are fixed in a pod; here they are this test's
PROGRAM = """
import dataclasses, json, os, sys
from tuneyard.agent import main
given = json.loads(os.environ["TEST_SETTINGS"])
made = main.settings_from
from pathlib import Path
fitted = {k: Path(v) if k in ("volumes", "adapters", "run", "front_admin") else v for k, v in given.items()}
main.settings_from = lambda environment: dataclasses.replace(made(environment), **fitted)
import argparse
parser = argparse.ArgumentParser()
main.add_arguments(parser)
sys.exit(main.run(parser.parse_args(["run"])))
"""


class AgentProcess:
    """One agent beside one engine, with a pod of its own in the API server."""

    def __init__(self, server: ApiServer, engine: EngineProcess, folder: Path) -> None:
        self.api = server.api()
        self.namespace = server.fresh_namespace("agents")
        self.folder = folder
        self.engine = engine
        self._kubeconfig = server.kubeconfig()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("adapter-a", "adapter-b"):
            shutil.copytree(adapters() / name, folder / "artifacts" / "models" / name)
        (folder / "run").mkdir()
        pod = {
            "metadata": {"name": "pod-0", "annotations": {"keep": "1"}},
            "spec": {"containers": [{"name": "engine", "image": "x"}]},
        }
        self.uid = self.api.request("POST", self._path("pods"), body=pod)["metadata"]["uid"]

    def _path(self, kind: str, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def plan(self, *wanted: str) -> None:
        """Write the pool's plan, as the operator does."""
        entries = [
            PlannedAdapter(name=name, source=Source(volume=VolumeSource(name="models", path=name))) for name in wanted
        ]
        text = json.dumps(PoolPlan(pool="pool", base_model=BASE, adapters=entries).to_dict())
        name = names.pool_plan("pool")
        body = {"metadata": {"name": name}, "data": {PLAN_KEY: text}}
        try:
            self.api.request("PATCH", self._path("configmaps", name), body=body, content_type=MERGE)
        except ApiError as error:
            if not error.not_found:
                raise
            self.api.request("POST", self._path("configmaps"), body=body)

    def annotations(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.request("GET", self._path("pods", "pod-0"))["metadata"]["annotations"]
        return found

    def report(self) -> PodReport | None:
        text = self.annotations().get(names.ANNOTATION_ADAPTERS)
        return PodReport.from_dict(json.loads(text)) if text else None

    def loaded(self) -> set[str]:
        found = self.report()
        return {n for n, a in found.adapters.items() if a.state == "Loaded"} if found else set()

    def start(self) -> None:
        given = {
            "engine_url": self.engine.url,
            "port": free_port(),
            "volumes": str(self.folder / "artifacts"),
            "adapters": str(self.folder / "adapters"),
            "run": str(self.folder / "run"),
            "front_admin": str(self.folder / "front.sock"),
        }
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}/operator:{ROOT}",
            "KUBECONFIG": str(self._kubeconfig),
            "TEST_SETTINGS": json.dumps(given),
            "POD_NAME": "pod-0",
            "POD_NAMESPACE": self.namespace,
            "POD_UID": self.uid,
            "POD_IP": "10.0.0.1",
            "TUNEYARD_POOL": "pool",
            "TUNEYARD_BASE_MODEL": BASE,
            "TUNEYARD_BASE_PATH": str(build_tiny() / "base"),
            "TUNEYARD_MAX_RANK": "16",
            "TUNEYARD_MAX_CPU_LORAS": "16",
            "TUNEYARD_DRAIN_TIMEOUT": "10",
            "TUNEYARD_ENGINE_KEY": KEY,
        }
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def memory(self) -> int:
        """Resident bytes."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def engine() -> Iterator[EngineProcess]:
    engine = own_engine("fake")
    engine.start()
    yield engine
    engine.kill()


def test_plan_in_report_out_through_an_outage_and_a_restart(engine: EngineProcess, tmp_path: Path) -> None:
    with ApiServer() as server:
        agent = AgentProcess(server, engine, tmp_path)
        agent.plan("adapter-a")
        agent.start()
        try:
            eventually(lambda: agent.loaded() == {"adapter-a"}, "the adapter is published")
            assert agent.annotations()["keep"] == "1", "only its own annotation is written"
            agent.plan("adapter-a", "adapter-b")
            eventually(lambda: agent.loaded() == {"adapter-a", "adapter-b"}, "a hot load")
            assert agent.memory() < MOST_MEMORY

            server.stop()
            assert agent.stop() == 0
            engine.kill()
            engine.start()
            agent.start()
            eventually(lambda: _names(engine) == 3, "it has loaded what its snapshot says, without the API server")
            server.start()
            eventually(lambda: agent.loaded() == {"adapter-a", "adapter-b"}, "and published it afterwards")
            agent.plan("adapter-b")
            eventually(lambda: agent.loaded() == {"adapter-b"}, "and follows the plan again")

            assert agent.stop() == 0
            assert "Traceback" not in agent.log
            assert KEY not in agent.log
        finally:
            agent.kill()


def _names(engine: EngineProcess) -> int:
    request = urllib.request.Request(f"{engine.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=5) as response:
        return len(json.load(response)["data"])
