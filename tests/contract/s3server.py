"""A real S3 server (versitygw) on loopback, over a folder; objects are that folder's files.

Which of its users may do what is the server's business: the root user may everything, a user made by `reader` may only
what a bucket's policy allows.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config

from cluster import gobuild
from cluster.progress import Progress
from tests.contract.dying import die_with_parent
from tests.contract.ports import free_port
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.remote import Credentials

ROOT, ROOT_SECRET = "ROOTKEY0123456789012", "root-secret"


class S3Server:
    """The server; `with S3Server(folder) as server:`."""

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None) -> None:
        """`tls`: certificate and key."""
        self.folder = folder
        self.tls = tls
        self.port = free_port()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.root = Credentials.of_secret(
            "s3", {"AWS_ACCESS_KEY_ID": ROOT.encode(), "AWS_SECRET_ACCESS_KEY": ROOT_SECRET.encode()}
        )
        self._program = gobuild.ensure(["versitygw"], Progress())["versitygw"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for name in ("data", "users"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.start()
        self.client = self.client_of(ROOT, ROOT_SECRET)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.stop()

    def start(self) -> None:
        """Start it, again on the same port and folder, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            command = self.command(f"127.0.0.1:{self.port}")
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self.environment,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
            )
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                log_text = (self.folder / "server.log").read_text()
                assert self._process.poll() is None, log_text
                assert time.monotonic() < until, log_text
                time.sleep(0.02)

    def command(self, address: str) -> list[str]:
        """The command line that serves the folder at an address."""
        user = ["--access", ROOT, "--secret", ROOT_SECRET, "--iam-dir", str(self.folder / "users")]
        tls = ["--cert", str(self.tls[0]), "--key", str(self.tls[1])] if self.tls else []
        return [str(self._program), *tls, *user, "--port", address, "--quiet", "posix", str(self.folder / "data")]

    @property
    def environment(self) -> dict[str, str]:
        """All that it is told of this process's environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)}

    def stop(self) -> None:
        """End it; what it holds stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def client_of(self, key: str, secret: str) -> Any:
        """boto3's client of a user."""
        config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5})
        session = boto3.session.Session(key, secret, region_name="us-east-1")
        verify = str(self.tls[0]) if self.tls else None
        return session.client("s3", endpoint_url=self.url, verify=verify, config=config)

    def source(self, place: str, **more: Any) -> S3Source:
        """The source `s3://place`, on this server."""
        return S3Source(uri=f"s3://{place}", endpoint=self.url, region="us-east-1", **more)

    def bucket(self, name: str, files: dict[str, bytes] | None = None) -> None:
        """Make a bucket with objects."""
        self.client.create_bucket(Bucket=name)
        for key, content in (files or {}).items():
            self.client.put_object(Bucket=name, Key=key, Body=content)

    def allow_all_to_read(self, bucket: str) -> None:
        """Let everybody list and read, without a signature."""
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


@contextmanager
def bucket_server(bucket: str) -> Iterator[S3Server]:
    """A server with one bucket, for as long as a test file needs it."""
    with tempfile.TemporaryDirectory(prefix="s3-") as folder, S3Server(Path(folder)) as server:
        server.bucket(bucket)
        yield server
