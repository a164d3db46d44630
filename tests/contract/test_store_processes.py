"""The node cache on real file systems and between real processes: one download, whoever dies and whenever; a full
disk; the user that pods run as.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.disks import small_disk
from tests.contract.store_processes import SCENARIOS
from tests.unit.store.sources import Source, contents, read_all
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.room import NoRoomError
from tuneyard.systems.artifacts.store import Store

ROOT = Path(__file__).parents[2]
POD_USER = 65532
DISK = 8 << 20


def run(scenario: str, folder: Path, user: int = 0) -> None:
    program = [sys.executable, "-m", "tests.contract.store_processes", scenario, str(folder), "7", str(user)]
    path = os.pathsep.join([str(ROOT / "operator"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(program, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_processes(scenario: str, tmp_path: Path) -> None:
    run(scenario, tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    with small_disk(tmp_path / "disk", f"size={DISK},mode=1777") as disk:
        yield disk


@pytest.mark.parametrize("scenario", ["kill_healing", "kill_evicting"])
def test_the_user_that_pods_run_as(scenario: str, disk: Path) -> None:
    """Root could write and delete what is read-only; pods are not root."""
    run(scenario, disk, POD_USER)


def test_a_full_disk_makes_room_of_what_nobody_uses(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "cache", reserve=1 << 20)
    small = Source(contents("small", 2 << 20), tmp_path / "small")
    middle = Source(contents("middle", 2 << 20), tmp_path / "middle")
    large = Source(contents("large", 4 << 20), tmp_path / "large")
    store.obtain("small", None, small.fetch, size=small.size).release()
    with store.obtain("middle", None, middle.fetch, size=middle.size):
        store.obtain("large", None, large.fetch, size=large.size).release()
        assert {e.digest for e in store.entries()} == {middle.digest, large.digest}


def test_a_disk_too_full_is_told_before_a_byte_is_fetched(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "cache", reserve=1 << 20)
    kept = Source(contents("kept", 3 << 20), tmp_path / "kept")
    idle = Source(contents("idle", 1 << 20), tmp_path / "idle")
    large = Source(contents("large", 6 << 20), tmp_path / "large")
    store.obtain("idle", None, idle.fetch, size=idle.size).release()
    with store.obtain("kept", None, kept.fetch, size=kept.size):
        with pytest.raises(NoRoomError) as caught:
            store.obtain("large", None, large.fetch, size=large.size)
        assert caught.value.reason is Reason.DISK_FULL
        assert caught.value.needed == large.size > caught.value.free > 3 << 20
        assert str(large.size) in str(caught.value) and str(caught.value.free) in str(caught.value)
        assert kept.digest.removeprefix("sha256:") in str(caught.value)
        assert large.handed_out() == 0
        assert len(store.entries()) == 2, "nothing went in vain"
    with store.obtain("large", None, large.fetch, size=large.size) as held:
        assert read_all(held.path) == large.files


def test_a_disk_that_fills_under_a_download_of_unknown_size(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "cache", reserve=0)
    idle = [Source(contents(f"idle{n}", 2 << 20), tmp_path / f"idle{n}") for n in range(3)]
    for number, source in enumerate(idle):
        store.obtain(f"{number}", None, source.fetch).release()
    large = Source(contents("large", 4 << 20), tmp_path / "large")
    with store.obtain("large", None, large.fetch) as held:
        assert read_all(held.path) == large.files
        assert {e.digest for e in store.entries()} == {idle[2].digest, large.digest}, "the oldest went"
        assert large.handed_out() < large.size + 3 * 4096, "and it went on where it was"


def test_a_disk_that_fills_though_nothing_can_go(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "cache", reserve=0)
    large = Source(contents("large", DISK), tmp_path / "large")
    with pytest.raises(ArtifactError) as caught:
        store.obtain("large", None, large.fetch)
    assert caught.value.reason is Reason.DISK_FULL
    small = Source(contents("small", 1 << 20), tmp_path / "small")
    with store.obtain("small", None, small.fetch, size=small.size) as held:
        assert read_all(held.path) == small.files, "what had come of the large one went for it"


def test_a_disk_filled_by_others(disk: Path, tmp_path: Path) -> None:
    store = Store(disk / "cache", reserve=0)
    (disk / "others").write_bytes(b"x" * (6 << 20))
    source = Source(contents("one", 3 << 20), tmp_path / "one")
    with pytest.raises(NoRoomError, match=r"its disk has 2\.0 MiB left"):
        store.obtain("one", None, source.fetch, size=source.size)
    (disk / "others").unlink()
    store.obtain("one", None, source.fetch, size=source.size).release()
