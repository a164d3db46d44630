"""The objects that tests of S3 sources read, the server that has them, and reading them as nobody but the test."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.s3server import S3Server
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts import download
from tuneyard.systems.artifacts.download import fetch
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.s3 import S3Remote

WEIGHTS = random.Random(2).randbytes(24 << 20)
FILES = {"config.json": b"{}", "adapter_model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n", "empty": b""}
OPENED: list[S3Remote] = []


@contextmanager
def serving_models() -> Iterator[S3Server]:
    """A server with what these tests ask for."""
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, S3Server(Path(folder)) as server:
        server.bucket("models", {f"acme/v1/{path}": content for path, content in FILES.items()})
        server.client.put_object(Bucket="models", Key="acme/v1/README.md", Body=b"not part of it")
        server.client.put_object(Bucket="models", Key="acme/v1/sub/", Body=b"")
        server.client.put_object(Bucket="models", Key="acme/v10/other", Body=b"x")
        server.bucket("changing")
        server.bucket("published", {"v1/config.json": b"{}"})
        server.allow_all_to_read("published")
        yield server


@contextmanager
def quick_and_alone(patched: pytest.MonkeyPatch, home: Path) -> Iterator[None]:
    """Short waits between tries; no identity of the machine's; closes what a test opened."""
    patched.setattr(download, "_FIRST_DELAY", 0.001)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patched.delenv(name)
    patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patched.setenv("HOME", str(home))
    yield
    while OPENED:
        OPENED.pop().close()


def remote(source: S3Source, credentials: Credentials | None) -> S3Remote:
    OPENED.append(S3Remote(source, credentials))
    return OPENED[-1]


def secret(key: str, value: str, **more: str) -> Credentials:
    return Credentials("Secret s3", {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": value, **more})


def digest(files: dict[str, bytes]) -> str:
    return artifact_digest(FileDigest(p, len(c), hashlib.sha256(c).hexdigest()) for p, c in files.items())


def refused(source: S3Source, credentials: Credentials | None, target: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        fetch(remote(source, credentials), target)
    assert not target.exists()
    return caught.value
