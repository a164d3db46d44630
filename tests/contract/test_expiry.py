"""Credentials that expire in the middle of a transfer: told as that, and gone on with where it was by new ones."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tests.contract.serving import QuietHandler, served
from tests.fakes.hub import Hub, Repository
from tests.unit.store.sources import read_all
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, S3Source, SecretReference, Source
from tuneyard.systems.artifacts import download
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.s3 import S3Remote
from tuneyard.systems.artifacts.store import Store

FILES = {"config.json": b"{}", "model.safetensors": random.Random(3).randbytes(24 << 20)}
SIZE = sum(map(len, FILES.values()))
HALF = SIZE // 2
"""By then, with chunks of a MiB, more have begun than the window holds, so some are written; others are to come."""
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Gate:
    """Passes requests on to an S3 server, which knows no session tokens; refuses expired ones as Amazon does."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.expired: set[str] = set()
        self.expires_after: tuple[str, int] | None = None
        """A token that expires once so many bytes have passed."""
        self.passed = 0
        self.turn = threading.Lock()

    def is_expired(self, token: str) -> bool:
        with self.turn:
            if self.expires_after is not None and self.passed >= self.expires_after[1]:
                self.expired.add(self.expires_after[0])
            return token in self.expired

    def signed(self, method: str, path: str, headers: Message) -> dict[str, str]:
        """What is asked for, with a signature that the server takes."""
        asked = {name: headers[name] for name in ("Range", "If-Match", "x-amz-checksum-mode") if name in headers}
        request = AWSRequest(method, f"http://127.0.0.1:{self.port}{path}", asked)
        S3SigV4Auth(BotoCredentials(ROOT, ROOT_SECRET), "s3", "us-east-1").add_auth(request)
        return dict(request.headers)

    @contextmanager
    def open(self) -> Iterator[str]:
        gate = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                if gate.is_expired(self.headers.get("x-amz-security-token", "")):
                    return self.answer(400, {"Content-Length": str(len(EXPIRED))}, EXPIRED)
                there = http.client.HTTPConnection("127.0.0.1", gate.port)
                there.request(self.command, self.path, headers=gate.signed(self.command, self.path, self.headers))
                found = there.getresponse()
                body = found.read()
                there.close()
                with gate.turn:
                    gate.passed += len(body) if "Range" in self.headers else 0
                return self.answer(found.status, dict(found.getheaders()), body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        with served(Handler) as url:
            yield url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("models", {f"v1/{path}": content for path, content in FILES.items()})
        server.client.put_object(Bucket="models", Key="v2/config.json", Body=b"{}", ChecksumAlgorithm="SHA256")
        yield server


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)


class Node:
    """A node's cache, and the Secret as it is now."""

    def __init__(self, folder: Path, data: dict[str, str], endpoint: str) -> None:
        self.cache = folder / "cache"
        self.given = Credentials("Secret reader", data, frozenset({endpoint}))

    def renew(self, **data: str) -> None:
        self.given = Credentials("Secret reader", {**self.given.data, **data}, self.given.endpoints)

    def obtain(self, source: Source) -> dict[str, bytes]:
        with Obtainer(Store(self.cache), lambda _: self.given).obtain(source, None, lambda _: None) as held:
            return read_all(held.path)

    def refused(self, source: Source) -> str:
        with pytest.raises(ArtifactError) as caught:
            self.obtain(source)
        assert caught.value.reason is Reason.ACCESS_DENIED
        return str(caught.value)


@pytest.mark.s3
@pytest.mark.timeout(120)
def test_a_session_that_expires_while_objects_come(server: S3Server, tmp_path: Path) -> None:
    gate = Gate(server.port)
    with gate.open() as url:
        node = Node(tmp_path, {**server.root.data, "AWS_SESSION_TOKEN": "first"}, url)
        place = S3Source(
            uri="s3://models/v1", endpoint=url, region="us-east-1", credentials=SecretReference(name="reader")
        )
        gate.expires_after = ("first", HALF)
        told = node.refused(Source(s3=place))
        assert "the credentials have expired (ExpiredToken)" in told
        assert "Secret reader" in told
        assert "first" not in told
        before = gate.passed
        assert "expired" in node.refused(Source(s3=place)), "and again, until it is renewed"
        node.renew(AWS_SESSION_TOKEN="second")
        assert node.obtain(Source(s3=place)) == FILES
        assert gate.passed <= SIZE + download.WINDOW * download.CHUNK
        assert gate.passed - before < SIZE, "what had come is not fetched again"


@pytest.mark.s3
@pytest.mark.timeout(120)
def test_a_session_that_expires_between_the_listing_and_the_checksums(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are asked for by HEAD, whose refusal has no words."""
    gate = Gate(server.port)
    with gate.open() as url:
        given = Credentials("Secret reader", {**server.root.data, "AWS_SESSION_TOKEN": "first"})
        remote = S3Remote(S3Source(uri="s3://models/v2", endpoint=url, region="us-east-1"), given)
        listing = remote._list

        def listed_then_expired() -> object:
            found = listing()
            gate.expired.add("first")
            return found

        monkeypatch.setattr(remote, "_list", listed_then_expired)
        with pytest.raises(ArtifactError, match=r"the credentials have expired \(ExpiredToken\)") as caught:
            remote.files()
        assert caught.value.reason is Reason.ACCESS_DENIED
        remote.close()


def test_a_token_that_is_revoked_while_files_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(dict(FILES), token="hf_first")
    with Hub({"acme/base": repository}) as hub:
        place = HuggingFaceSource(
            repo="acme/base", revision=repository.commit, endpoint=hub.url, credentials=SecretReference(name="reader")
        )
        node = Node(tmp_path, {"token": "hf_first"}, hub.url)
        real = hub.count

        def count(path: str, sent: int = 0) -> None:
            real(path, sent)
            if hub.sent >= HALF:
                repository.token = "hf_second"

        monkeypatch.setattr(hub, "count", count)
        told = node.refused(Source(hugging_face=place))
        assert "expired" in told
        assert "the token of Secret reader" in told
        assert "hf_" not in told
        before = hub.sent
        node.renew(token="hf_second")
        assert node.obtain(Source(hugging_face=place)) == FILES
        assert hub.sent - before < SIZE, "what had come is not fetched again"
        assert hub.leaks == []
