"""Locks of the node cache: between threads too, waited for with words, and refused where they are none."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.store.sources import Source, contents, listing, read_all
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts import storelocks
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.store import Store
from tuneyard.systems.artifacts.storefolders import Folders
from tuneyard.systems.artifacts.storelocks import Locks


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(Folders(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(contents("one"), tmp_path / "log")


def test_one_alone_or_many_together(locks: Locks) -> None:
    first, second = locks.shared("a"), locks.shared("a")
    assert locks.attempt("a") is None
    first.release()
    first.release()
    assert locks.attempt("a") is None
    second.release()
    alone = locks.attempt("a")
    assert alone is not None
    with alone, locks.alone("b"):
        assert locks.attempt("a") is None
    with locks.alone("a"):
        pass


def test_a_lock_of_a_file_that_is_gone_is_none(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a lock's file and locking it, the one who had it may have removed it."""
    real, others = fcntl.flock, list[storelocks.Lock]()

    def flock(handle: int, operation: int) -> None:
        if not others:
            monkeypatch.undo()
            locks.forget("a")
            others.append(locks.alone("a"))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert locks.attempt("a") is None, "another one has the lock of that name"
    others[0].release()
    with locks.alone("a"):
        assert locks.attempt("a") is None


def test_a_link_in_place_of_a_lock_is_refused(locks: Locks, tmp_path: Path) -> None:
    locks.alone("a").release()
    (tmp_path / "cache" / "locks" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        locks.alone("b")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_volume_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ArtifactError, match="no working file locks") as caught:
        Store(tmp_path / "cache")
    assert caught.value.reason is Reason.CACHE_UNUSABLE


def test_a_volume_whose_locks_exclude_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)
    with pytest.raises(ArtifactError, match="two got the same lock"):
        Store(tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "options", "refused"),
    [
        ("nfs", "rw,vers=3,nolock,local_lock=none", "nolock"),
        ("nfs4", "rw,vers=4.2,local_lock=flock,addr=10.0.0.1", "local_lock=flock"),
        ("nfs", "rw,local_lock=all", "local_lock=all"),
        ("nfs4", "rw,vers=4.2,local_lock=none", None),
        ("nfs", "rw,local_lock=posix", None),
        ("ext4", "rw,nolock", None),
    ],
)
def test_nfs_that_locks_within_a_node_only(tmp_path: Path, kind: str, options: str, refused: str | None) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - nfs /dev/root rw,nolock\n"
        f"40 22 0:52 / /cache rw,relatime shared:9 master:2 - {kind} server:/x {options}\n"
    )
    assert storelocks.local_only(table, os.makedev(0, 52)) == refused


def test_the_proof_leaves_nothing(locks: Locks, tmp_path: Path) -> None:
    locks.prove()
    assert listing(tmp_path / "cache" / "locks") == []


def test_who_waits_says_so_and_downloads_nothing(tmp_path: Path, source: Source) -> None:
    """Threads of one process; the first goes on only when the second has said that it waits."""
    said: list[tuple[int, int | None]] = []
    halfway, heard = threading.Event(), threading.Event()

    def before_chunk() -> None:
        if source.handed_out() > 0:
            halfway.set()
            assert heard.wait(20)

    def on_wait(done: int, total: int | None) -> None:
        said.append((done, total))
        heard.set()

    def never(target: Path) -> FolderDigest:
        raise AssertionError("it is fetched already")

    slow = Source(source.files, source.log, before_chunk)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(Store(tmp_path / "cache").obtain, "s", None, slow.fetch, size=slow.size)
        assert halfway.wait(20)
        second = pool.submit(Store(tmp_path / "cache").obtain, "s", None, never, on_wait=on_wait)
        with first.result() as one, second.result() as other:
            assert one.path == other.path
            assert read_all(other.path) == source.files
    assert source.handed_out() == source.size
    assert said[0][0] > 0 and said[0][1] == source.size


def test_other_sources_of_a_pinned_digest_wait_too(tmp_path: Path, source: Source) -> None:
    halfway, heard = threading.Event(), threading.Event()

    def before_chunk() -> None:
        halfway.set()
        assert heard.wait(20)

    slow = Source(source.files, source.log, before_chunk)
    mirror = Source(source.files, tmp_path / "mirror")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(Store(tmp_path / "cache").obtain, "s", source.digest, slow.fetch)
        assert halfway.wait(20)
        second = pool.submit(
            Store(tmp_path / "cache").obtain, "m", source.digest, mirror.fetch, on_wait=lambda *_: heard.set()
        )
        first.result().release()
        second.result().release()
    assert mirror.handed_out() == 0


def test_waiting_can_be_given_up(tmp_path: Path, source: Source) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(done: int, total: int | None) -> None:
        raise GivenUpError

    store = Store(tmp_path / "cache")

    def fetch(target: Path) -> FolderDigest:
        with pytest.raises(GivenUpError):
            store.obtain("s", None, source.fetch, on_wait=give_up)
        return source.fetch(target)

    with store.obtain("s", None, fetch) as held:
        assert read_all(held.path) == source.files
