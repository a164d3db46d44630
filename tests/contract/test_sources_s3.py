"""S3 sources against a real server: what comes, who may read, and what is said where nothing comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.s3objects import FILES, WEIGHTS, digest, quick_and_alone, refused, remote, secret, serving_models
from tests.contract.s3server import S3Server
from tests.contract.serving import QuietHandler, served
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.download import digest_of_remote, fetch
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.s3 import S3Remote


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving_models() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with quick_and_alone(monkeypatch, tmp_path):
        yield


@pytest.mark.parametrize("uri", ["models/acme/v1", "models/acme/v1/"])
def test_what_comes_is_what_lies_under_the_prefix(server: S3Server, tmp_path: Path, uri: str) -> None:
    progress = Progress()
    found = fetch(remote(server.source(uri), server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest(FILES)
    assert digest_of(tmp_path / "out") == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert progress.fetched == progress.done == progress.total == found.size_bytes
    assert digest_of_remote(remote(server.source(uri), server.root)) == found


@pytest.mark.parametrize("prefix", ["tuned#2/v1", "tuned?2/v1", "tuned%23/v1"])
def test_a_prefix_is_what_it_says_whatever_urls_make_of_it(server: S3Server, tmp_path: Path, prefix: str) -> None:
    """`s3://models/tuned#2/` cut at its `#` would be the objects of `tuned/`."""
    server.client.put_object(Bucket="models", Key="tuned/config.json", Body=b"other")
    server.client.put_object(Bucket="models", Key=f"{prefix}/config.json", Body=b"meant")
    fetch(remote(server.source(f"models/{prefix}/"), server.root), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == b"meant"


def test_the_servers_sha256_counts_where_it_is_of_the_whole_object(server: S3Server) -> None:
    client = server.client
    client.put_object(Bucket="models", Key="sums/whole", Body=b"one", ChecksumAlgorithm="SHA256")
    begun = client.create_multipart_upload(Bucket="models", Key="sums/parts", ChecksumAlgorithm="SHA256")
    parts = []
    for number, content in enumerate((WEIGHTS[: 5 << 20], b"end"), 1):
        part = client.upload_part(
            Bucket="models",
            Key="sums/parts",
            UploadId=begun["UploadId"],
            PartNumber=number,
            Body=content,
            ChecksumAlgorithm="SHA256",
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]})
    client.complete_multipart_upload(
        Bucket="models", Key="sums/parts", UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}
    )
    whole = {"whole": b"one", "parts": WEIGHTS[: 5 << 20] + b"end"}
    asked = remote(server.source("models/sums"), server.root)
    known = {file.path: file.sha256 for file in asked.files()}
    assert known == {"whole": hashlib.sha256(b"one").hexdigest(), "parts": None}
    progress = Progress()
    assert digest_of_remote(asked, progress=progress).digest == digest(whole)
    assert progress.fetched == len(whole["parts"])


def test_anonymous_reading_where_everybody_may(server: S3Server, tmp_path: Path) -> None:
    found = fetch(remote(server.source("published/v1", anonymous=True), None), tmp_path / "out")
    assert found.digest == digest({"config.json": b"{}"})


def test_who_may_not_read_is_named(server: S3Server, tmp_path: Path) -> None:
    place = server.source("models/acme/v1")
    wrong = refused(place, secret("AKIAIOSFODNN7EXAMPLE", "wrong-key"), tmp_path / "out")
    assert wrong.reason is Reason.ACCESS_DENIED
    assert "access key AKIA...MPLE of Secret s3 may not read s3://models/acme/v1/" in str(wrong)
    key = server.root.data["AWS_ACCESS_KEY_ID"]
    forged = refused(place, secret(key, "wrong-key"), tmp_path / "out")
    assert forged.reason is Reason.ACCESS_DENIED
    assert "wrong-key" not in str(forged)
    nobody = refused(server.source("models/acme/v1", anonymous=True), None, tmp_path / "out")
    assert nobody.reason is Reason.ACCESS_DENIED
    assert str(nobody).startswith("anonymous may not read")


def test_without_any_identity_it_is_said_what_to_give(server: S3Server, tmp_path: Path) -> None:
    error = refused(server.source("models/acme/v1"), None, tmp_path / "out")
    assert error.reason is Reason.CREDENTIALS_MISSING
    assert "source.s3.credentials" in str(error)
    assert "anonymous" in str(error)


def test_a_secret_that_lacks_a_key_is_refused_before_anything_is_asked() -> None:
    half = Credentials("Secret s3", {"AWS_ACCESS_KEY_ID": "AKIA"})
    with pytest.raises(ArtifactError, match="Secret s3 lacks AWS_SECRET_ACCESS_KEY") as caught:
        S3Remote(S3Source(uri="s3://models/x"), half)
    assert caught.value.reason is Reason.CREDENTIALS_MISSING


@pytest.mark.parametrize("key", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_key_that_no_header_can_hold_is_refused_and_shown_nowhere(key: str) -> None:
    """An HTTP client refuses it in words that hold it, and these would go into logs and status."""
    given = {"AWS_ACCESS_KEY_ID": "known", "AWS_SECRET_ACCESS_KEY": "known", key: "hidden\nsecond line"}
    with pytest.raises(ArtifactError, match=f"{key} of Secret models-reader holds a line break") as caught:
        S3Remote(S3Source(uri="s3://models/"), Credentials("Secret models-reader", given))
    assert caught.value.reason is Reason.CREDENTIALS_MISSING
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("no-such-bucket/x", "the bucket no-such-bucket does not exist"),
        ("models/none", "s3://models/none/ holds no files"),
    ],
)
def test_what_is_not_there(server: S3Server, tmp_path: Path, place: str, words: str) -> None:
    error = refused(server.source(place), server.root, tmp_path / "out")
    assert error.reason is Reason.ARTIFACT_NOT_FOUND
    assert words in str(error)


@pytest.mark.parametrize(
    "files", [["adapter_model.bin"], ["adapter_config.json", "adapter_model.bin", "a/b.safetensors"]]
)
def test_pickles_alone_are_refused_as_what_they_are(server: S3Server, tmp_path: Path, files: list[str]) -> None:
    prefix = f"pickles-{len(files)}"
    for name in files:
        server.client.put_object(Bucket="models", Key=f"{prefix}/{name}", Body=b"x")
    error = refused(server.source(f"models/{prefix}"), server.root, tmp_path / "out")
    assert error.reason is Reason.NOT_SAFETENSORS
    assert "adapter_model.bin" in str(error)
    assert "safe_serialization=True" in str(error)


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """A server that refuses everything in S3's words."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with served(Handler) as url:
        yield url


