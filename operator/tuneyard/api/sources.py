"""Where an artifact's files come from, and how a pod may keep what it has fetched.

Credentials are named, never held: agents read the Secret at the moment they load, so that a new one needs no restart.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import Name, ObjectName, cel, exactly_one

COMMIT_PATTERN = r"^[0-9a-f]{40}$"
"""A Git commit: the only revision on a hub that cannot move."""
REPOSITORY_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$"
"""A repository on a hub."""
BUCKET_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"
"""A bucket, or a prefix in it."""

Url = Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]


BucketServer = Annotated[Url | None, Field(description="The server; default: Amazon's.")]
BucketRegion = Annotated[str | None, Field(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]


class VolumeSource(ApiModel):
    """Files on a volume that the pool declares in serving.artifactVolumes."""

    name: Name
    path: Annotated[
        str,
        Field(max_length=1024, pattern=r"^[^/].*$", description="Folder on the volume, relative to its root."),
    ]


class SecretReference(ApiModel):
    """A Secret of the same namespace."""

    name: ObjectName


class HuggingFaceSource(ApiModel):
    """A repository of the Hugging Face Hub, or of a mirror of it."""

    repo: Annotated[
        str,
        Field(
            max_length=193,
            pattern=REPOSITORY_PATTERN,
            description="For example meta-llama/Llama-3.1-8B-Instruct.",
        ),
    ]
    revision: Annotated[
        str,
        Field(
            max_length=200,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
            description="A commit (40 hex digits); a branch or a tag only together with spec.digest.",
        ),
    ]
    endpoint: Annotated[Url | None, Field(description="A mirror; default: https://huggingface.co.")] = None
    credentials: Annotated[
        SecretReference | None, Field(description="Secret with the key token, and ca.crt for a private authority.")
    ] = None


class S3Source(ApiModel):
    """Objects under one prefix of a bucket, on any server that speaks S3."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!self.uri.split('/').exists(p, p == '..' || p == '.')",
                    "source.s3.uri may not hold '.' or '..': name the prefix as it is",
                )
            ]
        }
    )

    uri: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=BUCKET_PATTERN,
            description="For example s3://models/acme-support/v3/: every object under the prefix.",
        ),
    ]
    endpoint: BucketServer = None
    region: BucketRegion = None
    credentials: Annotated[
        SecretReference | None,
        Field(
            description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, ca.crt. Default: "
            "the identity of the agents' service account."
        ),
    ] = None
    anonymous: Annotated[bool | None, Field(description="Ask without a signature. Default false.")] = None


class ImageSource(ApiModel):
    """An OCI image that holds the files, mounted by the kubelet as an image volume (Kubernetes 1.35 or newer)."""

    reference: Annotated[
        str,
        Field(
            max_length=512,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
            description="For example registry.example/models/llama@sha256:…; a tag only together with spec.digest.",
        ),
    ]
    path: Annotated[
        str | None,
        Field(max_length=1024, pattern=r"^[^/].*$", description="Folder in the image; default: its root."),
    ] = None


class Source(ApiModel):
    """Where an artifact's files are: exactly one kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                exactly_one("source", "volume", "huggingFace", "s3", "image"),
                cel(
                    "!has(self.volume) || !self.volume.path.split('/').exists(p, p == '..')",
                    "source.volume.path may not leave the volume: remove '..'",
                ),
                cel(
                    "!has(self.image) || !has(self.image.path) || !self.image.path.split('/').exists(p, p == '..')",
                    "source.image.path may not leave the image: remove '..'",
                ),
            ]
        }
    )

    volume: VolumeSource | None = None
    hugging_face: HuggingFaceSource | None = None
    s3: S3Source | None = None
    image: Annotated[ImageSource | None, Field(description="Of base models only.")] = None

    @property
    def credentials(self) -> str | None:
        """Name of the Secret that reading it takes, None for none."""
        remote = self.hugging_face or self.s3
        return remote.credentials.name if remote and remote.credentials else None

    @property
    def is_known(self) -> bool:
        """Whether this version knows its kind; newer ones may have more."""
        return any(kind is not None for kind in (self.volume, self.hugging_face, self.s3, self.image))

    @property
    def is_remote(self) -> bool:
        """Whether pods fetch the files over the network themselves."""
        return self.hugging_face is not None or self.s3 is not None


PINNED_IMAGE = cel(
    "!has(self.source.image) || self.source.image.reference.contains('@sha256:') || has(self.digest)",
    "source.image.reference must name a digest (@sha256:…), because tags move: add it, or give spec.digest",
)
NO_IMAGE = cel(
    "!has(self.source.image)",
    "an adapter cannot come as an image, because running pods gain no volume: use huggingFace, s3 or volume",
)
PINNED = cel(
    f"!has(self.source.huggingFace) || self.source.huggingFace.revision.matches('{COMMIT_PATTERN}') || has(self.digest)",
    "source.huggingFace.revision must be a commit (40 hex digits), because branches and tags move: run `tuneyard pin "
    "FILE`, or give spec.digest",
)
"""The rule of a spec that has `source` and `digest`."""
