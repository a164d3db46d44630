"""Feedback as it leaves the cluster: one record of what a user thought of one answer.

Rules:
- records are lines of JSON, camelCase, UTF-8, each ended by a line feed; a reader ignores fields that it does not know;
- `text` is the only thing in it that somebody wrote freely. Prompts and answers are not there: Tuneyard does not keep
  them. `requestId` is what joins a record with the application's own log.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import Digest

MAX_TEXT_BYTES = 4096
"""Of UTF-8."""


def _short(text: str) -> str:
    # not Pydantic's max_length, which counts characters
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"text is longer than {MAX_TEXT_BYTES} bytes")
    return text


class FeedbackRecord(ApiModel):
    """What one user thought of one answer, and which revision gave it."""

    time: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$")]
    """When the feedback was given, in UTC."""
    request_id: Annotated[str, Field(min_length=1, max_length=256)]
    """The answer's header x-request-id."""
    model: str
    """The name that the client asked for."""
    deployment: str
    """`namespace/name` of the ModelDeployment."""
    revision: str
    adapter: str | None = None
    """The LoRAAdapter that answered; None where the revision serves a base itself, or is another one by now."""
    adapter_digest: Digest | None = None
    score: Annotated[float, Field(ge=-1, le=1)]
    """-1 is as bad, 1 as good as can be."""
    text: Annotated[Annotated[str, AfterValidator(_short)] | None, Field(repr=False)] = None
    """What the user wrote; may hold anything, so it is in no log and no representation."""

    def line(self) -> bytes:
        """The record as it is written: one line."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
