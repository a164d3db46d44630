"""Objects written under one prefix, on any server that speaks S3.

Rules:
- who asks, and how the server is reached: s3access.py;
- an object is whole or not there, and the same bytes under the same key may be written again;
- nothing is repeated here, and errors are told in words, without a secret and without what was to be written.
"""

from __future__ import annotations

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


class S3Writer:
    """Writes objects under one prefix. Calls come from one thread at a time."""

    def __init__(self, target: S3Source, credentials: Credentials | None) -> None:
        """`target`: its `uri` names bucket and prefix; raises ArtifactError where the credentials are unfit."""
        self._at = S3Access(target, credentials)

    def put(self, name: str, body: bytes) -> None:
        """Write one object, `name` is its key below the prefix; raises ArtifactError."""
        what = f"{self._at.what}{name}"
        try:
            self._at.client().put_object(
                Bucket=self._at.bucket, Key=self._at.prefix + name, Body=body, ContentType="application/x-ndjson"
            )
        except ClientError as error:
            raise self._refused(error, what) from None
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

    def close(self) -> None:
        """Close the connections."""
        self._at.close()

    def _refused(self, error: ClientError, what: str) -> ArtifactError:
        code = str(error.response.get("Error", {}).get("Code", ""))
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
