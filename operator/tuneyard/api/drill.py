"""A fault that gateways put into the answers of one revision, for a rehearsal: the annotation tuneyard.dev/drill.

It stands on a ModelDeployment of its own, which `tuneyard drill` makes and removes, so that nobody's traffic meets it.
Who may set it may also take the object's traffic away by its spec: it gives no new power.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from tuneyard.api import names
from tuneyard.api.base import ApiModel, parsed

MOST_DELAY_MS = 60_000


class Fault(ApiModel):
    """What happens to requests that were given to a revision."""

    revision: str
    errors: Annotated[int, Field(ge=0, le=100)] = 0
    """Percent of them that are answered with status 502."""
    delay_ms: Annotated[int, Field(ge=0, le=MOST_DELAY_MS)] = 0
    """Milliseconds that each waits before it is sent to an engine."""
    lasts_seconds: Annotated[int, Field(gt=0)] | None = None
    """Since the object was created; what happens then: planning/rehearsal.py. None: until it is removed."""

    @property
    def mark(self) -> dict[str, Any]:
        """What of it makes answers others than those without it, as JSON."""
        return self.model_dump(mode="json", by_alias=True, include={"revision", "errors", "delay_ms"})


def fault_of(annotations: Mapping[str, str]) -> Fault | None:
    """The fault that an object's annotations ask for; None without one, or where it cannot be read."""
    return parsed(Fault, annotations.get(names.ANNOTATION_DRILL))
