"""Room in the node cache: a limit, the least recently used first, reservations, and what is cleared at the start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.unit.store.sources import CHUNK, Source, contents, listing, read_all
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest
from tuneyard.systems.artifacts.room import NoRoomError
from tuneyard.systems.artifacts.store import Held, Store

EACH = 9 * CHUNK
"""What an artifact of these tests takes on the disk, with its manifest."""
DAY = 86400


class Cache:
    """A cache for so many artifacts, and sources by name."""

    def __init__(self, folder: Path, artifacts: float) -> None:
        self.folder = folder
        self.root = folder / "cache"
        self.store = Store(self.root, int(artifacts * EACH), reserve=0)

    def source(self, name: str) -> Source:
        return Source(contents(name), self.folder / f"{name}.log")

    def obtain(self, name: str) -> Held:
        source = self.source(name)
        return self.store.obtain(name, None, source.fetch, size=source.size)

    def use(self, name: str, ago: float) -> None:
        """Obtain an artifact, and have that been some seconds ago."""
        held = self.obtain(name)
        held.release()
        then = time.time() - ago
        os.utime(held.path.parent / "used", (then, then))

    def names(self) -> set[str]:
        """Which of a, b, c, d, e are here."""
        here = {entry.digest for entry in self.store.entries()}
        return {name for name in "abcde" if self.source(name).digest in here}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path, 3.5)


def test_the_least_recently_used_goes(cache: Cache) -> None:
    for ago, name in enumerate("cba"):
        cache.use(name, 100 - ago)
    assert [e.digest for e in cache.store.entries()] == [cache.source(n).digest for n in "abc"]
    cache.obtain("c").release()  # so that it is the youngest
    cache.obtain("d").release()
    assert cache.names() == {"a", "c", "d"}
    assert listing(cache.root / "trash") == []


def test_what_is_held_never_goes(cache: Cache) -> None:
    for ago, name in enumerate("abc"):
        cache.use(name, 100 - ago)
    with cache.obtain("a") as held:
        for name in "de":
            cache.use(name, 50)
        assert cache.names() == {"a", "d", "e"}
        assert read_all(held.path) == cache.source("a").files


def test_where_all_is_held_the_error_names_it(cache: Cache) -> None:
    with cache.obtain("a") as a, cache.obtain("b"), cache.obtain("c"):
        with pytest.raises(NoRoomError) as caught:
            cache.obtain("d")
        assert caught.value.reason is Reason.DISK_FULL
        assert caught.value.needed == cache.source("d").size > caught.value.free
        assert f"blobs/{a.digest.removeprefix('sha256:')} 36.0 KiB" in str(caught.value)
        assert cache.source("d").handed_out() == 0
        assert cache.names() == {"a", "b", "c"}
    cache.obtain("d").release()
    assert "d" in cache.names()


def test_an_artifact_larger_than_the_cache_throws_nothing_out(cache: Cache) -> None:
    cache.use("a", 1)
    source = Source(contents("large", 4 * EACH), cache.folder / "large")
    with pytest.raises(NoRoomError):
        cache.store.obtain("large", None, source.fetch, size=source.size)
    assert cache.names() == {"a"}


def test_room_is_made_after_a_download_of_unknown_size(cache: Cache) -> None:
    for ago, name in enumerate("abc"):
        cache.use(name, 100 - ago)
    cache.store.obtain("d", None, cache.source("d").fetch, size=lambda: None).release()
    assert cache.names() == {"b", "c", "d"}


def test_an_artifact_that_turns_out_too_large_is_not_kept(cache: Cache) -> None:
    source = Source(contents("large", 4 * EACH), cache.folder / "large")
    with cache.obtain("a"), pytest.raises(NoRoomError):
        cache.store.obtain("large", None, source.fetch)
    assert cache.names() == {"a"} and len(cache.store.entries()) == 1
    assert listing(cache.root / "partials") == listing(cache.root / "trash") == []


def test_two_downloads_do_not_count_on_the_same_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1.5)

    def fetch(target: Path) -> FolderDigest:
        with pytest.raises(NoRoomError, match="partials/"):
            cache.obtain("b")
        return cache.source("a").fetch(target)

    cache.store.obtain("a", None, fetch, size=cache.source("a").size).release()
    assert cache.names() == {"a"}


def test_what_is_here_of_a_broken_download_counts_once(tmp_path: Path) -> None:
    """Neither is a second copy reserved beside it, nor what its dead process had reserved."""
    source = Source(contents("a", 50 * CHUNK), tmp_path / "log")
    store = Store(tmp_path / "cache", 55 * CHUNK, reserve=0)
    chunks = iter(range(30))

    def broken() -> None:
        if next(chunks, None) is None:
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, "the connection broke")

    with pytest.raises(ArtifactError, match="broke"):
        store.obtain("a", None, Source(source.files, source.log, broken).fetch, size=source.size)
    store.obtain("a", None, source.fetch, size=source.size).release()
    assert source.handed_out() == source.size


def test_a_broken_download_goes_where_room_is_needed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1.2)

    def broken(target: Path) -> FolderDigest:
        cache.source("a").fetch(target)
        raise ArtifactError(Reason.SOURCE_UNREACHABLE, "the connection broke")

    with pytest.raises(ArtifactError, match="broke"):
        cache.store.obtain("a", None, broken, size=cache.source("a").size)
    cache.obtain("b").release()
    assert cache.names() == {"b"} and listing(cache.root / "partials") == []


def test_the_reserve_of_the_disk_is_left(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    store = Store(tmp_path / "cache", reserve=free.f_blocks * free.f_frsize)
    source = Source(contents("one"), tmp_path / "log")
    with pytest.raises(NoRoomError, match="without a limit"):
        store.obtain("s", None, source.fetch, size=source.size)


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.mark.parametrize(("days", "kept"), [(6, True), (8, False)])
def test_downloads_that_nobody_comes_back_for_are_cleared(cache: Cache, days: float, kept: bool) -> None:
    def broken(target: Path) -> FolderDigest:
        cache.source("a").fetch(target)
        raise ArtifactError(Reason.SOURCE_UNREACHABLE, "the connection broke")

    with pytest.raises(ArtifactError):
        cache.store.obtain("a", None, broken)
    (partial,) = (cache.root / "partials").iterdir()
    age(partial / "used", days)
    Store(cache.root)
    assert partial.exists() is kept


def test_a_download_under_way_is_never_cleared(cache: Cache) -> None:
    def fetch(target: Path) -> FolderDigest:
        age(target.parent / "used", 100)
        Store(cache.root)
        return cache.source("a").fetch(target)

    cache.store.obtain("a", None, fetch).release()
    assert cache.names() == {"a"}


def test_lock_files_and_sources_of_what_is_gone_are_cleared(cache: Cache) -> None:
    cache.obtain("a").release()
    with cache.obtain("b"):
        blob = cache.source("a").digest.removeprefix("sha256:")
        for area in ("locks", "sources"):
            for path in (cache.root / area).iterdir():
                age(path, 31)
        cache.obtain("b").release()  # its source is in use
        Store(cache.root)
        kept = {n for n in listing(cache.root / "locks") if n != "room"}
        assert kept == {f"blob-{blob}", f"blob-{cache.source('b').digest.removeprefix('sha256:')}"}
        assert len(listing(cache.root / "sources")) == 1
        assert [e.in_use for e in cache.store.entries()] == [True, False]
