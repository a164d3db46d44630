"""The node cache as one process sees it: fetched once, held, remembered, and never led astray by a link."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.unit.store.caches import blob, never, reason_of
from tests.unit.store.sources import Source, contents, folder_digest, listing, read_all
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts import storefolders
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.store import Held, OtherBytesError, Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(contents("one"), tmp_path / "log")


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def test_what_is_obtained_is_the_source_read_only_and_alone(store: Store, root: Path, source: Source) -> None:
    with store.obtain("s", None, source.fetch, size=source.size) as held:
        assert (held.digest, held.size_bytes) == (source.digest, source.size)
        assert held.path == blob(root, source.digest) / "files"
        assert read_all(held.path) == source.files
        modes = {stat.S_IMODE(p.stat().st_mode) for p in held.path.rglob("*") if p.is_file()}
        assert modes == {0o444}
        assert {stat.S_IMODE(p.stat().st_mode) for p in (held.path, held.path / "more")} == {0o555}
    assert listing(root / "partials") == listing(root / "trash") == []


def test_a_second_pod_downloads_nothing_pinned_or_not(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    for again in (store, Store(root)):
        for pinned in (None, source.digest):
            with again.obtain("s", pinned, never, size=never_asked) as held:
                assert held.digest == source.digest
        with again.obtain("another source of the same", source.digest, never) as held:
            assert read_all(held.path) == source.files


def never_asked() -> int:
    raise AssertionError("the size of what is here is not asked for")


def test_find_tells_what_is_here(store: Store, source: Source) -> None:
    assert store.find(source.digest) is None
    store.obtain("s", None, source.fetch).release()
    found = store.find(source.digest)
    assert isinstance(found, Held)
    with found:
        assert [(e.digest, e.in_use) for e in store.entries()] == [(source.digest, True)]
    assert [(e.digest, e.in_use) for e in store.entries()] == [(source.digest, False)]
    found.release()


def test_a_write_within_the_same_tick_of_the_clock_is_seen(store: Store, source: Source) -> None:
    """Whatever the file system's clock ticks by: the stamp is of another time than any later write's."""
    with store.obtain("s", None, source.fetch) as held:
        made = json.loads((held.path.parent / "manifest.json").read_text())["madeAt"]
        times = {p.stat().st_mtime for p in held.path.rglob("*") if p.is_file()}
    assert all(made - 60 < then < made - 5 for then in times)


def test_two_sources_that_finish_together_share_them(
    store: Store, root: Path, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finishes between the other's look whether the artifact is here and its rename."""
    mirror = Source(source.files, tmp_path / "other-log")
    real, others = storefolders.Folders.move, list[Held]()

    def move(folders: storefolders.Folders, area: str, name: str, to_area: str, to_name: str) -> None:
        if to_area == "blobs" and not others:
            monkeypatch.undo()
            others.append(Store(root).obtain("mirror", None, mirror.fetch))
        real(folders, area, name, to_area, to_name)

    monkeypatch.setattr(storefolders.Folders, "move", move)
    with store.obtain("s", None, source.fetch) as held, others[0] as other:
        assert held.path == other.path
        assert read_all(held.path) == source.files
    assert listing(root / "partials") == listing(root / "trash") == []


def test_two_sources_of_the_same_bytes_share_them(store: Store, tmp_path: Path, source: Source) -> None:
    mirror = Source(source.files, tmp_path / "other-log")
    with store.obtain("s", None, source.fetch) as one, store.obtain("mirror", None, mirror.fetch) as other:
        assert one.path == other.path
    assert len(store.entries()) == 1


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(store: Store, root: Path, source: Source) -> None:
    pinned = folder_digest(contents("another")).digest
    with pytest.raises(OtherBytesError) as caught:
        store.obtain("s", pinned, source.fetch)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert caught.value.found == source.digest
    assert pinned in str(caught.value) and source.digest in str(caught.value)
    assert store.entries() == [] and listing(root / "partials") == []


def test_an_interrupted_fetch_goes_on_where_it_was(store: Store, source: Source) -> None:
    chunks = iter(range(3))

    def broken() -> None:
        if next(chunks, None) is None:
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, "the connection broke")

    failing = Source(source.files, source.log, broken)
    assert reason_of(lambda: store.obtain("s", None, failing.fetch))[0] is Reason.SOURCE_UNREACHABLE
    with store.obtain("s", None, source.fetch) as held:
        assert read_all(held.path) == source.files
    assert source.handed_out() == source.size


def test_what_a_download_keeps_beside_its_files_goes(store: Store, root: Path, source: Source) -> None:
    def fetch(target: Path) -> FolderDigest:
        (target.parent / ".state").mkdir()
        found = source.fetch(target)
        (target / "left.part").write_bytes(b"x")
        (target / "empty" / "folder").mkdir(parents=True)
        return found

    with store.obtain("s", None, fetch) as held:
        assert read_all(held.path) == source.files
        assert listing(held.path.parent) == ["files", "manifest.json", "marks", "used"]
        assert listing(held.path) == ["adapter_config.json", "adapter_model.safetensors", "more"]


