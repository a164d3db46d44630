"""S3 sources against a real server: who may read, what changes under the reader's hands, what breaks, what is kept."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.contract.fetching import start
from tests.contract.s3server import S3Server
from tests.fakes.hub import Hub, Repository
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, S3Source, Source
from tuneyard.systems.artifacts import download, floor
from tuneyard.systems.artifacts.download import digest_of_remote, fetch
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, UnreachableError, listing_key
from tuneyard.systems.artifacts.s3 import S3Remote

WEIGHTS = random.Random(2).randbytes(24 << 20)
FILES = {"config.json": b"{}", "adapter_model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n", "empty": b""}
OPENED: list[S3Remote] = []


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, S3Server(Path(folder)) as server:
        server.bucket("models", {f"acme/v1/{path}": content for path, content in FILES.items()})
        server.client.put_object(Bucket="models", Key="acme/v1/README.md", Body=b"not part of it")
        server.client.put_object(Bucket="models", Key="acme/v1/sub/", Body=b"")
        server.client.put_object(Bucket="models", Key="acme/v10/other", Body=b"x")
        server.bucket("changing")
        server.bucket("published", {"v1/config.json": b"{}"})
        server.allow_all_to_read("published")
        yield server


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Short waits between tries; no identity of the machine's; closes what a test opened."""
    monkeypatch.setattr(download, "_FIRST_DELAY", 0.001)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


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

    class Handler(BaseHTTPRequestHandler):
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

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", asked
        httpd.shutdown()


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


