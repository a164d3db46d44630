"""Where a build keeps its results: `BaseModel.spec.source.build.output`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import ObjectName, cel, exactly_one
from tuneyard.api.sources import (
    BUCKET_PATTERN,
    REPOSITORY_PATTERN,
    BucketRegion,
    BucketServer,
    HuggingFaceSource,
    S3Source,
    SecretReference,
    Source,
    Url,
    VolumeSource,
)

BUILT_VOLUME = "tuneyard-built"
"""Name of the volume of a pool that serves what was built onto a claim: no volume of artifactVolumes may have it."""


class OutputVolume(ApiModel):
    """A folder on a PersistentVolumeClaim of the namespace; pools that serve the result mount it read-only."""

    claim_name: ObjectName
    path: Annotated[
        str | None,
        Field(max_length=512, pattern=r"^[^/].*$", description="Folder on the volume; default: its root."),
    ] = None


class OutputBucket(ApiModel):
    """A prefix of a bucket, on any server that speaks S3."""

    uri: Annotated[
        str,
        Field(
            max_length=900,
            pattern=BUCKET_PATTERN,
            description="For example s3://models/built/: results get folders of their own below it.",
        ),
    ]
    endpoint: BucketServer = None
    region: BucketRegion = None
    credentials: Annotated[
        SecretReference | None,
        Field(description="As of an S3 source; they must allow to write, and to read by the pools' agents."),
    ] = None


class OutputRepository(ApiModel):
    """A model repository of the Hugging Face Hub, or of a mirror of it, that there is already."""

    repo: Annotated[
        str,
        Field(
            max_length=193,
            pattern=REPOSITORY_PATTERN,
            description="Each result replaces the model on its branch main: other files of a model go, documents and the "
            "history stay.",
        ),
    ]
    endpoint: Annotated[Url | None, Field(description="A mirror; default: https://huggingface.co.")] = None
    credentials: Annotated[SecretReference, Field(description="Secret with the key token, which may write.")]


class BuildOutput(ApiModel):
    """Where what is built is kept: exactly one kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                exactly_one("build.output", "volume", "s3", "huggingFace"),
                cel(
                    "!has(self.volume) || !has(self.volume.path) || "
                    "!self.volume.path.split('/').exists(p, p == '..' || p == '.')",
                    "build.output.volume.path may not hold '.' or '..': name the folder as it is",
                ),
                cel(
                    "!has(self.s3) || !self.s3.uri.split('/').exists(p, p == '..' || p == '.')",
                    "build.output.s3.uri may not hold '.' or '..': name the prefix as it is",
                ),
            ]
        }
    )

    volume: OutputVolume | None = None
    s3: OutputBucket | None = None
    hugging_face: OutputRepository | None = None

    @property
    def credentials(self) -> str | None:
        """Name of the Secret that writing to it takes, None for none."""
        remote = self.hugging_face or self.s3
        return remote.credentials.name if remote and remote.credentials else None

    def place(self, key: str) -> str:
        """Where the result of a key is, for people."""
        if self.volume is not None:
            return f"{self.volume.claim_name}:{_below(self.volume.path, key)}"
        if self.s3 is not None:
            return f"{self.s3.uri.rstrip('/')}/{key}/"
        return f"{self.hugging_face.repo}@tuneyard-{key}" if self.hugging_face else ""

    def source(self, key: str, commit: str | None = None) -> Source | None:
        """The result of a key as what a pool can serve; of a hub it takes the commit. None: of no kind known here."""
        if self.volume is not None:
            return Source(volume=VolumeSource(name=BUILT_VOLUME, path=_below(self.volume.path, key)))
        if self.s3 is not None:
            given = self.s3.model_copy(update={"uri": self.place(key)}).to_dict()
            return Source(s3=S3Source.from_dict(given))
        if self.hugging_face is not None and commit is not None:
            pinned = {**self.hugging_face.to_dict(), "revision": commit}
            return Source(hugging_face=HuggingFaceSource.from_dict(pinned))
        return None


def _below(path: str | None, key: str) -> str:
    return f"{path.rstrip('/')}/{key}" if path else key
