"""Bases and adapters that come over the network or as an image, on the real system."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster import paths, scratch_image
from cluster.local.layout import NODE_ADDRESS
from demo.kubectl import condition, ready
from demo.system import MODELS_NAMESPACE
from models.tiny import build_tiny
from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tests.e2e.world import answer, local_cluster, ours, reason_of, remove, rows, wait_until
from tuneyard.systems.artifacts.folder import digest_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ADDRESS = f"{NODE_ADDRESS}:7070"
SERVING = {
    "replicas": 1,
    "maxModelLen": 512,
    "lora": {"maxLoras": 2, "maxRank": 8, "maxCpuLoras": 4},
    "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
    "extraArgs": ["--enforce-eager"],
}


class NodeS3:
    """The S3 server on the node, where pods reach it; its objects are there before it is."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        provider = local_cluster()
        command = provider.inside(self._server.command(ADDRESS))
        self._process = subprocess.Popen(command, env=self._server.environment, stdout=subprocess.DEVNULL)
        probe = f"import socket; socket.create_connection(('{NODE_ADDRESS}', 7070), timeout=1).close()"
        asking = provider.inside([sys.executable, "-c", probe])
        wait_until(lambda: not subprocess.run(asking, check=False, capture_output=True).returncode, 30, "S3 answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[NodeS3]:
    with S3Server(tmp_path / "s3") as server:
        server.bucket("models")
        for name, folder in (("base", "base"), ("a", "adapter-a"), ("b", "adapter-b")):
            for path in (build_tiny() / folder).iterdir():
                server.client.upload_file(str(path), "models", f"{name}/{path.name}")
    node = NodeS3(server)
    node.start()
    yield node
    node.stop()


def secret(name: str, value: str, **labels: str) -> str:
    data = {"AWS_ACCESS_KEY_ID": ROOT, "AWS_SECRET_ACCESS_KEY": value}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"tuneyard.dev/credentials": "true"}},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
        }
    )


def in_bucket(prefix: str, credentials: str) -> dict[str, object]:
    place = {"uri": f"s3://models/{prefix}/", "endpoint": f"http://{ADDRESS}", "region": "us-east-1"}
    return {"s3": {**place, "credentials": {"name": credentials}}}


def deployment(name: str, base: str, *adapters: str) -> str:
    revisions = [{"name": a, "baseModel": base, "adapter": f"{name}-{a}"} for a in adapters]
    revisions = revisions or [{"name": "base", "baseModel": base}]
    traffic = [{"revision": revisions[0]["name"], "weight": 100}]
    routing = {"allowRevisionHeader": True}
    return ours("ModelDeployment", name, revisions=revisions, traffic=traffic, routing=routing)


def test_from_s3_once_for_a_node_beforehand_and_with_a_key_that_comes_later(world, s3):
    kept = {"hostPath": {"path": str(paths.NODE_CACHE)}, "sizeLimit": "1Gi", "prewarm": {}}
    serving = {**SERVING, "cache": kept}
    world.apply(secret("reader", ROOT_SECRET))
    world.apply(ours("BaseModel", "remote", source=in_bucket("base", "reader"), serving=serving))
    world.apply(ours("LoRAAdapter", "remote-a", baseModel="remote", source=in_bucket("a", "reader")))
    world.apply(ours("LoRAAdapter", "remote-b", baseModel="remote", source=in_bucket("b", "late")))
    try:
        # every node has the base before anybody refers to it
        world.kubectl.wait_for(
            "bmodel", "remote", lambda o: (o.get("status") or {}).get("prewarmed") == "1/1",
            namespace=MODELS_NAMESPACE, timeout=120,
        )  # fmt: skip
        world.apply(deployment("remote", "remote", "a", "b"))

        def served(revision: str, pods: int, timeout: float) -> None:
            world.kubectl.wait_for(
                "mdep", "remote", lambda d: rows(d).get(revision, {}).get("readyEndpoints") == pods,
                namespace=MODELS_NAMESPACE, timeout=timeout,
            )  # fmt: skip

        served("a", 1, 300)
        base = world.kubectl.get("bmodel", "remote", MODELS_NAMESPACE)
        assert base["status"]["digest"] == digest_of(build_tiny() / "base").digest
        lora = world.kubectl.get("lora", "remote-a", MODELS_NAMESPACE)
        assert lora["status"]["digest"] == digest_of(build_tiny() / "adapter-a").digest

        def told(reason: str) -> None:
            world.kubectl.wait_for(
                "lora", "remote-b", lambda o: reason_of(o, "Loaded") == reason,
                namespace=MODELS_NAMESPACE, timeout=90,
            )  # fmt: skip

        # an adapter whose key is missing, then wrong, then right: without a restart
        def pods() -> set[str]:
            found = world.kubectl.items("pods", MODELS_NAMESPACE, "tuneyard.dev/base-model=remote")
            return {p["metadata"]["uid"] for p in found}

        before = pods()
        told("CredentialsMissing")
        world.apply(secret("late", "wrong"))
        told("AccessDenied")
        world.apply(secret("late", ROOT_SECRET))
        served("b", 1, 120)
        assert pods() == before
        assert answer(world, "remote", "a") != answer(world, "remote", "b")

        # another pod of the node has everything without the server
        s3.stop()
        world.kubectl.merge("bmodel", "remote", {"spec": {"serving": {"replicas": 2}}}, MODELS_NAMESPACE)
        served("a", 2, 300)
        served("b", 2, 60)
    finally:
        remove(world, "remote", "remote", "a", "b")


def test_a_base_that_is_an_image(world, tmp_path):
    name = "localhost/tuneyard-test-base:1"
    with (tmp_path / "base.tar").open("w+b") as archive:
        scratch_image.write_folder(archive, name, build_tiny() / "base", "amd64")
    world.system.provider.load_image(tmp_path / "base.tar")
    digest = digest_of(build_tiny() / "base").digest
    source = {"image": {"reference": name}}
    world.apply(ours("BaseModel", "in-image", source=source, digest=digest, serving=SERVING))
    try:
        world.apply(deployment("in-image", "in-image"))
        seen = world.kubectl.wait_for("mdep", "in-image", ready, namespace=MODELS_NAMESPACE, timeout=300)
        assert condition(seen, "Available") == "True"
        assert answer(world, "in-image", "base")
    finally:
        remove(world, "in-image", "in-image")
