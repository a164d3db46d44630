"""How much memory a check counts with, and when it does without listening."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneyard.build.tools.memory import available, too_large

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal:       {16 * GIB // 1024} kB\nMemAvailable:    {8 * GIB // 1024} kB\n")
    return file


def cgroup(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


def test_a_containers_limit_counts_without_the_files_that_were_read(tmp_path: Path, meminfo: Path) -> None:
    files = {"memory.max": f"{4 * GIB}", "memory.stat": f"anon {GIB}\nfile {3 * GIB}"}
    assert available(cgroup(tmp_path / "two", files), meminfo) == 3 * GIB
    files = {"memory/memory.limit_in_bytes": f"{2 * GIB}", "memory/memory.stat": f"cache 5\nrss {GIB}"}
    assert available(cgroup(tmp_path / "one", files), meminfo) == GIB


def test_without_a_limit_the_nodes_free_memory_counts(tmp_path: Path, meminfo: Path) -> None:
    assert available(cgroup(tmp_path / "none", {"memory.max": "max"}), meminfo) == 8 * GIB
    assert available(cgroup(tmp_path / "more", {"memory.max": f"{99 * GIB}"}), meminfo) == 8 * GIB
    assert available(tmp_path / "nothing", tmp_path / "nothing") is None


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path: Path, meminfo: Path) -> None:
    found = cgroup(tmp_path / "two", {"memory.max": f"{GIB}", "memory.stat": f"anon {2 * GIB}"})
    assert available(found, meminfo) == 0


def test_a_model_of_eight_billions_is_not_listened_to_in_a_small_job() -> None:
    assert too_large(8_000_000_000, 40 * GIB) is None
    assert too_large(8_000_000_000, None) is None
    assert too_large(8_000_000_000, 16 * GIB) == "it takes 34.3 GiB of memory in float32 and 16.0 GiB are free"
