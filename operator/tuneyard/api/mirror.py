"""Shadow traffic: `spec.mirror` sends copies of users' requests to a revision, whose answers nobody gets.

What a mirror may never do: slow a user's request, change it, fail it, or count as somebody's use of the revision.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import RevisionName, Text, cel

DEFAULT_MAX_CONCURRENT = 16
"""Copies that may be under way at each gateway."""


class MirrorSpec(ApiModel):
    """Which revision gets copies, and how many."""

    revision: Annotated[RevisionName, Field(description="The revision that gets the copies.")]
    percent: Annotated[
        int,
        Field(ge=1, le=100, description="Share of the requests to the other revisions that are copied."),
    ]
    max_concurrent: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="How many copies may be under way at each gateway; one more is left out and counted. Default "
            f"{DEFAULT_MAX_CONCURRENT}.",
        ),
    ] = None


class MirrorStatus(ApiModel):
    """What is mirrored now."""

    revision: str
    percent: Annotated[int, Field(description="Share of the requests that is copied now; 0: none.")]
    message: Annotated[Text | None, Field(description="Why none is.")] = None


class MirrorAnswer(ApiModel):
    """One answer of a pair. No text of it, nor of the prompt."""

    outcome: str
    """answered, invalid, error, broken, timeout or unreachable."""
    status: int | None = None
    characters: int | None = None
    """Length of its text."""
    refuses: bool = False
    first_ms: float | None = None
    whole_ms: float | None = None
    digest: str | None = None
    """Equal for equal texts, as long as the gateway process lives; says nothing to who has not got its key."""


class MirrorPair(ApiModel):
    """A request that both have answered."""

    at: str
    request_id: str
    against: str
    """The revision that answered the user."""
    user: MirrorAnswer
    mirrored: MirrorAnswer
    similarity: float | None = None
    """0 to 1; None where there are not two texts to compare."""


class MirrorTotals(ApiModel):
    """What a gateway has seen of one mirror since it knows of it."""

    revision: str
    percent: int
    copies: dict[str, int] = {}
    """By what became of them."""
    pairs: int = 0
    recent: list[MirrorPair] = []
    """The newest ones, oldest first."""


class MirrorReport(ApiModel):
    """GET /v1/mirror of a gateway."""

    gateway: str
    mirrors: dict[str, MirrorTotals] = {}
    """By `namespace/name` of the ModelDeployment."""


def mirror_rules() -> list[dict[str, Any]]:
    """What the API server holds a ModelDeployment's mirror against: its revisions and its traffic."""
    return [
        cel(
            "!has(self.mirror) || self.revisions.exists(r, r.name == self.mirror.revision)",
            "mirror.revision must be listed in spec.revisions",
            message_expression="'mirror names revision %s, which is not in spec.revisions %s: add the revision or correct "
            "the name'.format([self.mirror.revision, self.revisions.map(r, r.name)])",
            field_path=".mirror",
        ),
        cel(
            "!has(self.mirror) || self.traffic.all(t, t.revision != self.mirror.revision || t.weight < 100)",
            "mirror.revision has all the traffic, so that there is nothing to copy: remove spec.mirror",
            field_path=".mirror",
        ),
        cel(
            "!has(self.mirror) || !self.revisions.exists(r, r.name == self.mirror.revision && has(r.external))",
            "mirror.revision is external: copies of users' requests are sent to pods of this cluster only",
            field_path=".mirror",
        ),
    ]
