"""The small pure parts: names, images, manifests, ports, cgroups."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster import __main__ as commands
from cluster import addons, paths, provider, scratch_image
from cluster.errors import ClusterError
from cluster.kubectl import service_port
from cluster.local import cgroups
from cluster.progress import Progress


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "probe-server-0123abcd" / "probe-server"
    file.parent.mkdir()
    file.write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00" + b"code")
    return file


@pytest.mark.parametrize("name", ["a", "tuneyard", "ci-42", "a" * 32])
def test_cluster_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEYARD_CLUSTER", name)
    assert paths.cluster_name() == name


@pytest.mark.parametrize("name", ["../etc", "A", "-a", "a-", "a b", "a" * 33, "artifacts"])
def test_what_is_no_cluster_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEYARD_CLUSTER", name)
    with pytest.raises(ClusterError, match="is no cluster name"):
        paths.cluster_name()


def test_an_unknown_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "swarm")
    with pytest.raises(ClusterError, match="CLUSTER='swarm' is no provider: use CLUSTER=local"):
        provider.open_provider()


def test_an_image_of_one_program_is_whole_and_the_same_every_time(program: Path) -> None:
    name = addons.image_name(program)
    assert name == "localhost/tuneyard-cluster-probe-server:0123abcd"
    first, second = io.BytesIO(), io.BytesIO()
    scratch_image.write_archive(first, name, program)
    scratch_image.write_archive(second, name, program)
    assert first.getvalue() == second.getvalue()
    first.seek(0)
    with tarfile.open(fileobj=first) as archive:
        files = {entry: _content(archive, entry) for entry in archive.getnames()}
    (manifest,) = json.loads(files["manifest.json"])
    config, layer = json.loads(files[manifest["Config"]]), files[manifest["Layers"][0]]
    assert manifest["RepoTags"] == [name]
    assert manifest["Config"] == hashlib.sha256(files[manifest["Config"]]).hexdigest() + ".json"
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert config["config"]["Entrypoint"] == ["/probe-server"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as inner:
        assert inner.getmember("probe-server").mode == 0o755
        assert _content(inner, "probe-server") == program.read_bytes()


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def test_manifests_are_complete_and_never_pull() -> None:
    values = {
        "CLUSTER_DOMAIN": "cluster.local",
        "DNS_ADDRESS": "10.96.0.10",
        "COREDNS_IMAGE": "localhost/dns:1",
        "FAKE_GPU_IMAGE": "localhost/gpu:1",
        "FAKE_GPUS": "4",
    }
    objects = [one for one in yaml.safe_load_all(addons.render(("node", "coredns", "fake-gpu"), values)) if one]
    assert {one["kind"] for one in objects} >= {"ClusterRoleBinding", "Deployment", "DaemonSet", "Service", "ConfigMap"}
    pods = [one["spec"]["template"]["spec"] for one in objects if one["kind"] in ("Deployment", "DaemonSet")]
    containers = [container for pod in pods for container in pod["containers"]]
    assert [container["imagePullPolicy"] for container in containers] == ["Never", "Never"]
    assert containers[1]["args"] == ["-count=4"]


def test_the_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNEYARD_FAKE_GPUS", raising=False)
    assert addons.fake_gpus() == 8
    monkeypatch.setenv("TUNEYARD_FAKE_GPUS", "2")
    assert addons.fake_gpus() == 2
    monkeypatch.setenv("TUNEYARD_FAKE_GPUS", "two")
    with pytest.raises(ClusterError, match="TUNEYARD_FAKE_GPUS='two' is no number"):
        addons.fake_gpus()


def _service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": "s"}, "spec": {"clusterIP": "10.96.1.2", **spec}}


def test_service_port() -> None:
    assert service_port(_service(ports=[{"port": 80}, {"port": 443}]), 443) == "10.96.1.2:443"
    with pytest.raises(ClusterError, match="n/s has no port 81; it has 80"):
        service_port(_service(ports=[{"port": 80}]), 81)
    with pytest.raises(ClusterError, match="n/s is headless"):
        service_port(_service(ports=[{"port": 80}], clusterIP="None"), 80)


def test_cgroup_hierarchies_of_both_versions() -> None:
    mounts = (
        "proc /proc proc rw 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    assert cgroups.hierarchies(mounts) == [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/unified")]


def test_progress_says_how_long_and_what_failed() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output))
    with progress.step("boil water"):
        pass
    with pytest.raises(ZeroDivisionError), progress.step("divide"):
        raise ZeroDivisionError
    progress.note("tea [hot]")
    told = re.sub(r"\d+\.\d", "0.0", output.getvalue()).splitlines()
    assert told == ["  boil water: 0.0 s", "  failed: divide (0.0 s)", "  tea [hot]"]


def test_errors_are_one_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER", "swarm")
    assert commands.main(["status"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: CLUSTER='swarm' is no provider")
    monkeypatch.setenv("CLUSTER", "kind")
    assert commands.main(["stop", "kubelet"]) == 1
    assert "works on the local provider only" in capsys.readouterr().err
