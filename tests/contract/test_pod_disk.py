"""A pod's own disk, to which adapters are copied, is full: told with what is needed and free, and nothing is left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.tiny import build_tiny
from tests.contract.disks import small_disk
from tuneyard.agent.fetching import FetchError, Shelf, read_base
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source, VolumeSource

PLANNED = PlannedAdapter(name="support", source=Source(volume=VolumeSource(name="models", path="v1")))


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with these options of tmpfs."""
    with small_disk(tmp_path / "disk", request.param) as disk:
        yield disk


@pytest.mark.parametrize(
    "disk",
    [
        "size=12k",
        pytest.param("size=1m,nr_inodes=2", id="no folder"),
        pytest.param("size=1m,nr_inodes=3", id="no file"),
    ],
    indirect=True,
)
def test_a_full_disk_is_told_with_what_is_needed_and_free(disk: Path, tmp_path: Path) -> None:
    volumes = tmp_path / "artifacts"
    shutil.copytree(build_tiny() / "adapter-a", volumes / "models" / "v1")
    shelf = Shelf(volumes, disk / "adapters", read_base(build_tiny() / "base"), 16)
    shelf.clean()
    with pytest.raises(FetchError, match=r"the pod's disk is full: \d+ bytes are needed, \d+ are free") as caught:
        shelf.fetch(PLANNED)
    assert caught.value.reason is Reason.DISK_FULL
    assert "ephemeral storage" in str(caught.value)
    assert list(shelf.adapters.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=100", str(disk)], check=True)
    assert shelf.fetch(PLANNED).rank == 8
