"""What is damaged in the node cache: seen by stamps, or by hashing again; told once, and fetched again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.store.caches import blob, never, overwrite, reason_of
from tests.unit.store.sources import Source, contents, listing, read_all
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts import storefolders
from tuneyard.systems.artifacts.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(contents("one"), tmp_path / "log")


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def store(root: Path, told: list[tuple[str, str]]) -> Store:
    return Store(root, on_corrupt=lambda digest, wrong: told.append((digest, wrong)))


def flip_a_byte(files: Path) -> None:
    path = files / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    overwrite(path, bytes(data))


def unseen_damage(path: Path) -> None:
    """As a disk does it that returns other bytes than were written: no stamp shows it."""
    was = path.stat()
    flip_a_byte(path.parent)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def rename_over(files: Path) -> None:
    (files / "new").write_bytes(b"x" * (files / "adapter_model.safetensors").stat().st_size)
    (files / "new").rename(files / "adapter_model.safetensors")


def link_away(files: Path) -> None:
    (files / "adapter_config.json").unlink()
    (files / "adapter_config.json").symlink_to("/etc/passwd")


def link_a_folder_away(files: Path) -> None:
    (files / "more" / "tokens.txt").unlink()
    (files / "more").rmdir()
    (files / "more").symlink_to("/etc")


def no_manifest(files: Path) -> None:
    (files.parent / "manifest.json").unlink()


def half_a_manifest(files: Path) -> None:
    (files.parent / "manifest.json").write_text((files.parent / "manifest.json").read_text()[:200])


def manifest_of_another(files: Path) -> None:
    manifest = json.loads((files.parent / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (files.parent / "manifest.json").write_text(json.dumps(manifest))


def path_out_of_the_artifact(files: Path) -> None:
    manifest = json.loads((files.parent / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../../etc/passwd"
    (files.parent / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    flip_a_byte: "SHA-256",
    rename_over: "SHA-256",
    link_away: "link",
    link_a_folder_away: "link",
    no_manifest: "manifest",
    half_a_manifest: "manifest",
    manifest_of_another: "another artifact",
    path_out_of_the_artifact: "not the path",
    lambda files: (files / "more" / "tokens.txt").unlink(): "more/tokens.txt is missing",
    lambda files: overwrite(files / "more" / "tokens.txt", b"short"): "5 bytes instead of",
    lambda files: (files / "more" / "evil.py").write_bytes(b"x"): "more/evil.py does not belong",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("used_elsewhere", [False, True])
def test_what_is_corrupt_is_told_and_fetched_again(
    root: Path, source: Source, damage: Callable[[Path], object], used_elsewhere: bool
) -> None:
    told: list[tuple[str, str]] = []
    store = Store(root, on_corrupt=lambda digest, wrong: told.append((digest, wrong)))
    with store.obtain("s", None, source.fetch) as held:
        user = Store(root).find(source.digest) if used_elsewhere else None
    for folder in (held.path, held.path / "more"):
        folder.chmod(0o755)
    witness = held.path.parent / "witness"
    witness.touch()
    damage(held.path)
    with store.obtain("s", None, source.fetch) as again:
        assert read_all(again.path) == source.files
        assert not any(p.is_symlink() for p in again.path.rglob("*"))
        assert witness.exists() is used_elsewhere, "what is used stays in its place"
        assert [digest for digest, _ in told] == [source.digest], "told once"
        assert DAMAGES[damage] in told[0][1]
        assert store.verify(source.digest) is None
    assert source.handed_out() == 2 * source.size
    assert listing(root / "partials") == listing(root / "trash") == []
    if user is not None:
        user.release()
    Store(root).obtain("s", None, never).release()


@pytest.mark.parametrize("used_elsewhere", [False, True])
def test_what_another_source_finds_corrupt_gives_way(
    store: Store, tmp_path: Path, source: Source, told: list[tuple[str, str]], used_elsewhere: bool
) -> None:
    """Its digest is known only when it has come."""
    held = store.obtain("s", None, source.fetch)
    witness = held.path.parent / "witness"
    witness.touch()
    flip_a_byte(held.path)
    if not used_elsewhere:
        held.release()
    mirror = Source(source.files, tmp_path / "other-log")
    with store.obtain("mirror", None, mirror.fetch) as other:
        assert read_all(other.path) == source.files
    assert witness.exists() is used_elsewhere
    assert [digest for digest, _ in told] == [source.digest]


def test_a_touched_file_is_hashed_again_and_kept(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    files = blob(root, source.digest) / "files"
    os.utime(files / "adapter_model.safetensors", ns=(1, 1))
    before = json.loads((files.parent / "manifest.json").read_text())
    store.obtain("s", None, never).release()
    after = json.loads((files.parent / "manifest.json").read_text())
    stamps = {f["path"]: f["checked"]["mtimeNs"] for f in after["files"]}
    assert stamps["adapter_model.safetensors"] == 1 and before != after


def test_verify_finds_what_no_stamp_shows(
    store: Store, root: Path, source: Source, told: list[tuple[str, str]]
) -> None:
    store.obtain("s", None, source.fetch).release()
    unseen_damage(blob(root, source.digest) / "files" / "adapter_model.safetensors")
    with store.obtain("s", None, never):
        wrong = store.verify(source.digest)
        assert wrong is not None and "adapter_model.safetensors" in wrong
        assert len(told) == 1
    with store.obtain("s", None, source.fetch) as held:
        assert read_all(held.path) == source.files
    store.obtain("s", None, never).release()


def hashed_before(root: Path, digest: str, seconds: float) -> None:
    """Move the time when every byte was last hashed."""
    path = blob(root, digest) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "hashedAt": manifest["hashedAt"] - seconds}))


def test_bytes_that_were_hashed_long_ago_are_hashed_again(
    store: Store, root: Path, source: Source, told: list[tuple[str, str]]
) -> None:
    store.obtain("s", None, source.fetch).release()
    unseen_damage(blob(root, source.digest) / "files" / "adapter_model.safetensors")
    with store.obtain("s", None, never, hashed_within=60):
        assert not told, "they were hashed when they came"
    hashed_before(root, source.digest, 3600)
    store.obtain("s", None, never, hashed_within=7200).release()
    with store.obtain("s", None, source.fetch, hashed_within=60) as held:
        assert read_all(held.path) == source.files
    assert [digest for digest, _ in told] == [source.digest]


def test_bytes_are_hashed_once_for_all_who_come(
    store: Store, root: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.obtain("s", None, source.fetch).release()
    hashed_before(root, source.digest, 3600)
    heard: list[int] = []
    for again in (store, Store(root)):
        found = again.find(source.digest, hashed_within=60, going_on=lambda: heard.append(1))
        assert found is not None
        found.release()
    assert len(heard) == len(source.files), "one piece a file, once"


def test_a_clock_that_was_ahead_puts_nothing_off(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    unseen_damage(blob(root, source.digest) / "files" / "adapter_model.safetensors")
    hashed_before(root, source.digest, -3600)
    assert store.find(source.digest, hashed_within=60) is None


def test_a_cache_of_an_older_version_knows_when_its_bytes_came(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    path = blob(root, source.digest) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["hashedAt"]
    path.write_text(json.dumps(manifest))
    store.obtain("s", None, never, hashed_within=60).release()
    path.write_text(json.dumps({**manifest, "madeAt": manifest["madeAt"] - 3600}))
    store.obtain("s", None, never, hashed_within=60).release()
    assert json.loads(path.read_text())["hashedAt"] > manifest["madeAt"]


def test_hashing_ends_when_it_is_told_to(store: Store, root: Path, source: Source) -> None:
    def stop() -> None:
        raise KeyError

    store.obtain("s", None, source.fetch).release()
    hashed_before(root, source.digest, 3600)
    with pytest.raises(KeyError):
        store.find(source.digest, hashed_within=60, going_on=stop)
    assert [e.in_use for e in store.entries()] == [False]
    store.obtain("s", None, never).release()


def test_verify_of_what_is_not_here(store: Store, source: Source) -> None:
    assert reason_of(lambda: store.verify(source.digest))[0] is Reason.ARTIFACT_NOT_FOUND


def test_a_file_renamed_over_while_it_is_hashed_is_not_believed(
    store: Store, root: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.obtain("s", None, source.fetch).release()
    files = blob(root, source.digest) / "files"
    files.chmod(0o755)
    real = storefolders.open_file

    def opened(folder: int, path: str) -> int:
        handle = real(folder, path)
        if path == "adapter_model.safetensors":
            rename_over(files)
        return handle

    with monkeypatch.context() as patched:
        patched.setattr("tuneyard.systems.artifacts.blobs.open_file", opened)
        assert store.verify(source.digest) is None, "the bytes that were read are right"
    with store.obtain("s", None, source.fetch) as held:
        assert read_all(held.path) == source.files
    assert source.handed_out() == 2 * source.size
