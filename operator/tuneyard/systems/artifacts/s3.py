"""Objects under a prefix, on any server that speaks S3, by boto3.

Rules:
- An ETag says whether an object changed, never what its bytes are. ChecksumSHA256 does only where the server says that
  it covers the full object (that of an upload in parts covers the parts' checksums).
- Without a Secret the identity is whatever the pod has (a service account by web identity, an instance role);
  with one it is the Secret's and nothing else, whatever the environment holds.
- A server of one's own is asked with the bucket in the path: its name has no wildcard certificate or DNS entry.
- boto3 repeats nothing here: whoever asks does, and counts.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError

from tuneyard.api.digests import matters_for_serving
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.awsidentity import asked_identity, shown, told_identity
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import (
    CA,
    CONNECT_SECONDS,
    MOST_FILES,
    MOST_PAGES,
    READ_SECONDS,
    Credentials,
    RemoteFile,
    UnreachableError,
    authority_of,
    changed,
    listed,
    pickle_beside,
    too_many,
    too_many_pages,
)

_KEY_ID, _SECRET_KEY, _SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
_PIECE = 1 << 19
_SMALL_PIECE = 1 << 14
_PIECE_SECONDS = 0.5
"""A piece comes when it is whole, or not at all: of a slow source it is as much as comes in this time."""
_HEADS = 16
_DEFAULT_REGION = "us-east-1"
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_WRONG = frozenset({"InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "UnrecognizedClientException"})
_NOT_FOUND = frozenset({"NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_PASSING = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "BadDigest"})

_BROKEN = (HTTPClientError, NoConnectionError, IncompleteReadError, HTTPError, ConnectionError, TimeoutError)


class S3Remote:
    """The objects under one prefix; the folder's paths are their keys without it."""

    def __init__(self, source: S3Source, credentials: Credentials | None) -> None:
        self._source = source
        self._anonymous = bool(source.anonymous)
        self._credentials = credentials
        self._private = authority_of(credentials)
        self._keys: dict[str, str] = {}
        if credentials is not None and not self._anonymous and not _only_authority(credentials):
            key, secret = credentials.need(_KEY_ID, _SECRET_KEY)
            self._keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
            if credentials.data.get(_SESSION_TOKEN):
                [self._keys["aws_session_token"]] = credentials.need(_SESSION_TOKEN)
        # not by a parser of URLs: '?' and '#' are parts of a key, and what they cut off leads to other objects
        self._bucket, _, self._prefix = source.uri.removeprefix("s3://").partition("/")
        if self._prefix and not self._prefix.endswith("/"):
            self._prefix += "/"  # `v1` is not `v10`
        self._authority: Path | None = None
        self._made: Any = None
        self._session: Any = None
        self._making = threading.Lock()

    @property
    def identity(self) -> str:
        """Whose signature requests carry."""
        if self._anonymous:
            return "anonymous"
        if self._keys and self._credentials is not None:
            return f"access key {shown(self._keys['aws_access_key_id'])} of {self._credentials.origin}"
        return told_identity()

    @property
    def commit(self) -> str | None:
        """Objects have none."""
        return None

    def fingerprint(self) -> str:
        """Server, bucket and prefix."""
        return f"{self._source.endpoint or 'aws'} s3://{self._bucket}/{self._prefix}"

    def files(self) -> list[RemoteFile]:
        """All objects under the prefix, with the SHA-256 of those of which the server knows it as a whole."""
        found, summed, pickle = self._list()
        with ThreadPoolExecutor(_HEADS) as pool:
            known = dict(zip(summed, pool.map(self._sha256, [found[path] for path in summed]), strict=True))
        files = [RemoteFile(path, size, known.get(path), version) for path, (_, size, version) in found.items()]
        return listed(self.what, files, pickle)

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        """A range of one object, if it still has the ETag that was listed."""
        with self._errors(file):
            answer = self._client().get_object(
                Bucket=self._bucket,
                Key=self._prefix + file.path,
                Range=f"bytes={begin}-{end - 1}",
                IfMatch=file.version,
            )
            body = answer["Body"]
            try:
                # Not every server knows If-Match.
                if answer.get("ETag") != file.version or not str(answer.get("ContentRange")).endswith(f"/{file.size}"):
                    raise changed(file)
                yield from _pieces(body)
            finally:
                body.close()

    def close(self) -> None:
        """Close the connections."""
        with self._making:
            if self._made is not None:
                self._made.close()
            if self._authority is not None:
                self._authority.unlink(missing_ok=True)

    @property
    def what(self) -> str:
        """The place, for messages."""
        return f"s3://{self._bucket}/{self._prefix}"

    def _client(self) -> Any:
        """The client, made when first needed: looking for an identity may ask the network."""
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        config: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
            "response_checksum_validation": "when_required",  # ranges have none
        }
        if self._source.endpoint is not None:
            config["s3"] = {"addressing_style": "path"}
        if self._anonymous:
            config["signature_version"] = UNSIGNED
        self._session = session = boto3.session.Session(region_name=self._source.region, **self._keys)
        return session.client(
            "s3",
            endpoint_url=self._source.endpoint,
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

    def _list(self) -> tuple[dict[str, tuple[str, int, str]], list[str], str | None]:
        """(key, size, ETag) of every object by path, the paths whose SHA-256 the server may know, and a pickle."""
        found: dict[str, tuple[str, int, str]] = {}
        summed: list[str] = []
        pickle: str | None = None
        with self._errors(None):
            pages = self._client().get_paginator("list_objects_v2")
            for number, page in enumerate(pages.paginate(Bucket=self._bucket, Prefix=self._prefix)):
                if number == MOST_PAGES:
                    raise too_many_pages(self.what)
                for entry in page.get("Contents", []):
                    path = entry["Key"][len(self._prefix) :]
                    pickle = pickle or pickle_beside(path)
                    if not path or (path.endswith("/") and not entry["Size"]) or not matters_for_serving(path):
                        continue  # such as what consoles leave where somebody made a folder
                    found[path] = (entry["Key"], entry["Size"], entry["ETag"])
                    if "SHA256" in entry.get("ChecksumAlgorithm", ()) and entry.get("ChecksumType") != "COMPOSITE":
                        summed.append(path)
                if len(found) > MOST_FILES:
                    raise too_many(self.what)
        return found, summed, pickle

    def _sha256(self, found: tuple[str, int, str]) -> str | None:
        """The SHA-256 of a whole object as hex, where the server has it and it covers the object."""
        key, _, version = found
        with self._errors(None):
            head = self._head(key)
        text = head.get("ChecksumSHA256", "")
        if head.get("ChecksumType") != "FULL_OBJECT" or head.get("ETag") != version or "-" in text:
            return None
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            return None
        return raw.hex() if len(raw) == 32 else None

    def _head(self, key: str) -> dict[str, Any]:
        """What HEAD says of an object; raises ClientError that has words."""
        try:
            found: dict[str, Any] = self._client().head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 400:
                raise
            # A refusal without a body: whether it is an expired token only the answer to GET says.
            self._client().get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0")["Body"].close()
            return {}
        return found

    @property
    def _who(self) -> str:
        """Whose signature was refused, with what AWS calls it."""
        if self._anonymous or self._keys or self._session is None:
            return self.identity
        return asked_identity(self._session, self._source.endpoint)

    @contextmanager
    def _errors(self, file: RemoteFile | None) -> Iterator[None]:
        """Make ArtifactErrors of whatever goes wrong; `file` was asked for, or the listing."""
        what = f"{self.what}{file.path if file else ''}"
        where = self._source.endpoint or "Amazon S3"
        try:
            yield
        except ClientError as error:
            raise self._refused(error, what, file) from None
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound):
            text = f"there are no credentials for {what}: name a Secret in source.s3.credentials, give the agents' "
            text += "service account a role, or set anonymous: true"
            raise ArtifactError(Reason.CREDENTIALS_MISSING, text) from None
        except (CredentialRetrievalError, TokenRetrievalError) as error:
            text = f"{self.identity} got no credentials ({type(error).__name__}): check its role"
            raise ArtifactError(Reason.ACCESS_DENIED, text) from None
        except SSLError:
            text = f"the certificate of {where} is not trusted: put its authority into ca.crt of the Secret"
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None
        except _BROKEN as error:
            raise UnreachableError(f"{where} cannot be read ({what}): {_why(error)}") from None
        except (BotoCoreError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                Reason.SOURCE_UNREACHABLE, f"{where} cannot be asked for {what}: {_why(error)}"
            ) from None

    def _refused(self, error: ClientError, what: str, file: RemoteFile | None) -> ArtifactError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _EXPIRED:
            text = f"the credentials have expired ({code}): {self._who} may not read {what}; renew them"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        if code in _CHANGED and file is not None:
            return changed(file)
        if code in _NOT_FOUND or status == 404:
            there = f"the bucket {self._bucket}" if code == "NoSuchBucket" else what
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{there} does not exist: correct source.s3.uri")
        if code == "RequestTimeTooSkewed":
            return ArtifactError(Reason.ACCESS_DENIED, f"{what} cannot be read: this machine's clock is wrong ({code})")
        if code in _PASSING or status in (429, 408) or status >= 500:
            return UnreachableError(f"{self._source.endpoint or 'Amazon S3'} answers {code or status} ({what})")
        if status in (401, 403) or code in _WRONG:
            put_right = "correct the Secret, or its rights" if self._keys else "give it the right, or name a Secret"
            if self._anonymous:
                put_right = "let everybody read it, or name a Secret in place of anonymous"
            text = f"{self._who} may not read {what} ({code or status}): {put_right}"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        text = (
            f"{self._source.endpoint or 'Amazon S3'} refuses {what} ({code or status}): check endpoint, region and uri"
        )
        return ArtifactError(Reason.SOURCE_UNREACHABLE, text)


def _pieces(body: Any) -> Iterator[bytes]:
    size = _SMALL_PIECE
    while True:
        asked = time.monotonic()
        piece: bytes = body.read(size)
        if not piece:
            return
        in_time = len(piece) * _PIECE_SECONDS / max(time.monotonic() - asked, 1e-6)
        size = max(_SMALL_PIECE, min(_PIECE, 2 * size, int(in_time)))
        yield piece


def _only_authority(credentials: Credentials) -> bool:
    return CA in credentials.data and not {_KEY_ID, _SECRET_KEY} & credentials.data.keys()


def _why(error: Exception) -> str:
    """An error in few words; what some say holds a signed address, so only the kind of those."""
    if isinstance(error, EndpointConnectionError):
        return "no connection"
    text = str(error)
    return type(error).__name__ if "?" in text or "X-Amz" in text or len(text) > 300 else text
