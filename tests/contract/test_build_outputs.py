"""Where a build's results are kept, on a real S3 server: whole or not there, found by their key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.s3server import S3Server, bucket_server
from tuneyard.api.buildoutput import BuildOutput
from tuneyard.api.buildtask import RECORD, BuildResult
from tuneyard.build.errors import BuildError, StoppedError
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
    assert brought == (tmp_path / "brought", made)
    assert digest_of(tmp_path / "brought").digest == made.digest
    assert kept.bring(OTHER, tmp_path / "other", lambda *_: None) is None


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

    server.client.delete_object(Bucket="models", Key=f"three/{KEY}/config.json")
    server.client.delete_object(Bucket="models", Key=f"three/{KEY}/tokenizer/vocab.json")
    assert kept.find(KEY) is None, "a record alone"


def damage(server: S3Server, prefix: str) -> None:
    """Other bytes, of the same number."""
    server.client.put_object(Bucket="models", Key=f"{prefix}/{KEY}/config.json", Body=b"[]")


def test_what_is_damaged_is_not_there_and_is_made_again(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "damaged")
    made = result(tmp_path / "made")
    kept.keep(tmp_path / "made", made, lambda *_: None)
    damage(server, "damaged")
    assert kept.find(KEY) is None
    assert kept.bring(KEY, tmp_path / "brought", lambda *_: None) is None
    assert not (tmp_path / "brought").exists()
    kept.keep(tmp_path / "made", made, lambda *_: None)
    assert kept.find(KEY) == made
    assert kept.bring(KEY, tmp_path / "brought", lambda *_: None) == (tmp_path / "brought", made)


def test_an_object_too_many_is_named_and_hides_nothing(server: S3Server, tmp_path: Path) -> None:
    """It would be fetched with the result, whose digest it changes."""
    kept = output(server, "strangers")
    made = result(tmp_path / "made")
    server.client.put_object(Bucket="models", Key=f"strangers/{KEY}/model-00002-of-00002.safetensors", Body=b"old")
    with pytest.raises(BuildError, match=r"remove model-00002-of-00002\.safetensors") as error:
        kept.keep(tmp_path / "made", made, lambda *_: None)
    assert error.value.again
    assert kept.find(KEY) is None
    server.client.delete_object(Bucket="models", Key=f"strangers/{KEY}/model-00002-of-00002.safetensors")
    assert kept.keep(tmp_path / "made", made, lambda *_: None) == made


def test_what_another_build_has_stored_stays(server: S3Server, tmp_path: Path) -> None:
    kept = output(server, "first")
    first, second = result(tmp_path / "first"), result(tmp_path / "second", weights=2 << 20)
    assert kept.keep(tmp_path / "first", first, lambda *_: None) == first
    assert kept.keep(tmp_path / "second", second, lambda *_: None) == first
    assert kept.find(KEY) == first


@pytest.mark.parametrize("same", [True, False])
def test_two_that_store_at_the_same_time_leave_nothing_mixed(server: S3Server, tmp_path: Path, same: bool) -> None:
    """The other one has written all of it while this one writes."""
    prefix = f"together-{same}"
    kept, other = output(server, prefix), output(server, prefix)
    mine, theirs = result(tmp_path / "mine"), result(tmp_path / "theirs", weights=(1 if same else 2) << 20)
    theirs = theirs.model_copy(update={"commit": "c" * 40})  # tells the records apart
    (tmp_path / "theirs" / RECORD).write_text(theirs.model_dump_json(by_alias=True, exclude_none=True))
    stored: list[BuildResult] = []

    def between(_words: str, _percent: float | None) -> None:
        if not stored:
            stored.append(other.keep(tmp_path / "theirs", theirs, lambda *_: None))

    wanted = theirs if same else mine
    assert kept.keep(tmp_path / "mine", mine, between) == wanted
    assert stored == [theirs]
    assert kept.find(KEY) == wanted, "the same bytes under the first record, or all of one"


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


def test_whether_it_may_be_written_is_tried_without_a_trace(server: S3Server) -> None:
    kept = output(server, "six")
    kept.try_writing(KEY)
    assert server.client.list_objects_v2(Bucket="models", Prefix="six/").get("KeyCount") == 0
    assert server.client.list_multipart_uploads(Bucket="models").get("Uploads", []) == []


def test_who_may_not_write_is_told_before_anything_is_made(server: S3Server) -> None:
    kept = output(server, "seven")
    kept._read = lambda _name: Credentials.of_secret(
        "s3", {"AWS_ACCESS_KEY_ID": b"NOBODY", "AWS_SECRET_ACCESS_KEY": b"no secret"}
    )
    with pytest.raises(ArtifactError, match="may not write") as raised:
        kept.try_writing(KEY)
    assert raised.value.reason.value == "AccessDenied"
