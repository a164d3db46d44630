"""What a base says of itself is the same from its folder and over the network, where only headers are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.tiny import build_tiny
from tests.unit.store.sources import Source, SourceRemote
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.basefiles import read_folder, read_remote
from tuneyard.systems.artifacts.folder import ArtifactError


def remote_of(files: dict[str, bytes], log: Path) -> SourceRemote:
    return SourceRemote(Source(files, log))


@pytest.fixture
def files() -> dict[str, bytes]:
    folder = build_tiny() / "base"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_of_a_remote_base_only_headers_are_read(files: dict[str, bytes], tmp_path: Path) -> None:
    remote = remote_of(files, tmp_path / "log")
    assert read_remote(remote) == read_folder(build_tiny() / "base")
    weights = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert remote.source.handed_out() < weights / 10 + len(files["config.json"])


def test_of_a_base_in_gguf_nothing_is_read(tmp_path: Path) -> None:
    folder, content = tmp_path / "gguf", {"small.gguf": b"GGUF", "README.md": b"# small"}
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    remote = remote_of(content, tmp_path / "log")
    assert read_remote(remote) == read_folder(folder)
    assert (read_folder(folder).weights, read_folder(folder).size, remote.source.handed_out()) == ("gguf", None, 0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"config.json": None}, Reason.FILES_MISSING),
        ({"config.json": b"[]"}, Reason.INVALID_CONFIG),
        ({"config.json": b"{"}, Reason.INVALID_CONFIG),
        ({"config.json": json.dumps({"a": "x" * (1 << 20)}).encode()}, Reason.INVALID_CONFIG),
        ({"model.safetensors": b"\xff" * 64}, Reason.CORRUPT_WEIGHTS),
        ({"model.safetensors": b""}, Reason.CORRUPT_WEIGHTS),
    ],
)
def test_what_is_no_base_is_refused(
    files: dict[str, bytes], changed: dict[str, bytes | None], reason: Reason, tmp_path: Path
) -> None:
    given = {name: data for name, data in {**files, **changed}.items() if data is not None}
    with pytest.raises(ArtifactError) as caught:
        read_remote(remote_of(given, tmp_path / "log"))
    assert caught.value.reason is reason
