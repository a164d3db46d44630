"""A layer is the same bytes for the same content, and built once for a key."""

import hashlib
import os
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from cluster.layers import Layer, LayerWriter, cached
from cluster.progress import Progress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_tree(folder: Path, moment: int, names: list[str]) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in names:
        path = folder / name
        path.write_text(f"content of {name}")
        os.utime(path, (moment, moment))
    (folder / "program").chmod(0o4755)
    (folder / "link").symlink_to("sub/b")
    os.mkfifo(folder / "pipe")
    return folder


def layer_of(tree: Path, key: str, *, empty_folders: bool = False) -> Layer:
    def write(layer: LayerWriter) -> dict[str, str]:
        layer.tree(PurePosixPath("opt/x"), tree, lambda path: path.name != "unwanted", empty_folders=empty_folders)
        layer.content(PurePosixPath("usr/bin/run"), b"#!/bin/sh\n", 0o755)
        return {"learnt": "something"}

    return cached("sample", key, write, Progress())


def test_same_content_made_at_other_times_in_other_order_is_the_same_layer(tmp_path: Path) -> None:
    names = ["program", "sub/a", "sub/b", "unwanted"]
    first = layer_of(make_tree(tmp_path / "1", 1_000_000_000, names), "k1")
    second = layer_of(make_tree(tmp_path / "2", 1_700_000_000, names[::-1]), "k2")

    assert first.digest == second.digest
    assert first.path != second.path
    data = first.path.read_bytes()
    assert first.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert first.size == len(data)
    assert first.facts == {"learnt": "something"}


def test_entries_are_roots_without_set_id_bits_and_without_special_files(tmp_path: Path) -> None:
    layer = layer_of(make_tree(tmp_path / "1", 0, ["program", "sub/a", "sub/b", "unwanted"]), "k")

    with tarfile.open(layer.path) as tar:
        members = {member.name: member for member in tar}
    assert list(members) == [
        *("opt", "opt/x", "opt/x/link", "opt/x/program", "opt/x/sub", "opt/x/sub/a", "opt/x/sub/b"),
        *("usr", "usr/bin", "usr/bin/run"),
    ]
    assert members["opt/x/program"].mode == 0o755
    assert members["opt/x/link"].linkname == "sub/b"
    assert members["usr/bin/run"].mode == 0o755
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 1577836800)}


def test_empty_folders_come_along_when_asked_for(tmp_path: Path) -> None:
    layer = layer_of(make_tree(tmp_path / "1", 0, ["program", "sub/b"]), "k", empty_folders=True)

    with tarfile.open(layer.path) as tar:
        assert tar.getmember("opt/x/empty").isdir()


def test_a_key_is_built_once(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "1", 0, ["program", "sub/b"])
    first = layer_of(tree, "k")
    (tree / "program").write_text("changed, though the key says it is not")

    assert layer_of(tree, "k") == first


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds(tmp_path: Path, cache: Path) -> None:
    def write(_layer: LayerWriter) -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached("sample", "k", write, Progress())

    assert list((cache / "layers").iterdir()) == []
    assert layer_of(make_tree(tmp_path / "1", 0, ["program", "sub/b"]), "k").path.exists()


def test_a_layer_without_its_description_is_built_again(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "1", 0, ["program", "sub/b"])
    first = layer_of(tree, "k")
    first.path.with_suffix(".json").unlink()

    assert layer_of(tree, "k") == first


def test_old_layers_of_a_name_go_and_used_ones_stay(tmp_path: Path, cache: Path) -> None:
    tree = make_tree(tmp_path / "1", 0, ["program", "sub/b"])
    other = cached("sample-other", "k", lambda layer: layer.folder(PurePosixPath("a")), Progress())
    for number in range(4):
        layer_of(tree, f"k{number}")
        described = cache / "layers" / f"sample-k{number}.json"
        os.utime(described, (number, number))
    layer_of(tree, "k0")  # used again

    layer_of(tree, "k4")

    kept = sorted(path.stem for path in (cache / "layers").glob("sample-k?.tar"))
    assert kept == ["sample-k0", "sample-k2", "sample-k3", "sample-k4"]
    assert other.path.exists()
