"""What the kind provider would run, since kind itself needs Docker."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster import gobuild, kind, paths
from cluster.errors import ClusterError
from cluster.progress import Progress


class Recorded:
    """A Run that notes the commands and answers as a machine with (or without) the cluster would."""

    def __init__(self, *clusters: str) -> None:
        self.clusters = list(clusters)
        self.commands: list[str] = []
        self.inputs: list[str] = []

    def __call__(self, argv: Sequence[str], stdin: str | None = None) -> str:
        self.commands.append(" ".join(argv))
        if stdin is not None:
            self.inputs.append(stdin)
        if list(argv[:3]) == ["kind", "get", "clusters"]:
            return "\n".join(self.clusters)
        if "crictl" in argv:
            images = [{"id": "sha256:aa", "repoTags": ["localhost/tuneyard:1", "localhost/tuneyard:dev"]}]
            return json.dumps({"images": images})
        return ""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    monkeypatch.setenv("TUNEYARD_CLUSTER", "yard")
    return tmp_path / "kind" / "yard"


def cluster(run: Recorded) -> kind.KindCluster:
    return kind.KindCluster(Progress(Console(file=io.StringIO())), run)


def test_up_creates_once_with_the_configuration_and_adds_fake_gpus(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "fake-gpu-0123" / "fake-gpu"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\ncat > {tmp_path}/applied.yaml; echo "$@" > {tmp_path}/arguments\n')
    kubectl.chmod(0o755)
    monkeypatch.setattr(gobuild, "ensure", lambda names, progress: {"fake-gpu": program, "kubectl": kubectl})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    create = f"kind create cluster --name yard --config - --wait 180s --kubeconfig {state}/kubeconfig"

    class Creating(Recorded):
        def __call__(self, argv: Sequence[str], stdin: str | None = None) -> str:
            if list(argv[:3]) == ["kind", "create", "cluster"]:
                self.clusters.append("yard")
            return super().__call__(argv, stdin)

    run = Creating("another")
    cluster(run).up()
    assert run.commands[0].startswith("docker version")
    assert run.commands.count(create) == 1
    assert f"kind export kubeconfig --name yard --kubeconfig {state}/kubeconfig" in run.commands
    loads = [command for command in run.commands if command.startswith("kind load image-archive ")]
    assert len(loads) == 1
    assert loads[0].endswith(" --name yard")
    assert f"--kubeconfig={state}/kubeconfig apply --server-side" in (tmp_path / "arguments").read_text()
    applied = yaml.safe_load((tmp_path / "applied.yaml").read_text())
    container = applied["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "localhost/tuneyard-cluster-fake-gpu:0123"
    assert container["args"] == ["-count=8"]
    (node,) = yaml.safe_load(run.inputs[0])["nodes"]
    assert node["extraMounts"] == [
        {"hostPath": f"{state}/artifacts", "containerPath": str(paths.NODE_ARTIFACTS)},
        {"hostPath": f"{state}/cache", "containerPath": str(paths.NODE_CACHE)},
    ]
    again = Creating("yard")
    cluster(again).up()
    assert create not in again.commands


def test_images_and_load(state: Path, tmp_path: Path) -> None:
    run = Recorded("yard")
    assert cluster(run).images() == {"localhost/tuneyard:1": "sha256:aa", "localhost/tuneyard:dev": "sha256:aa"}
    cluster(run).load_image(tmp_path / "image.tar")
    assert run.commands == [
        "docker exec yard-control-plane crictl images -o json",
        f"kind load image-archive {tmp_path}/image.tar --name yard",
    ]


def test_a_cluster_that_is_not_there_says_how_to_get_it(state: Path) -> None:
    with pytest.raises(ClusterError, match="kind cluster yard is not up; bring it up with: make cluster CLUSTER=kind"):
        cluster(Recorded("another")).kubeconfig()
    assert cluster(Recorded("yard")).kubeconfig() == state / "kubeconfig"


def test_down_deletes_the_cluster_and_its_state(state: Path) -> None:
    state.mkdir(parents=True)
    (state / "kubeconfig").touch()
    run = Recorded("yard")
    cluster(run).down()
    assert run.commands == [f"kind delete cluster --name yard --kubeconfig {state}/kubeconfig"]
    assert not state.exists()


def test_a_missing_program_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ClusterError, match="docker is not installed: install Docker and start it, or use CLUSTER=local"
    ):
        kind.run_program(["docker", "version"])


def test_the_forwarded_port_is_read_from_what_kubectl_says() -> None:
    assert kind.forwarded_port("Forwarding from 127.0.0.1:40123 -> 8080\n") == 40123
    assert kind.forwarded_port("error: unable to forward\n") is None
