"""Objects under a prefix, on any server that speaks S3, by boto3.

Rules:
- An ETag says whether an object changed, never what its bytes are. ChecksumSHA256 does only where the server says that
  it covers the full object (that of an upload in parts covers the parts' checksums).
- Who asks, and how the server is reached: s3access.py.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
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
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import (
    MOST_FILES,
    MOST_PAGES,
    Credentials,
    RemoteFile,
    UnreachableError,
    changed,
    listed,
    pickle_beside,
    too_many,
    too_many_pages,
)
from tuneyard.systems.artifacts.s3access import EXPIRED, WRONG, S3Access, why

_PIECE = 1 << 19
_SMALL_PIECE = 1 << 14
_PIECE_SECONDS = 0.5
"""A piece comes when it is whole, or not at all: of a slow source it is as much as comes in this time."""
_HEADS = 16
_NOT_FOUND = frozenset({"NoSuchBucket", "NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_CHANGED = frozenset({"PreconditionFailed", "412", "InvalidRange", "416"})
_PASSING = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "BadDigest"})

_BROKEN = (HTTPClientError, NoConnectionError, IncompleteReadError, HTTPError, ConnectionError, TimeoutError)


class S3Remote:
    """The objects under one prefix; the folder's paths are their keys without it."""

    def __init__(self, source: S3Source, credentials: Credentials | None) -> None:
        self._at = S3Access(source, credentials)

    @property
    def identity(self) -> str:
        """Whose signature requests carry."""
        return self._at.identity

    @property
    def commit(self) -> str | None:
        """Objects have none."""
        return None

    def fingerprint(self) -> str:
        """Server, bucket and prefix."""
        return f"{self._at.endpoint or 'aws'} {self._at.what}"

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
            answer = self._at.client().get_object(
                Bucket=self._at.bucket,
                Key=self._at.prefix + file.path,
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
        self._at.close()

    @property
    def what(self) -> str:
        """The place, for messages."""
        return self._at.what

    def _list(self) -> tuple[dict[str, tuple[str, int, str]], list[str], str | None]:
        """(key, size, ETag) of every object by path, the paths whose SHA-256 the server may know, and a pickle."""
        found: dict[str, tuple[str, int, str]] = {}
        summed: list[str] = []
        pickle: str | None = None
        with self._errors(None):
            pages = self._at.client().get_paginator("list_objects_v2")
            for number, page in enumerate(pages.paginate(Bucket=self._at.bucket, Prefix=self._at.prefix)):
                if number == MOST_PAGES:
                    raise too_many_pages(self.what)
                for entry in page.get("Contents", []):
                    path = entry["Key"][len(self._at.prefix) :]
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
            found: dict[str, Any] = self._at.client().head_object(
                Bucket=self._at.bucket, Key=key, ChecksumMode="ENABLED"
            )
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 400:
                raise
            # A refusal without a body: whether it is an expired token only the answer to GET says.
            self._at.client().get_object(Bucket=self._at.bucket, Key=key, Range="bytes=0-0")["Body"].close()
            return {}
        return found

    @contextmanager
    def _errors(self, file: RemoteFile | None) -> Iterator[None]:
        """Make ArtifactErrors of whatever goes wrong; `file` was asked for, or the listing."""
        what = f"{self.what}{file.path if file else ''}"
        where = self._at.where
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
            raise UnreachableError(f"{where} cannot be read ({what}): {why(error)}") from None
        except (BotoCoreError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                Reason.SOURCE_UNREACHABLE, f"{where} cannot be asked for {what}: {why(error)}"
            ) from None

    def _refused(self, error: ClientError, what: str, file: RemoteFile | None) -> ArtifactError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in EXPIRED:
            text = f"the credentials have expired ({code}): {self._at.refused} may not read {what}; renew them"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        if code in _CHANGED and file is not None:
            return changed(file)
        if code in _NOT_FOUND or status == 404:
            there = f"the bucket {self._at.bucket}" if code == "NoSuchBucket" else what
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{there} does not exist: correct source.s3.uri")
        if code == "RequestTimeTooSkewed":
            return ArtifactError(Reason.ACCESS_DENIED, f"{what} cannot be read: this machine's clock is wrong ({code})")
        if code in _PASSING or status in (429, 408) or status >= 500:
            return UnreachableError(f"{self._at.where} answers {code or status} ({what})")
        if status in (401, 403) or code in WRONG:
            put_right = (
                "correct the Secret, or its rights" if self._at.has_keys else "give it the right, or name a Secret"
            )
            if self._at.anonymous:
                put_right = "let everybody read it, or name a Secret in place of anonymous"
            text = f"{self._at.refused} may not read {what} ({code or status}): {put_right}"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        text = f"{self._at.where} refuses {what} ({code or status}): check endpoint, region and uri"
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
