"""Sources as a user names them on the command line, and credentials as their tools find them: in the environment.

`hf://owner/repo@revision` and `s3://bucket/prefix/`. Tokens and keys come from HF_TOKEN and AWS_*, or AWS's own files;
they are never arguments, because everybody on a machine sees those. HF_TOKEN is for huggingface.co, for HF_ENDPOINT and
for a hub that the command line names; a manifest may be anybody's, and must not choose where the token goes.
"""

from __future__ import annotations

import os

from pydantic import ValidationError

from tuneyard.api.sources import HuggingFaceSource, S3Source, Source
from tuneyard.cli.errors import UserError
from tuneyard.systems.artifacts.remote import Credentials, Remote, remote_of

_DEFAULT_REVISION = "main"
_PUBLIC_HUB = "https://huggingface.co"


def is_remote(text: str) -> bool:
    """Whether the text names a remote source rather than a folder."""
    return text.startswith(("hf://", "s3://"))


def parse_source(text: str, endpoint: str | None = None, region: str | None = None, anonymous: bool = False) -> Source:
    """The source that `hf://…` or `s3://…` names; raises UserError."""
    try:
        if text.startswith("s3://"):
            return Source(s3=S3Source(uri=text, endpoint=endpoint, region=region, anonymous=anonymous or None))
        repo, _, revision = text.removeprefix("hf://").partition("@")
        hub = HuggingFaceSource(repo=repo, revision=revision or _DEFAULT_REVISION, endpoint=endpoint)
    except ValidationError as error:
        raise UserError(f"{text} is no source: write hf://owner/repo@revision or s3://bucket/prefix/", 2) from error
    return Source(hugging_face=hub)


def remote_from_environment(source: Source, anonymous: bool = False, *, of_a_file: bool = False) -> Remote:
    """The remote of a source, asked with what the environment holds in place of the Secret that it may name.

    `of_a_file`: its endpoint is not the user's own word.
    """
    own = {"credentials": None}
    if source.hugging_face is not None:
        token = "" if anonymous or (of_a_file and not _is_own_hub(source.hugging_face.endpoint)) else _hub_token()
        given = Credentials("the environment (HF_TOKEN)", {"token": token}) if token else None
        return remote_of(Source(hugging_face=source.hugging_face.model_copy(update=own)), given)
    if source.s3 is None:
        raise ValueError("a volume is not remote")
    # boto3 looks through the environment by itself
    return remote_of(Source(s3=source.s3.model_copy(update=own)), None)


def _hub_token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()


def _is_own_hub(endpoint: str | None) -> bool:
    """Whether a hub is one that the environment's token is for."""
    own = (_PUBLIC_HUB, os.environ.get("HF_ENDPOINT", ""))
    return endpoint is None or endpoint.rstrip("/") in [known.rstrip("/") for known in own]