@pytest.mark.parametrize(
    ("status", "code", "reason", "words"),
    [
        (400, "ExpiredToken", Reason.ACCESS_DENIED, "expired (ExpiredToken): access key AKIA...MPLE of Secret s3"),
        (400, "InvalidToken", Reason.ACCESS_DENIED, "(InvalidToken)"),
        (403, "RequestTimeTooSkewed", Reason.ACCESS_DENIED, "clock"),
        (503, "SlowDown", Reason.SOURCE_UNREACHABLE, "SlowDown"),
        (400, "InvalidRequest", Reason.SOURCE_UNREACHABLE, "check endpoint, region and uri"),
    ],
)
def test_what_servers_say(tmp_path: Path, status: int, code: str, reason: Reason, words: str) -> None:
    with answering(status, code) as url:
        asked = S3Source(uri="s3://models/x", endpoint=url, region="us-east-1")
        error = refused(asked, secret("AKIAIOSFODNN7EXAMPLE", "k", AWS_SESSION_TOKEN="t"), tmp_path / "out")
    assert error.reason is reason
    assert words in str(error)


ROLE = "arn:aws:sts::123456789012:assumed-role/models-reader/pod"


@contextmanager
def amazon() -> Iterator[tuple[str, list[str]]]:
    """EKS's agent of pod identities, an S3 that refuses, and the service that tells who one is; what was asked."""
    asked: list[str] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/credentials"):
                key = {"AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "SecretAccessKey": "hidden-key", "Token": "hidden-token"}
                return self.answer(200, json.dumps({**key, "Expiration": "2099-01-01T00:00:00Z"}))
            return self.answer(403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")

        def do_POST(self) -> None:
            asked.append("who am I")
            result = f"<GetCallerIdentityResult><Arn>{ROLE}</Arn></GetCallerIdentityResult>"
            self.answer(200, f"<GetCallerIdentityResponse>{result}</GetCallerIdentityResponse>")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    with served(Handler) as url:
        yield url, asked


def test_a_pod_without_a_secret_is_named_as_aws_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with amazon() as (url, asked):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/credentials")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        error = refused(S3Source(uri="s3://models/x"), None, tmp_path / "out")
        assert asked[-1] == "who am I"
        assert error.reason is Reason.ACCESS_DENIED
        assert f"the pod's service account (EKS Pod Identity), {ROLE}, may not read s3://models/x/" in str(error)
        assert "hidden" not in str(error)
        asked.clear()
        elsewhere = refused(S3Source(uri="s3://models/x", endpoint=url), None, tmp_path / "out")
        assert "who am I" not in asked, "a server of one's own has no ARNs"
        assert str(elsewhere).startswith("the pod's service account (EKS Pod Identity) may not read")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
        apart = refused(S3Source(uri="s3://models/x"), None, tmp_path / "out")
        assert str(apart).startswith("the pod's service account (EKS Pod Identity) may not read")


@pytest.mark.parametrize(
    ("name", "refused", "pages"),
    [("{}", "holds more than 100000 files: name the artifact's own folder", 101), ("{}/README.md", "pages", 201)],
)
def test_a_whole_bucket_is_refused_before_its_listing_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, refused: str, pages: int
) -> None:
    """`s3://data-lake/` by mistake must not end the agent, which serves the adapters of others too."""
    monkeypatch.setattr("tuneyard.systems.artifacts.s3.MOST_PAGES", 200)
    asked = 0

    class Client:
        def get_paginator(self, _: str) -> Client:
            return self

        def paginate(self, **_: str) -> Iterator[dict[str, object]]:
            nonlocal asked
            for asked in range(1, 1000):
                keys = (name.format(f"{asked}/{n}") for n in range(1000))
                yield {"Contents": [{"Key": key, "Size": 1, "ETag": '"0"'} for key in keys]}

    lake = S3Remote(S3Source(uri="s3://lake/"), None)
    monkeypatch.setattr(lake._at, "client", Client)
    with pytest.raises(ArtifactError, match=refused):
        lake.files()
    assert asked == pages


def test_two_thousand_small_files(server: S3Server, tmp_path: Path) -> None:
    files = {f"{n:04}.json": b"%d" % n for n in range(2000)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: server.client.put_object(Bucket="models", Key=f"many/{n}", Body=files[n]), files))
    found = fetch(remote(server.source("models/many"), server.root), tmp_path / "out")
    assert found.digest == digest(files)