class Meddling(Progress):
    """Does something once, when the first bytes have come."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.act = act
        self.turn = threading.Lock()

    def came(self, count: int) -> None:
        super().came(count)
        if self.turn.acquire(blocking=False):
            self.act()  # type: ignore[operator]


def test_an_object_that_changes_meanwhile_is_refused(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    server.client.put_object(Bucket="changing", Key="v1/w.safetensors", Body=WEIGHTS)
    newer = WEIGHTS[::-1]
    meddling = Meddling(lambda: server.client.put_object(Bucket="changing", Key="v1/w.safetensors", Body=newer))
    with pytest.raises(ArtifactError, match=r"w\.safetensors has changed since it was listed"):
        fetch(remote(server.source("changing/v1"), server.root), tmp_path / "out", progress=meddling, workers=2)
    progress = Progress()
    found = fetch(remote(server.source("changing/v1"), server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest({"w.safetensors": newer})
    assert progress.fetched == len(newer)  # nothing of the older one was used


class CuttingProxy:
    """Passes bytes to a port and cuts connections after so many bytes of answers, as often as `cuts` says.

    `pause`: seconds before each 2,000 bytes of the answers that go on after 10,000 bytes.
    """

    def __init__(self, port: int, cuts: list[int], pause: float = 0.0) -> None:
        self.target = port
        self.cuts = cuts
        self.pause = pause
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            most = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self.serve, args=(client, most), daemon=True).start()

    def serve(self, client: socket.socket, most: int | None) -> None:
        done = 0
        with client, socket.create_connection(("127.0.0.1", self.target)) as server, suppress(OSError):
            while readable := select.select([client, server], [], [])[0]:
                for source in readable:
                    slow = self.pause and source is server and done > 10_000
                    data = source.recv(2000 if slow else 1 << 16)
                    time.sleep(self.pause if slow else 0.0)
                    (server if source is client else client).sendall(data)
                    done += len(data) if source is server else 0
                    if not data or (most is not None and done > most):
                        return

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.listening.close()


def test_a_network_that_breaks_in_the_middle_of_files(server: S3Server, tmp_path: Path) -> None:
    proxy = CuttingProxy(server.port, [0, 1 << 20, 3 << 20, 70_000, 2 << 20, 5 << 20, 100_000])
    source = S3Source(uri="s3://models/acme/v1", endpoint=proxy.url, region="us-east-1")
    progress = Progress()
    found = fetch(remote(source, server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest(FILES)
    assert proxy.cuts == []
    assert progress.fetched == found.size_bytes
    proxy.close()


def test_a_server_that_trickles_is_given_up_in_words_and_gone_on_from(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WINDOW_SECONDS", 4.0)
    server.bucket("slow", {"model.safetensors": WEIGHTS[: 5 << 20]})
    proxy = CuttingProxy(server.port, [], pause=0.1)
    source = S3Source(uri="s3://slow/", endpoint=proxy.url, region="us-east-1")
    first = Progress()
    with pytest.raises(UnreachableError, match=r"s3://slow/ delivers \d+\.\d KiB/s .* at least 64 KiB/s"):
        fetch(remote(source, server.root), tmp_path / "out", progress=first)
    assert first.fetched > 32_000, "pieces of what comes slowly are small"
    proxy.pause = 0.0
    then = Progress()
    found = fetch(remote(source, server.root), tmp_path / "out", progress=then)
    assert then.fetched == found.size_bytes - first.fetched
    proxy.close()


def test_a_server_that_dies_for_good_is_named_and_what_came_is_kept(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    meddling = Meddling(server.stop)
    with pytest.raises(ArtifactError, match=f"{server.url} cannot be read") as caught:
        fetch(remote(server.source("models/acme/v1"), server.root), tmp_path / "out", progress=meddling)
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE
    kept = sum(p.stat().st_size for p in (tmp_path / ".out.fetching").iterdir() if p.is_file())
    server.start()
    progress = Progress()
    found = fetch(remote(server.source("models/acme/v1"), server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest(FILES)
    assert progress.fetched == found.size_bytes - kept


def parts_of(scratch: Path) -> int:
    try:
        return sum(p.stat().st_size for p in scratch.iterdir() if p.is_file())
    except FileNotFoundError:
        return 0


def test_kill_9_of_a_300_mb_download_at_many_points(server: S3Server, tmp_path: Path) -> None:
    big = {"w.safetensors": WEIGHTS * 12 + WEIGHTS[: 12 << 20]}
    server.client.put_object(Bucket="models", Key="big/w.safetensors", Body=big["w.safetensors"])
    size = len(big["w.safetensors"])
    source = Source(s3=server.source("models/big"))
    target, scratch = tmp_path / "out", tmp_path / ".out.fetching"
    kept = 0
    for share in (0.0, 0.02, 0.2, 0.4, 0.55, 0.8, 0.95):
        with start(source, target, dict(server.root.data)) as process:
            until = time.monotonic() + 60
            while parts_of(scratch) <= max(kept, share * size) and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert parts_of(scratch) >= kept  # a process that goes on loses nothing
        kept = parts_of(scratch)
    assert not target.exists()
    with start(source, target, dict(server.root.data)) as process:
        out, _ = process.communicate(timeout=120)
    result = json.loads(out)
    assert result["digest"] == digest(big)
    assert result["fetched"] == size - kept
    assert digest_of(target).digest == digest(big)
    assert not scratch.exists()


def test_kill_9_fetches_at_most_one_window_twice(tmp_path: Path) -> None:
    chunk = 256 << 10
    files = {"w.safetensors": WEIGHTS, **{f"{n}.json": b"%d" % n * 1000 for n in range(30)}}
    with Hub({"acme/x": Repository(files)}) as hub:
        source = Source(hugging_face=HuggingFaceSource(repo="acme/x", revision="main", endpoint=hub.url))
        target, kills = tmp_path / "out", 0
        for goal in range(0, 40 << 20, 3 << 20):
            with start(source, target, chunk=chunk) as process:
                while hub.sent <= goal and process.poll() is None:
                    time.sleep(0.001)
                process.send_signal(signal.SIGKILL)
            kills += process.returncode == -signal.SIGKILL
            if target.exists():
                break
        if not target.exists():
            with start(source, target, chunk=chunk) as process:
                assert process.wait(60) == 0
        assert digest_of(target).digest == digest(files)
        assert kills > 5
        assert hub.sent <= sum(map(len, files.values())) + kills * download.WINDOW * chunk


@pytest.mark.parametrize("kept", [None, b"another folder's"], ids=["alone", "with a stranger"])
def test_a_process_that_died_while_names_were_given(server: S3Server, tmp_path: Path, kept: bytes | None) -> None:
    """The last step moves files one by one; one that died there left some under their names."""
    asked = remote(server.source("models/acme/v1"), server.root)
    files = asked.files()
    tree = tmp_path / ".out.fetching" / f"tree-{listing_key(asked, files)}"
    tree.mkdir(parents=True)
    (tree / "config.json").write_bytes(FILES["config.json"])
    if kept is not None:
        (tree / "stranger").write_bytes(kept)
    for file in files:
        if file.path != "config.json":
            (tree.parent / download._name(asked, file)).write_bytes(FILES[file.path])
    progress = Progress()
    found = fetch(asked, tmp_path / "out", progress=progress)
    assert progress.fetched == 0
    assert digest_of(tmp_path / "out") == found
    assert found.digest == digest(FILES)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_room_is_refused_before_anything_comes(server: S3Server, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        progress = Progress()
        with pytest.raises(ArtifactError, match=r"\d+ bytes are needed, 8388608 are free") as caught:
            fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=progress)
        assert caught.value.reason is Reason.DISK_FULL
        assert progress.fetched == 0


def test_a_disk_that_others_fill_meanwhile(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    with small_disk(tmp_path / "disk", 30 << 20) as disk:
        meddling = Meddling(lambda: (disk / "other").write_bytes(bytes(20 << 20)))
        with pytest.raises(ArtifactError, match=r"\d+ bytes are needed, \d+ are free") as caught:
            fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=meddling)
        assert caught.value.reason is Reason.DISK_FULL
        (disk / "other").unlink()
        progress = Progress()
        found = fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=progress)
        assert found.digest == digest(FILES)
        assert progress.fetched < found.size_bytes


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
    monkeypatch.setattr(lake, "_client", Client)
    with pytest.raises(ArtifactError, match=refused):
        lake.files()
    assert asked == pages


def test_two_thousand_small_files(server: S3Server, tmp_path: Path) -> None:
    files = {f"{n:04}.json": b"%d" % n for n in range(2000)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: server.client.put_object(Bucket="models", Key=f"many/{n}", Body=files[n]), files))
    found = fetch(remote(server.source("models/many"), server.root), tmp_path / "out")
    assert found.digest == digest(files)
