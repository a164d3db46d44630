"""A source as one word, as people type it and read it: `s3://…`, `hf://REPO@REVISION`, `volume:NAME/PATH`. Pure.

An image (`image:REFERENCE//PATH`) and a build (`build:merge+quantize`) are only read: adapters, for which people type
sources, do not come as one.
"""

from __future__ import annotations

from tuneyard.api.build import BaseSource
from tuneyard.api.sources import HuggingFaceSource, S3Source, Source, VolumeSource

FORMS = "s3://BUCKET/PREFIX, hf://REPO@COMMIT or volume:NAME/PATH"


def source_text(source: Source) -> str:
    """The word for a source; credentials and endpoints are left out."""
    build = source.build if isinstance(source, BaseSource) else None
    if build is not None:
        return f"build:{'+'.join(step.kind or '?' for step in build.steps)}"
    if source.hugging_face is not None:
        return f"hf://{source.hugging_face.repo}@{source.hugging_face.revision}"
    if source.s3 is not None:
        return source.s3.uri
    if source.image is not None:
        return f"image:{source.image.reference}" + (f"//{source.image.path}" if source.image.path else "")
    return f"volume:{source.volume.name}/{source.volume.path}" if source.volume else ""


def parsed_source(text: str) -> Source:
    """The source that a word names; ValueError says which forms there are."""
    if text.startswith("s3://"):
        return Source(s3=S3Source(uri=text))
    if text.startswith("hf://"):
        repo, _, revision = text.removeprefix("hf://").partition("@")
        if not revision:
            raise ValueError(f"{text} names no commit: write hf://{repo}@COMMIT")
        return Source(hugging_face=HuggingFaceSource(repo=repo, revision=revision))
    name, slash, path = text.removeprefix("volume:").partition("/")
    if not text.startswith("volume:") or not slash:
        raise ValueError(f"{text} is no source: write {FORMS}")
    return Source(volume=VolumeSource(name=name, path=path))
