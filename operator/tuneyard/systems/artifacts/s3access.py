"""A place on a server that speaks S3, and boto3's client for it: for whoever reads there or writes.

Rules:
- Without a Secret the identity is whatever the pod has (a service account by web identity, an instance role);
  with one it is the Secret's and nothing else, whatever the environment holds.
- A server of one's own is asked with the bucket in the path: its name has no wildcard certificate or DNS entry.
- boto3 repeats nothing here: whoever asks does, and counts.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.awsidentity import asked_identity, shown, told_identity
from tuneyard.systems.artifacts.remote import CA, CONNECT_SECONDS, READ_SECONDS, Credentials, authority_of

KEY_ID, SECRET_KEY = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
_SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105 -- the name of a key
_DEFAULT_REGION = "us-east-1"

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
WRONG = frozenset({"InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "UnrecognizedClientException"})
"""What servers call credentials that are over, and those that are none of theirs."""


class S3Access:
    """One prefix of one bucket, and whose signature requests carry."""

    def __init__(self, source: S3Source, credentials: Credentials | None) -> None:
        """Nothing is asked over the network yet; raises ArtifactError where the credentials are unfit."""
        self.endpoint = source.endpoint
        self.anonymous = bool(source.anonymous)
        self._region = source.region
        self._credentials = credentials
        self._private = authority_of(credentials)
        self._keys: dict[str, str] = {}
        if credentials is not None and not self.anonymous and not _only_authority(credentials):
            key, secret = credentials.need(KEY_ID, SECRET_KEY)
            self._keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
            if credentials.data.get(_SESSION_TOKEN):
                [self._keys["aws_session_token"]] = credentials.need(_SESSION_TOKEN)
        # not by a parser of URLs: '?' and '#' are parts of a key, and what they cut off leads to other objects
        self.bucket, _, self.prefix = source.uri.removeprefix("s3://").partition("/")
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"  # `v1` is not `v10`
        self._authority: Path | None = None
        self._made: Any = None
        self._session: Any = None
        self._making = threading.Lock()

    @property
    def what(self) -> str:
        """The place, for messages."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def where(self) -> str:
        """The server, for messages."""
        return self.endpoint or "Amazon S3"

    @property
    def has_keys(self) -> bool:
        """Whether a Secret's keys sign the requests."""
        return bool(self._keys)

    @property
    def identity(self) -> str:
        """Whose signature requests carry."""
        if self.anonymous:
            return "anonymous"
        if self._keys and self._credentials is not None:
            return f"access key {shown(self._keys['aws_access_key_id'])} of {self._credentials.origin}"
        return told_identity()

    @property
    def refused(self) -> str:
        """Whose signature was refused, with what AWS calls it."""
        if self.anonymous or self._keys or self._session is None:
            return self.identity
        return asked_identity(self._session, self.endpoint)

    def client(self) -> Any:
        """The client, made when first needed: looking for an identity may ask the network."""
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def close(self) -> None:
        """Close the connections."""
        with self._making:
            if self._made is not None:
                self._made.close()
            if self._authority is not None:
                self._authority.unlink(missing_ok=True)

    def _make(self) -> Any:
        config: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
            "response_checksum_validation": "when_required",  # ranges have none
            # else what is written comes in chunks with a trailing checksum, which not every server takes
            "request_checksum_calculation": "when_required",
        }
        if self.endpoint is not None:
            config["s3"] = {"addressing_style": "path"}
        if self.anonymous:
            config["signature_version"] = UNSIGNED
        self._session = session = boto3.session.Session(region_name=self._region, **self._keys)
        return session.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=session.region_name or _DEFAULT_REGION,
            verify=self._verify(),
            config=Config(**config),
        )

    def _verify(self) -> str | None:
        """The file of the Secret's authority; botocore takes nothing but a file."""
        if self._private is None:
            return None
        handle, name = tempfile.mkstemp(prefix="tuneyard-ca-")
        os.close(handle)
        self._authority = Path(name)
        self._authority.write_text(self._private)
        return name


def why(error: Exception) -> str:
    """An error in few words; what some say holds a signed address, so only the kind of those."""
    if isinstance(error, EndpointConnectionError):
        return "no connection"
    text = str(error)
    return type(error).__name__ if "?" in text or "X-Amz" in text or len(text) > 300 else text


def _only_authority(credentials: Credentials) -> bool:
    return CA in credentials.data and not {KEY_ID, SECRET_KEY} & credentials.data.keys()
