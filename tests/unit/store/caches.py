"""Looking into a node cache, and what its methods raise. Shared by the tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest


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
