"""What is missing on a machine is said at once, with the remedy."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.progress import Progress


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which everything is there."""
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight, "_available_memory", lambda _: 8 << 30)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    return monkeypatch


def check() -> str:
    output = io.StringIO()
    preflight.check(Progress(Console(file=output)))
    return output.getvalue()


def test_a_complete_machine_passes_silently(machine: pytest.MonkeyPatch) -> None:
    assert check() == ""


def test_without_root(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root .*; run with sudo, or use CLUSTER=kind"):
        check()


def test_too_little_memory(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(preflight, "_available_memory", lambda _: 512 << 20)
    with pytest.raises(ClusterError, match=r"needs 2\.0 GiB of memory, 0\.5 GiB are available: end other programs"):
        check()


def test_too_little_disk(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    machine.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ClusterError, match=r"needs 3\.0 GiB of disk at .*, 1\.0 GiB are free: set TUNEYARD_CACHE"):
        check()


def test_too_little_disk_for_a_first_run(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=9 << 30)
    machine.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ClusterError, match=r"the first run needs 30 GiB of disk at .*, 9\.0 GiB are free: make room, or"
    ):
        preflight.require_disk(30 << 30, "the first run")


def test_missing_programs_without_apt_are_named(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ClusterError, match=r"programs are missing: conntrack containernetworking-plugins .* runc"):
        check()


def test_missing_programs_are_installed_and_said(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    apt.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def which(program: str) -> str | None:
        absent = program == "runc" and not (tmp_path / "calls").exists()
        return None if absent else f"/usr/bin/{program}"

    machine.setattr(shutil, "which", which)
    assert "install with apt-get: runc" in check()
    assert (tmp_path / "calls").read_text().splitlines() == ["update -qq", "install -qq --no-install-recommends runc"]


def test_memory_is_read_in_bytes() -> None:
    assert preflight._available_memory("MemTotal: 9 kB\nMemAvailable:     2048 kB\n") == 2 << 20
