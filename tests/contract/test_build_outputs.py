"""Where a build's results are kept, on a real S3 server: whole or not there, found by their key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.s3server import S3Server, bucket_server
from tuneyard.api.build import BuildOutput
from tuneyard.api.buildtask import RECORD, BuildResult
from tuneyard.build.errors import StoppedError
from tuneyard.build.outputs import BucketOutput
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.remote import Credentials

pytestmark = pytest.mark.s3

KEY, OTHER = "a" * 32, "b" * 32
PART = 64 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with bucket_server("models") as server:
        yield server


def output(server: S3Server, prefix: str, stopped: threading.Event | None = None) -> BucketOutput:
    given = {
        "uri": f"s3://models/{prefix}",
        "endpoint": server.url,
        "region": "us-east-1",
        "credentials": {"name": "s3"},
    }
    return BucketOutput(BuildOutput.from_dict({"s3": given}), lambda _name: server.root, stopped or threading.Event())


def result(folder: Path, key: str = KEY, weights: int = 1 << 20) -> BuildResult:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer" / "vocab.json").write_text("[]")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    found = digest_of(folder)
    made = BuildResult(key=key, digest=found.digest, size_bytes=found.size_bytes)
    (folder / RECORD).write_text(made.model_dump_json(by_alias=True, exclude_none=True))
    return made


def test_what_is_kept_is_found_and_brought(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "one")
    made = result(tmp_path / "made", weights=PART + 7)  # in parts
    assert kept.find(KEY) is None
    said: list[float | None] = []
    assert kept.keep(tmp_path / "made", made, lambda _, percent: said.append(percent)) == made
    assert said[-1] == 100.0
    assert kept.find(KEY) == made
    assert kept.find(OTHER) is None
    brought = kept.bring(KEY, tmp_path / "brought", lambda *_: None)
    assert digest_of(brought).digest == made.digest


def test_files_without_a_record_are_no_result(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "two")
    kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None)
    server.client.delete_object(Bucket="models", Key=f"two/{KEY}/{RECORD}")
    assert kept.find(KEY) is None


def test_a_record_beside_other_files_is_no_result(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "three")
    kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None)
    server.client.delete_object(Bucket="models", Key=f"three/{KEY}/model.safetensors")
    assert kept.find(KEY) is None


def test_an_upload_ends_when_the_pod_is_to_end(server: S3Server, tmp_path: Path) -> None:
    stopped = threading.Event()
    kept = output(server, "four", stopped)
    stopped.set()
    with pytest.raises(StoppedError):
        kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None)
    assert output(server, "four").find(KEY) is None


def test_who_may_not_write_is_told(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "five")
    wrong = Credentials.of_secret("s3", {"AWS_ACCESS_KEY_ID": b"NOBODY", "AWS_SECRET_ACCESS_KEY": b"no secret"})
    kept._read = lambda _name: wrong
    with pytest.raises(ArtifactError, match="may not") as raised:
        kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None)
    assert raised.value.reason.value == "AccessDenied"
    assert "no secret" not in str(raised.value)
