"""The node cache as one process sees it: fetched once, held, remembered, healed, and never led astray by a link."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

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
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def store(root: Path, told: list[tuple[str, str]]) -> Store:
    return Store(root, on_corrupt=lambda digest, wrong: told.append((digest, wrong)))


def never(target: Path) -> FolderDigest:
    raise AssertionError("nothing is to be fetched")


def blob(root: Path, digest: str) -> Path:
    return root / "blobs" / digest.removeprefix("sha256:")


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def reason_of(call: Callable[[], object]) -> tuple[Reason, str]:
    with pytest.raises(ArtifactError) as caught:
        call()
    return caught.value.reason, str(caught.value)


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


def flip_a_byte(files: Path) -> None:
    path = files / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    overwrite(path, bytes(data))


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
    path = blob(root, source.digest) / "files" / "adapter_model.safetensors"
    was = path.stat()
    flip_a_byte(path.parent)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    with store.obtain("s", None, never):  # as a disk that lies would do it
        wrong = store.verify(source.digest)
        assert wrong is not None and "adapter_model.safetensors" in wrong
        assert len(told) == 1
    with store.obtain("s", None, source.fetch) as held:
        assert read_all(held.path) == source.files
    store.obtain("s", None, never).release()


def unseen_damage(path: Path) -> None:
    """As a disk does it that returns other bytes than were written: no stamp shows it."""
    was = path.stat()
    flip_a_byte(path.parent)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


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
