"""Where a gateway writes feedback, as its pod says by environment.

| variable | meaning | default |
|---|---|---|
| TUNEYARD_FEEDBACK_URI | s3://BUCKET/PREFIX; without it feedback is not exported | none |
| TUNEYARD_FEEDBACK_ENDPOINT, TUNEYARD_FEEDBACK_REGION | the server, where it is not Amazon's, and its region | none |
| TUNEYARD_FEEDBACK_ANONYMOUS | true: write without a signature | false |
| TUNEYARD_FEEDBACK_SECRET | name of the Secret that is to be used; without one the pod's identity is | none |
| TUNEYARD_FEEDBACK_CREDENTIALS | folder with that Secret's files, and with ca.crt of a private authority | none |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source
from tuneyard.gateway.feedbackexport import Writer
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials


@dataclass(frozen=True)
class FeedbackTarget:
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


def feedback_target(environment: Mapping[str, str]) -> FeedbackTarget | None:
    """The target that the environment names, None for none; ValueError where it is no place."""
    uri = environment.get("TUNEYARD_FEEDBACK_URI")
    if not uri:
        return None
    place = S3Source(
        uri=uri,
        endpoint=environment.get("TUNEYARD_FEEDBACK_ENDPOINT") or None,
        region=environment.get("TUNEYARD_FEEDBACK_REGION") or None,
        anonymous=environment.get("TUNEYARD_FEEDBACK_ANONYMOUS") == "true" or None,
    )
    folder = environment.get("TUNEYARD_FEEDBACK_CREDENTIALS")
    return FeedbackTarget(place, environment.get("TUNEYARD_FEEDBACK_SECRET") or "", Path(folder) if folder else None)
