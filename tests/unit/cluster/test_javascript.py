"""The lock of JavaScript packages."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.javascript import LOCK, Package, check, packages


def test_the_lock_names_versions_and_hashes_and_no_place() -> None:
    found = packages(LOCK.read_text())
    assert [package.name for package in found] == ["openai"]
    assert "://" not in LOCK.read_text()


@pytest.mark.parametrize(
    "line", ["openai", "openai 7.55.0", "openai ^7 sha512-" + "A" * 86 + "==", "a 1.0.0 sha1-AAAA"]
)
def test_what_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ClusterError, match="is not NAME VERSION"):
        packages(line)


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tgz"
    file.write_bytes(b"what was looked at")
    digest = hashlib.sha512(file.read_bytes()).digest()
    package = Package("a", "1.0.0", f"sha512-{base64.b64encode(digest).decode()}")
    check(file, package)
    file.write_bytes(b"what came today")
    with pytest.raises(ClusterError, match="is not what requirements"):
        check(file, package)