@pytest.mark.parametrize("lie", ["another digest", "a file too few", "a file cut"])
def test_files_that_are_not_what_is_said_of_them_get_no_place(
    store: Store, root: Path, source: Source, lie: str
) -> None:
    def fetch(target: Path) -> FolderDigest:
        found = source.fetch(target)
        if lie == "another digest":
            return FolderDigest("sha256:" + "0" * 64, found.size_bytes, found.files)
        if lie == "a file too few":
            (target / "more" / "tokens.txt").unlink()
        else:
            (target / "more" / "tokens.txt").write_bytes(b"short")
        return found

    assert reason_of(lambda: store.obtain("s", None, fetch))[0] is Reason.ARTIFACT_UNREADABLE
    assert store.entries() == [] and listing(root / "partials") == []
    with store.obtain("s", None, source.fetch) as held:
        assert read_all(held.path) == source.files


def test_a_link_that_a_fetch_leaves_is_refused(store: Store, root: Path, source: Source) -> None:
    def fetch(target: Path) -> FolderDigest:
        found = source.fetch(target)
        (target / "adapter_config.json").unlink()
        (target / "adapter_config.json").symlink_to("/etc/passwd")
        return found

    mode = Path("/etc/passwd").stat().st_mode
    assert reason_of(lambda: store.obtain("s", None, fetch))[0] is Reason.UNSAFE_PATH
    assert store.entries() == [] and listing(root / "partials") == []
    assert Path("/etc/passwd").stat().st_mode == mode


def test_marks_stay_with_the_bytes(store: Store, root: Path, source: Source) -> None:
    assert store.marked(source.digest, "finite") is None
    assert reason_of(lambda: store.mark(source.digest, "finite", "1"))[0] is Reason.ARTIFACT_NOT_FOUND
    with store.obtain("s", None, source.fetch):
        store.mark(source.digest, "finite", "1")
        store.mark(source.digest, "finite", "2")
        store.mark(source.digest, "facts-1", '{"ä": 1}')
    assert Store(root).marked(source.digest, "finite") == "2"
    assert store.marked(source.digest, "facts-1") == '{"ä": 1}'
    assert store.marked(source.digest, "other") is None
    (blob(root, source.digest) / "manifest.json").unlink()
    store.obtain("s", None, source.fetch).release()
    assert store.marked(source.digest, "finite") is None


@pytest.mark.parametrize("name", ["../used", "", ".x", "A", "a/b", "x" * 65])
def test_marks_are_named_plainly(store: Store, source: Source, name: str) -> None:
    with store.obtain("s", None, source.fetch), pytest.raises(ValueError, match="name of a mark"):
        store.mark(source.digest, name, "1")


@pytest.mark.parametrize("digest", ["sha256:../../etc", "../x", "sha256:" + "A" * 64, ""])
def test_digests_are_never_paths(store: Store, digest: str) -> None:
    assert reason_of(lambda: store.find(digest))[0] is Reason.INVALID_SPEC


@pytest.mark.parametrize("area", ["blobs", "partials", "sources", "locks", "trash"])
def test_a_link_in_place_of_a_folder_is_not_followed(root: Path, tmp_path: Path, source: Source, area: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ("a" * 64)).mkdir(parents=True)
    (elsewhere / ("a" * 64) / "file").write_bytes(b"somebody's")
    root.mkdir()
    (root / area).symlink_to(elsewhere)
    reason, message = reason_of(lambda: Store(root).obtain("s", None, source.fetch))
    assert reason is Reason.UNSAFE_PATH and area in message
    assert read_all(elsewhere) == {f"{'a' * 64}/file": b"somebody's"}


def test_what_is_trashed_is_deleted_without_following_links(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"somebody's")
    trash = root / "trash"
    (trash / "folder").mkdir(parents=True)
    (trash / "folder" / "link").symlink_to(elsewhere)
    (trash / "link").symlink_to(elsewhere)
    Store(root)
    assert listing(trash) == []
    assert read_all(elsewhere) == {"file": b"somebody's"}


def test_what_a_newer_version_added_is_ignored_and_kept(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    path = blob(root, source.digest) / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["version"] == "1.0"
    path.write_text(json.dumps({**manifest, "version": "1.7", "signature": "x"}))
    os.utime(path.parent / "files" / "adapter_config.json", ns=(1, 1))
    store.obtain("s", None, never).release()
    assert json.loads(path.read_text())["signature"] == "x"


def test_another_major_version_is_refused_and_left_alone(store: Store, root: Path, source: Source) -> None:
    store.obtain("s", None, source.fetch).release()
    path = blob(root, source.digest) / "manifest.json"
    text = json.dumps({"version": "2.0", "chunks": []})
    path.write_text(text)
    reason, message = reason_of(lambda: store.obtain("s", None, never))
    assert reason is Reason.CACHE_UNUSABLE and "format 2" in message and "upgrade" in message
    assert path.read_text() == text


def test_errors_of_a_fetch_are_its_own(store: Store) -> None:
    def fetch(target: Path) -> FolderDigest:
        raise ConnectionResetError("by peer")

    with pytest.raises(ConnectionResetError):
        store.obtain("s", None, fetch)


def test_what_holds_no_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reason, message = reason_of(lambda: Store(tmp_path / "file" / "cache"))
    assert reason is Reason.CACHE_UNUSABLE and "writable" in message
