"""Servers whose certificate a private authority signed: read with its certificate in the Secret, and not without.

And what is written to them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tests.fakes.hub import Hub, Repository
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, Source
from tuneyard.systems.artifacts.download import fetch
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials, remote_of
from tuneyard.systems.artifacts.s3access import S3Access

FILES = {"config.json": b"{}", "w.safetensors": b"weights"}
HUB_KEYS: dict[str, str] = {}
S3_KEYS = {"AWS_ACCESS_KEY_ID": ROOT, "AWS_SECRET_ACCESS_KEY": ROOT_SECRET}
Serve = Callable[[tuple[Path, Path], Path], AbstractContextManager[Source]]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "tls.crt", tmp_path / "tls.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=private"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths


@contextmanager
def hub(tls: tuple[Path, Path], folder: Path) -> Iterator[Source]:
    with Hub({"acme/x": Repository(FILES)}, tls) as server:
        yield Source(hugging_face=HuggingFaceSource(repo="acme/x", revision="main", endpoint=server.url))


@contextmanager
def s3(tls: tuple[Path, Path], folder: Path) -> Iterator[Source]:
    with S3Server(folder / "s3", tls) as server:
        server.bucket("models", {f"v1/{path}": content for path, content in FILES.items()})
        yield Source(s3=server.source("models/v1"))


@pytest.mark.parametrize(("serve", "keys"), [(hub, HUB_KEYS), (s3, S3_KEYS)], ids=["hub", "s3"])
def test_an_authority_of_the_secret_is_trusted_and_another_is_not(
    serve: Serve, keys: dict[str, str], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with serve(certificate, tmp_path) as source:
        trusted = Credentials("Secret s", {**keys, "ca.crt": certificate[0].read_text()})
        with closing(remote_of(source, trusted)) as remote:
            assert len(fetch(remote, tmp_path / "out").files) == 2
        unknown = Credentials("Secret s", keys) if keys else None
        with closing(remote_of(source, unknown)) as remote, pytest.raises(ArtifactError) as caught:
            fetch(remote, tmp_path / "other")
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE
    assert "is not trusted: put its authority into ca.crt of the Secret" in str(caught.value)


def test_what_is_written_there_comes_in_one_piece(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """Over TLS boto3 prefers chunks with a trailing checksum, which not every server that speaks S3 takes."""
    with S3Server(tmp_path / "s3", certificate) as server:
        server.bucket("feedback")
        keys = Credentials("Secret s", {**S3_KEYS, "ca.crt": certificate[0].read_text()})
        with closing(S3Access(server.source("feedback/a"), keys)) as access:
            sent: list[set[str]] = []

            def see(request: Any, **_: Any) -> None:
                sent.append({name.lower() for name in request.headers})

            access.client().meta.events.register("before-send", see)
            access.client().put_object(Bucket="feedback", Key="a/x.jsonl", Body=b"{}\n")
        assert server.client.get_object(Bucket="feedback", Key="a/x.jsonl")["Body"].read() == b"{}\n"
    (headers,) = sent
    assert "content-length" in headers
    assert not headers & {"x-amz-trailer", "content-encoding", "transfer-encoding"}
