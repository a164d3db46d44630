"""An artifact that one process holds, damaged and mended by another that is killed in the middle: who comes next gets
the right bytes, whether he knows their digest or not.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.store.sources import Source, SourceRemote, contents, listing, read_all
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.documents import Transfer
from tuneyard.api.sources import S3Source
from tuneyard.api.sources import Source as ApiSource
from tuneyard.systems.artifacts import blobs
from tuneyard.systems.artifacts.store import Held, Store
from tuneyard.systems.artifacts.storefolders import replace_file

WHEREVER = ApiSource(s3=S3Source(uri="s3://models/acme"))


class Killed(BaseException):
    """The process ends here: nothing of it is cleared up."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source(contents("one"), tmp_path / "log")
    monkeypatch.setattr("tuneyard.agent.obtaining.remote_of", lambda *_: SourceRemote(source))
    return source


def obtain(root: Path, pinned: str | None = None) -> Held:
    def told(_: Transfer) -> None:
        """Nobody listens."""

    return Obtainer(Store(root), lambda _: pytest.fail("there are no credentials")).obtain(WHEREVER, pinned, told)


def damage(held: Held) -> None:
    path = held.path / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)


def killed_in_mending(root: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A process that fetches again what is damaged, and dies when the first of its files has its place."""

    def replace(*args: object) -> None:
        replace_file(*args)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("tuneyard.systems.artifacts.blobs.replace_file", replace)
        if not links:
            patched.setattr(os, "link", no_links)
        with pytest.raises(Killed):
            obtain(root)


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "as on the file systems of some clouds")


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_who_comes_after_a_mending_that_was_killed(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, pinned: bool, links: bool
) -> None:
    root = tmp_path / "cache"
    user = obtain(root)
    damage(user)
    killed_in_mending(root, monkeypatch, links)
    for _ in range(3):
        with obtain(root, source.digest if pinned else None) as held:
            assert held.digest == source.digest
            assert held.path == user.path, "what is used stays in its place"
            assert read_all(held.path) == source.files
    assert source.handed_out() == (2 if links else 3) * source.size, "what has come is gone on with, where that is sure"
    assert Store(root).verify(source.digest) is None
    assert listing(root / "partials") == listing(root / "trash") == []


def cut(files: Path) -> None:
    path = files / "adapter_config.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(files: Path) -> None:
    path = files / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")


def take_one(files: Path) -> None:
    (files / "adapter_config.json").unlink()


def add_one(files: Path) -> None:
    (files / "evil.py").write_bytes(b"x")


@pytest.mark.parametrize("harm", [cut, lengthen, take_one, add_one])
@pytest.mark.parametrize("sealed", [False, True])
def test_whole_files_without_a_place_are_held_against_the_listing(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], sealed: bool
) -> None:
    """They were whole when the process died that fetched them; what is there now is another matter."""
    root = tmp_path / "cache"

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(blobs.Blobs, "place" if sealed else "seal", die)
        with pytest.raises(Killed):
            obtain(root)
    [partial] = (root / "partials").iterdir()
    files = partial / "files"
    files.chmod(0o755)
    harm(files)
    with obtain(root) as held:
        assert held.digest == source.digest
        assert read_all(held.path) == source.files


def test_whole_files_without_a_place_are_not_fetched_again(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(blobs.Blobs, "seal", die)
        with pytest.raises(Killed):
            obtain(tmp_path / "cache")
    with obtain(tmp_path / "cache") as held:
        assert read_all(held.path) == source.files
    assert source.handed_out() == source.size


def test_a_manifest_that_names_no_artifact_holds_nobody_up(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"

    def die(*_: object) -> None:
        raise Killed

    for text in ("[]", "{}", '{"digest": null}', json.dumps({"digest": source.digest})):
        with monkeypatch.context() as patched:
            patched.setattr(blobs.Blobs, "place", die)
            with pytest.raises(Killed):
                obtain(root)
        [partial] = (root / "partials").iterdir()
        (partial / "manifest.json").write_text(text)
        with obtain(root) as held:
            assert read_all(held.path) == source.files
        for entry in (root / "blobs").iterdir():
            (entry / "manifest.json").unlink()
