"""What an earlier process left of a transfer, damaged since: used where it is right, fetched where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.store.sources import CHUNK, Source, SourceRemote, contents, read_all
from tuneyard.systems.artifacts import download
from tuneyard.systems.artifacts.download import fetch
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.artifacts.remote import listing_key

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def remote(tmp_path: Path) -> SourceRemote:
    return SourceRemote(Source(contents("one"), tmp_path / "log"))


def in_the_tree(remote: SourceRemote, scratch: Path) -> Path:
    return scratch / f"tree-{listing_key(remote, remote.files())}" / WEIGHTS


def whole(remote: SourceRemote, scratch: Path) -> Path:
    return scratch / download._name(remote, next(f for f in remote.files() if f.path == WEIGHTS))


@pytest.mark.parametrize("place", [in_the_tree, whole])
@pytest.mark.parametrize("missing", [-1000, 1, 1000, 5 * CHUNK])
def test_a_file_that_was_whole_and_has_another_length_now_comes_again(
    remote: SourceRemote, tmp_path: Path, place: Callable[[SourceRemote, Path], Path], missing: int
) -> None:
    right = remote.source.files[WEIGHTS]
    left = place(remote, tmp_path / ".out.fetching")
    left.parent.mkdir(parents=True)
    left.write_bytes((right + bytes(1000))[: len(right) - missing])
    found = fetch(remote, tmp_path / "out")
    assert read_all(tmp_path / "out") == remote.source.files
    assert digest_of(tmp_path / "out") == found
    assert remote.source.handed_out() == remote.source.size


def test_what_is_damaged_does_not_keep_a_part_from_being_gone_on_with(remote: SourceRemote, tmp_path: Path) -> None:
    left = whole(remote, tmp_path / ".out.fetching")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    left.with_name(f"{left.name}.part").write_bytes(remote.source.files[WEIGHTS][: 3 * CHUNK])
    fetch(remote, tmp_path / "out")
    assert read_all(tmp_path / "out") == remote.source.files
    assert remote.source.handed_out() == remote.source.size - 3 * CHUNK
