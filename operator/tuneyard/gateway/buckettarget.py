"""Where a gateway writes what it exports, as its pod says by environment: TUNEYARD_FEEDBACK_…, TUNEYARD_USAGE_….

| variable ends in | meaning | default |
|---|---|---|
| URI | s3://BUCKET/PREFIX; without it nothing is exported | none |
| ENDPOINT, REGION | the server, where it is not Amazon's, and its region | none |
| ANONYMOUS | true: write without a signature | false |
| SECRET | name of the Secret that is to be used; without one the pod's identity is | none |
| CREDENTIALS | folder with that Secret's files, and with ca.crt of a private authority | none |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.gateway.bucketwriting import Writer
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials


@dataclass(frozen=True)
class BucketTarget:
    """A prefix of a bucket, and how it may be written to."""

    place: S3Source
    secret: str = ""
    folder: Path | None = None

    def open(self) -> Writer:
        """A writer with the credentials of now; raises ArtifactError."""
        from tuneyard.systems.artifacts.s3access import KEY_ID, SECRET_KEY  # noqa: PLC0415 -- only who exports needs boto3
        from tuneyard.systems.artifacts.s3writing import S3Writer  # noqa: PLC0415

        found = self._files()
        given = (
            Credentials.of_secret(self.secret, found) if self.secret else Credentials("the ConfigMap", _texts(found))
        )
        if self.secret and not self.place.anonymous:
            given.need(KEY_ID, SECRET_KEY)  # else its absence would be the pod's identity
        return S3Writer(self.place, given if given.data or self.secret else None)

    def _files(self) -> dict[str, bytes]:
        if self.folder is None:
            return {}
        try:
            return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.is_file()}
        except OSError as error:  # while the kubelet puts others in their place
            text = f"{self.folder} cannot be read: {error.strerror}"
            raise ArtifactError(Reason.CREDENTIALS_MISSING, text) from None


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: content.decode(errors="replace") for name, content in files.items()}


def bucket_target(environment: Mapping[str, str], what: str) -> BucketTarget | None:
    """The target that the environment names for `what` (FEEDBACK, USAGE), None for none; raises ValueError."""

    def told(name: str) -> str:
        return environment.get(f"TUNEYARD_{what}_{name}") or ""

    if not told("URI"):
        return None
    place = S3Source(
        uri=told("URI"),
        endpoint=told("ENDPOINT") or None,
        region=told("REGION") or None,
        anonymous=told("ANONYMOUS") == "true" or None,
    )
    folder = told("CREDENTIALS")
    return BucketTarget(place, told("SECRET"), Path(folder) if folder else None)
