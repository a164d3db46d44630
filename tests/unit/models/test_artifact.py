"""The cache of built models: complete or not there, built once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.artifact import cache_root, cached, digest, key_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    return tmp_path


def build(folder: Path) -> None:
    (folder / "file").write_text("done")


def test_an_entry_is_built_once() -> None:
    calls: list[Path] = []

    def count(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    for _ in range(2):
        assert (cached("thing", "k1", count) / "file").read_text() == "done"
    assert len(calls) == 1


def test_a_failed_build_leaves_no_entry_and_the_next_one_clears_up() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached("thing", "k1", fail)
    assert not (cache_root() / "thing-k1").exists()
    path = cached("thing", "k1", build)
    assert [entry.name for entry in path.iterdir()] == ["file"]
    assert not list(cache_root().glob(".thing-*.tmp"))


def test_two_at_once_build_once() -> None:
    calls: list[Path] = []

    def count(folder: Path) -> None:
        calls.append(folder)
        build(folder)

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: cached("thing", "k1", count), range(8)))
    assert len(calls) == len(paths) == 1


def test_a_key_changes_with_any_part_and_with_their_borders() -> None:
    keys = {key_of(parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"ab", b"c", b""])}
    assert len(keys) == 4


def test_the_digest_is_of_contents_and_names_not_of_times(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    (tmp_path / "two" / "file").rename(tmp_path / "two" / "other")
    assert digest(tmp_path / "one") != digest(tmp_path / "two")
