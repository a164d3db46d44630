"""What became of each request, as the request log tells it (requestlog.py), as small values.

Rules:
- a line that has no endpoint is no answer of a revision, but where a script has answered for one: a revision without
  endpoints cannot be told from one that is unknown;
- what a rehearsal has spoiled (rewrite.lua) is an error of its revision, though no endpoint was asked; what its system
  prompt made it refuse is a client's error, as a refusal of its engine would be;
- a client's own deadline that passes is a client that left; the deployment's is an error of the revision;
- what went to an external API has lost its headers when it ended: metadata tells of them (lua/external.lua);
- an entry that names no revision is no answer of one and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from tuneyard.api.gatereports import GateRun
from tuneyard.systems.envoy.deadlines import PASSED, clients_own
from tuneyard.systems.envoy.documents import GATE_ROUTES
from tuneyard.systems.envoy.requestlog import Line
from tuneyard.systems.envoy.translate import WEIGHTS_ROUTE, served_by

BYTES_PER_TOKEN = 4
"""Of a request's body, with all that is around the prompt: what English and JSON come to, roughly."""

ENGINE = "via_upstream"
"""Envoy's word for an answer that an endpoint gave."""
_LEFT = frozenset({"DC", "DR", "DPE"})
"""Flags of a request whose client went away."""
_REFUSED = frozenset({"UO", "OM"})
_BROKEN = frozenset({"UH", "UT", "LR", "UR", "UF", "UC", "URX", "UPE", "UMSDR", "SI", "DT"})
"""Flags of a request whose engine could not be reached, or did not finish what it had begun."""
_NONE = frozenset[str]()

_served_by = lru_cache(maxsize=10_000)(served_by)


class Outcome(StrEnum):
    """How a request ended, from the revision's point of view."""

    OK = "ok"
    ERROR = "error"
    """By the revision's doing: a status of 500 and above, no connection, a broken stream."""
    CLIENT_ERROR = "client_error"
    """A status of 400 to 499: the client's doing."""
    CLIENT_LEFT = "client_left"
    """Before the answer was whole."""
    REFUSED = "refused"
    """By the gateway itself."""


_OF_THE_ACCOUNT = frozenset({"401", "402", "403", "429"})
"""Statuses that an external API gives because of whose key is sent: no client could do anything about it, so that they
count against the revision. Pods that say the same speak of the request."""


class Answer(NamedTuple):
    """What became of one request that went to a revision. Times are in milliseconds."""

    deployment: str
    """`namespace/name`."""
    revision: str
    outcome: Outcome
    took: float
    """From the whole request to the last byte of the answer; of one that ended otherwise, to its end."""
    prompt_tokens: int
    """As estimated from the request's size: the same way for all, also for those that failed."""
    chosen: bool = False
    """The client named the revision."""
    held: bool = False
    """It waited until the revision's adapter was loaded."""
    streamed: bool = False
    ttft: float | None = None
    """Time to the first token of a stream."""
    itl: float | None = None
    """Mean time between two tokens of a stream."""
    request_id: str = ""
    """What the client knows it by."""
    began: float = 0.0
    """When the request came, in unix seconds."""
    contents: str = ""
    """What the revision was then: RevisionRoute.contents."""
    run: GateRun | None = None
    """Of a gate's request: how far that gate was then."""
    tenant: str = ""
    """Whose request it was; empty where clients need no keys."""


def answers_of(lines: Iterable[Line]) -> list[Answer]:
    """The answers of revisions that lines tell of."""
    found = (answer_of(line) for line in lines)
    return [answer for answer in found if answer is not None]


def answer_of(line: Line) -> Answer | None:
    """What a line tells; None where no endpoint of a revision was asked. ValueError where it is no such line."""
    of_script = line.spoiled or line.refused
    served = _served_by(of_script or (line.cluster if line.host else ""))
    if served is None:
        return None
    if of_script:
        outcome = Outcome.ERROR if line.spoiled else Outcome.CLIENT_ERROR
    elif line.out and line.status in _OF_THE_ACCOUNT:
        outcome = Outcome.ERROR
    else:
        outcome = outcome_of(line)
    whole = outcome in (Outcome.OK, Outcome.CLIENT_ERROR) and not of_script
    ended = _milliseconds(line.answered) if whole else float(line.duration or 0)
    return Answer(
        deployment=served.deployment,
        revision=served.revision,
        outcome=outcome,
        took=max(0.0, ended - _milliseconds(line.arrived)),
        prompt_tokens=int(line.received or 0) // BYTES_PER_TOKEN,
        chosen=line.route != WEIGHTS_ROUTE,
        held=bool(line.held),
        streamed=_streams(line),
        ttft=float(line.ttft) if line.ttft else None,
        itl=float(line.itl) if line.itl else None,
        request_id=line.request_id,
        began=datetime.fromisoformat(line.time).timestamp(),
        contents=served.contents,
        # of a request without a gate's token the header says nothing
        run=GateRun.of_header(line.noted_run or line.gate_run) if line.route.startswith(GATE_ROUTES) else None,
        tenant=tenant_of(line),
    )


def tenant_of(line: Line) -> str:
    """Whose request it was, by its headers or by what was noted before they went; empty where clients need no keys."""
    return line.out.split(" ")[0].strip("-") if line.out else line.tenant


def flags_of(line: Line) -> frozenset[str]:
    """Envoy's response flags."""
    return _NONE if line.flags in ("", "-") else frozenset(line.flags.split(","))


def outcome_of(line: Line) -> Outcome:
    """How it ended; `failed`: the engine said in its stream that it cannot go on."""
    status, details, failed, flags = int(line.status or 0), line.details, bool(line.failed), flags_of(line)
    if not flags and status < 400 and not failed and details == ENGINE:
        return Outcome.OK
    if failed or (status >= 500 and details == ENGINE):
        # also where the client left on it: libraries close at the error
        return Outcome.ERROR
    if not flags.isdisjoint(_LEFT):
        return Outcome.CLIENT_LEFT
    if details == PASSED:
        own = clients_own(line.noted_deadline or line.deadline, float(line.duration or 0))
        return Outcome.CLIENT_LEFT if own else Outcome.ERROR
    if 400 <= status < 500:
        return Outcome.CLIENT_ERROR if details == ENGINE else Outcome.REFUSED
    if not flags.isdisjoint(_REFUSED):
        return Outcome.REFUSED
    if not flags.isdisjoint(_BROKEN):
        return Outcome.ERROR
    return Outcome.OK if details == ENGINE else Outcome.REFUSED


def _streams(line: Line) -> bool:
    """Whether it is a stream; of one that never began what was asked for says it."""
    return line.kind == "text/event-stream" if int(line.status or 0) else bool(line.start)


def _milliseconds(microseconds: str) -> float:
    return float(microseconds) / 1000 if microseconds else 0.0
