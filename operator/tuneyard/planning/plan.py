"""What a plan is: values that the runtime executes in order, and nothing that acts by itself.

Rules for who executes a plan:
- actions run in their order and stop at the first that fails; the next pass plans again from what is then observed,
  so a crash after any prefix is an ordinary state, never a special case;
- `status` is the whole status and is written after the actions, only when it differs from the stored one; None means
  that the object is gone and has no status;
- with `status_first` it is written before the actions, which run only once it is stored: it takes traffic from
  somebody, and that waits for no other write;
- events are told after the status was written, so that a repeated pass does not repeat them;
- `requeue_after` is when time alone changes the plan; everything else that matters arrives as a change.

Secrets stand in objects as `Redacted`: JSON carries the value, printing and logging show `[redacted]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tuneyard.api.base import ApiModel
from tuneyard.api.reasons import Reason


class Redacted(str):
    """A text that is written as JSON but never printed: `str()`, `repr()` and formatting show `[redacted]`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "[redacted]"

    def __str__(self) -> str:
        return "[redacted]"

    def __format__(self, format_spec: str) -> str:
        return "[redacted]"


@dataclass(frozen=True)
class ObjectReference:
    """Which object an event is about, or which one is meant; uid is empty for one that was never stored."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True)
class Apply:
    """Server-side apply of the whole object, with the operator's one field manager, forced."""

    object: dict[str, Any]


@dataclass(frozen=True)
class Annotate:
    """JSON merge patch of metadata.annotations of an object that exists; None removes an annotation.

    For the one case where the whole wanted object is not known any more: a pool that nothing refers to.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    annotations: dict[str, str | None]


@dataclass(frozen=True)
class Delete:
    """Background deletion with uid and resourceVersion as preconditions; an object that is gone already is success.

    One that has changed since it was observed stays: the change may be that it is wanted again.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str = ""
    """Empty: any version of that uid."""


Action = Apply | Annotate | Delete


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about an object."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str
    about: ObjectReference


@dataclass(frozen=True)
class Plan:
    """What to do now; an empty one with an unchanged status says that the world is as wanted."""

    actions: tuple[Action, ...] = ()
    status: ApiModel | None = None
    events: tuple[Event, ...] = field(default=())
    requeue_after: float | None = None
    """Seconds; None: no need to look again before something changes."""
    status_first: bool = False
