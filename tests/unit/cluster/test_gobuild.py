"""What a built program's place in the cache depends on, and that nothing half-built ever gets there."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster import gobuild
from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.progress import Progress

GO = """#!/bin/sh
if [ "$1" = env ]; then echo go1.26.8; exit; fi
if [ -e "$FAIL" ]; then echo "undefined: everything" >&2; exit 1; fi
while [ "$1" != -o ]; do shift; done
echo "$CGO_ENABLED:$CGO_CFLAGS:$CGO_CXXFLAGS" >> "$BUILDS"
echo program > "$2"
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree with one module, a cache, and a Go that only pretends."""
    module = tmp_path / "source" / "go" / "pause"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module pause\n\ngo 1.26.0\n")
    (module / "main.go").write_text("package main\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "go").write_text(GO)
    (tools / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    monkeypatch.setenv("FAIL", str(tmp_path / "fail"))
    monkeypatch.setattr(gobuild, "SOURCE", tmp_path / "source")
    gobuild._go.cache_clear()
    return tmp_path


def progress() -> Progress:
    return Progress(Console(file=io.StringIO()))


def builds(source: Path) -> int:
    file = source / "builds"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_program_is_built_once_and_again_when_its_source_changes(source: Path) -> None:
    assert gobuild.built("pause") is None
    first = gobuild.ensure(["pause"], progress())["pause"]
    assert first.read_text() == "program\n"
    assert gobuild.ensure(["pause"], progress())["pause"] == first == gobuild.built("pause")
    assert builds(source) == 1
    (source / "source" / "go" / "pause" / "main.go").write_text("package main // changed\n")
    second = gobuild.ensure(["pause"], progress())["pause"]
    assert second != first
    assert builds(source) == 2
    # The older one stays for whoever runs it.
    assert first.exists()


def test_only_what_has_c_in_it_is_compiled_and_by_its_flags(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "require_compilers", lambda _: None)
    plain = gobuild.BINARIES["pause"]
    found = []
    for flags in ("", "-O3", "-O2"):
        monkeypatch.setitem(gobuild.BINARIES, "pause", replace(plain, compiled=flags))
        found.append(gobuild.ensure(["pause"], progress())["pause"])
    assert len(set(found)) == 3
    assert (source / "builds").read_text().splitlines() == ["0::", "1:-O3:-O3", "1:-O2:-O2"]


def test_a_failed_build_leaves_nothing_and_shows_the_compilers_words(source: Path) -> None:
    (source / "fail").touch()
    with pytest.raises(ClusterError, match=r"building pause failed.*\n.*undefined: everything"):
        gobuild.ensure(["pause"], progress())
    assert list((source / "cache" / "bin").iterdir()) == []
    (source / "fail").unlink()
    assert gobuild.ensure(["pause"], progress())["pause"].is_file()


def test_too_little_disk_is_said_before_anything_is_built(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gobuild, "BUILD_BYTES", 1 << 60)
    with pytest.raises(
        ClusterError, match=r"building needs .* GiB in .*, .* GiB are free: make room or set TUNEYARD_CACHE"
    ):
        gobuild.ensure(["pause"], progress())
    assert builds(source) == 0


def test_an_unknown_program_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="no program is called 'docker'; there are: kube-apiserver, etcd, kubectl"):
        gobuild.ensure(["docker"], progress())


@pytest.mark.parametrize(
    ("version", "enough"),
    [("go1.26.0", True), ("go1.27.3", True), ("go2.0", True), ("go1.25.9", False), ("", False), ("devel", False)],
)
def test_which_go_is_new_enough(version: str, enough: bool) -> None:
    assert gobuild._new_enough(version, (1, 26)) is enough


def test_a_module_that_needs_a_newer_go_than_the_machines_has_its_own(source: Path) -> None:
    (source / "source" / "go" / "pause" / "go.mod").write_text("module pause\n\ngo 1.27.0\n")
    package = gobuild.GO_PACKAGES[1, 27]
    program = source / "cache" / package.replace("==", "-") / "bin" / "go"
    program.parent.mkdir(parents=True)
    program.write_text(GO.replace("go1.26.8", "go1.27.3"))
    program.chmod(0o755)
    (program.parent.parent / "done").touch()
    assert gobuild._go((1, 27)) == (program, "go1.27.3")
    assert gobuild._go((1, 26))[1] == "go1.26.8", "the others keep the machine's, and so their place in the cache"
    assert gobuild.ensure(["pause"], progress())["pause"].is_file()


def test_every_go_that_a_module_asks_for_can_be_installed() -> None:
    assert {gobuild._needed(b.module) for b in gobuild.BINARIES.values()} == set(gobuild.GO_PACKAGES)


def test_every_module_is_pinned_with_its_sums() -> None:
    folder = Path(gobuild.__file__).parent / "go"
    for binary in gobuild.BINARIES.values():
        module = (folder / binary.module / "go.mod").read_text()
        assert ("require" not in module) or (folder / binary.module / "go.sum").is_file(), binary.name
        if "/" in binary.package:
            assert binary.package in module, binary.name
