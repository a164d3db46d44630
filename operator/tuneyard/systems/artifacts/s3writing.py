"""Objects written under one prefix, on any server that speaks S3.

Rules:
- who asks, and how the server is reached: s3access.py;
- an object is whole or not there, and the same bytes under the same key may be written again;
- nothing is repeated here, and errors are told in words, without a secret and without what was to be written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    TokenRetrievalError,
)
from urllib3.exceptions import HTTPError

from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.s3access import EXPIRED, WRONG, S3Access, why

_log = logging.getLogger(__name__)

_PARTS = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=4)
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_THERE = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_UNKNOWN = frozenset({"NotImplemented", "501"})
"""Of servers that have no conditions for what is written."""


class S3Writer:
    """Writes objects under one prefix. Calls come from one thread at a time."""

    def __init__(self, target: S3Source, credentials: Credentials | None) -> None:
        """`target`: its `uri` names bucket and prefix; raises ArtifactError where the credentials are unfit."""
        self._at = S3Access(target, credentials)

    def put(self, name: str, body: bytes, kind: str = "application/x-ndjson") -> None:
        """Write one object, `name` is its key below the prefix; raises ArtifactError."""
        with self._errors(f"{self._at.what}{name}"):
            self._at.client().put_object(
                Bucket=self._at.bucket, Key=self._at.prefix + name, Body=body, ContentType=kind
            )

    def put_new(self, name: str, body: bytes, kind: str) -> bool:
        """Write one object if there is none of that name; False: there is one. Raises ArtifactError."""
        try:
            with self._errors(f"{self._at.what}{name}"):
                self._at.client().put_object(
                    Bucket=self._at.bucket, Key=self._at.prefix + name, Body=body, ContentType=kind, IfNoneMatch="*"
                )
        except ArtifactError as error:
            code = _code(error.__context__) if isinstance(error.__context__, ClientError) else ""
            if code in _UNKNOWN:
                self.put(name, body, kind)
                return True
            if code in _THERE:
                return False
            raise
        return True

    def try_writing(self, name: str) -> None:
        """Find out whether an object of that name could be written, and leave none; raises ArtifactError.

        An upload in parts is begun, which asks for the right to write and nothing else, and given up.
        """
        place = {"Bucket": self._at.bucket, "Key": self._at.prefix + name}
        with self._errors(f"{self._at.what}{name}"):
            begun = self._at.client().create_multipart_upload(**place)
        try:
            with self._errors(f"{self._at.what}{name}"):
                self._at.client().abort_multipart_upload(**place, UploadId=begun["UploadId"])
        except ArtifactError as error:
            # a right of its own, that nothing else needs; what stays has no bytes
            _log.info("an upload that was begun to find out whether it may be cannot be given up: %s", error)

    def put_file(self, name: str, file: Path, came: Callable[[int], None]) -> None:
        """Write one object of a file, a large one in parts; `came` hears of bytes, from other threads, and may raise.

        Raises ArtifactError.
        """
        # opened here: boto leaves its own file open where `came` raises
        with self._errors(f"{self._at.what}{name}"), file.open("rb") as body:
            self._at.client().upload_fileobj(
                body, self._at.bucket, self._at.prefix + name, Callback=came, Config=_PARTS
            )

    def get(self, name: str) -> bytes | None:
        """One small object, None where there is none; raises ArtifactError."""
        try:
            with self._errors(f"{self._at.what}{name}"):
                answer = self._at.client().get_object(Bucket=self._at.bucket, Key=self._at.prefix + name)
                found: bytes = answer["Body"].read()
                return found
        except ArtifactError as error:
            if isinstance(error.__context__, ClientError) and _code(error.__context__) in _ABSENT:
                return None
            raise

    def close(self) -> None:
        """Close the connections."""
        self._at.close()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Make ArtifactErrors of whatever goes wrong with an object."""
        try:
            yield
        except ClientError as error:
            raise self._refused(error, what) from None
        except S3UploadFailedError as error:
            cause = error.__context__
            if isinstance(cause, ClientError):
                raise self._refused(cause, what) from None
            text = f"{what} cannot be written at {self._at.where}: {type(cause or error).__name__}"
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound):
            text = f"there are no credentials for {what}: name a Secret, or give the service account a role"
            raise ArtifactError(Reason.CREDENTIALS_MISSING, text) from None
        except (CredentialRetrievalError, TokenRetrievalError) as error:
            text = f"{self._at.identity} got no credentials ({type(error).__name__}): check its role"
            raise ArtifactError(Reason.ACCESS_DENIED, text) from None
        except SSLError:
            text = f"the certificate of {self._at.where} is not trusted: name its authority's certificate"
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None
        except (BotoCoreError, HTTPError, OSError, ValueError) as error:
            text = f"{what} cannot be written at {self._at.where}: {why(error)}"
            raise ArtifactError(Reason.SOURCE_UNREACHABLE, text) from None

    def _refused(self, error: ClientError, what: str) -> ArtifactError:
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in EXPIRED:
            text = f"the credentials have expired ({code}): {self._at.refused} may not write {what}; renew them"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        if code == "NoSuchBucket":
            text = f"the bucket {self._at.bucket} does not exist: make it, or name another one"
            return ArtifactError(Reason.ARTIFACT_NOT_FOUND, text)
        if status in (401, 403) or code in WRONG:
            text = f"{self._at.refused} may not write {what} ({code or status}): give it the right s3:PutObject"
            return ArtifactError(Reason.ACCESS_DENIED, text)
        return ArtifactError(Reason.SOURCE_UNREACHABLE, f"{self._at.where} refuses to write {what} ({code or status})")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
