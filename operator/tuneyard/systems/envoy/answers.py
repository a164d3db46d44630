"""What became of each request, as Envoy tells it (its gRPC access log), as small values.

What Envoy 1.40 does, as seen:
- every worker has a stream of its own and opens it with the first request that it has something to tell of: before that
  nobody connects, and silence means that nothing was asked;
- entries wait in Envoy for ANSWERS_INTERVAL at most, less where they fill ANSWERS_BUFFER;
- while nobody listens, or the stream breaks, what would have been sent is dropped, and the next entries try again.
  While this process takes nothing, a stream fills up to its window, then a buffer, and what comes after is dropped.
  Requests wait for none of that;
- an entry has no cluster where no endpoint was asked: a revision without any cannot be told from one that is unknown.

Rules:
- what a rehearsal has spoiled (rewrite.lua) is an error of its revision, though no endpoint was asked; what its system
  prompt made it refuse is a client's error, as a refusal of its engine would be;
- a client's own deadline that passes is a client that left; the deployment's is an error of the revision;
- what went to an external API has lost its headers when it ended: metadata tells of them (lua/external.lua);
- an entry that names no revision is no answer of one and is left out;
- this process spends half of its time on answers at most, whatever the rate is: it rests as long as some took.
  What Envoy has to drop then is what came at a bad moment, of whichever revision.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import grpc
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc

from tuneyard.api import names
from tuneyard.api.gatereports import GateRun
from tuneyard.systems.envoy.accesslogs import METADATA
from tuneyard.systems.envoy.deadlines import DEADLINE_HEADER, PASSED, clients_own
from tuneyard.systems.envoy.documents import GATE_ROUTES
from tuneyard.systems.envoy.translate import WEIGHTS_ROUTE, served_by

BYTES_PER_TOKEN = 4
"""Of a request's body, with all that is around the prompt: what English and JSON come to, roughly."""

AT_A_TIME = 100
"""Entries without a turn for others: about two milliseconds."""

_LEFT = ("downstream_connection_termination", "downstream_remote_reset", "downstream_protocol_error")
_REFUSED = ("upstream_overflow", "overload_manager")
_BROKEN = (
    "no_healthy_upstream",
    "upstream_request_timeout",
    "local_reset",
    "upstream_remote_reset",
    "upstream_connection_failure",
    "upstream_connection_termination",
    "upstream_retry_limit_exceeded",
    "upstream_protocol_error",
    "upstream_max_stream_duration_reached",
    "stream_idle_timeout",
    "duration_timeout",
)
"""Flags of a request whose engine could not be reached, or did not finish what it had begun."""

_served_by = lru_cache(maxsize=10_000)(served_by)
_log = logging.getLogger(__name__)


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


_OF_THE_ACCOUNT = frozenset({401, 402, 403, 429})
"""Statuses that an external API gives because of whose key is sent: no client could do anything about it, so that they
count against the revision. Pods that say the same speak of the request."""
_OF_SCRIPTS = {"spoiled": Outcome.ERROR, "refused": Outcome.CLIENT_ERROR}
"""How what `rewrite` has answered for a revision ended, by the metadata that names the revision's cluster."""


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


class AnswerReports:
    """Hears what becomes of requests, from all workers of Envoy."""

    def __init__(
        self,
        answered: Callable[[Sequence[Answer]], None],
        ended: Callable[[Sequence[accesslog_pb2.HTTPAccessLogEntry]], None] | None = None,
    ) -> None:
        """`answered` gets some at a time, in the order in which they ended; `ended` all entries, before that."""
        self._answered, self._ended = answered, ended
        self._turn = asyncio.Lock()
        self.streams = 0
        """How many there are now."""

    def join(self, server: grpc.aio.Server) -> None:
        """Make this a service of the server."""
        als_pb2_grpc.add_AccessLogServiceServicer_to_server(_Servicer(self.serve), server)

    async def serve(self, messages: AsyncIterator[als_pb2.StreamAccessLogsMessage]) -> None:
        """One stream, until Envoy ends it."""
        self.streams += 1
        _log.info("Envoy tells its answers (%d streams)", self.streams)
        clock = asyncio.get_running_loop().time
        try:
            async for message in messages:
                entries = message.http_logs.log_entry
                for at in range(0, len(entries), AT_A_TIME):
                    async with self._turn:
                        began, some = clock(), entries[at : at + AT_A_TIME]
                        if self._ended is not None:
                            self._ended(some)
                        self._answered(answers_of(some))
                        await asyncio.sleep(clock() - began)
        finally:
            self.streams -= 1


def answers_of(entries: Iterable[accesslog_pb2.HTTPAccessLogEntry]) -> list[Answer]:
    """The answers of revisions that entries tell of."""
    found = (answer_of(entry) for entry in entries)
    return [answer for answer in found if answer is not None]


def answer_of(entry: accesslog_pb2.HTTPAccessLogEntry) -> Answer | None:
    """What an entry tells; None where no endpoint of a revision was asked."""
    common = entry.common_properties
    metadata, request, response = common.metadata.filter_metadata, entry.request, entry.response
    told = metadata[METADATA].fields if METADATA in metadata else {}
    of_script = next((key for key in _OF_SCRIPTS if key in told), None)
    served = _served_by(told[of_script].string_value if of_script else common.upstream_cluster)
    if served is None:
        return None
    outcome = _OF_SCRIPTS[of_script] if of_script else _outcome(common, request, response, told)
    out = told["out"].string_value if "out" in told else ""
    if out and response.response_code.value in _OF_THE_ACCOUNT:
        outcome = Outcome.ERROR
    whole = outcome in (Outcome.OK, Outcome.CLIENT_ERROR) and not of_script
    ended = common.time_to_last_upstream_rx_byte if whole else common.duration
    return Answer(
        deployment=served.deployment,
        revision=served.revision,
        outcome=outcome,
        took=max(0.0, _milliseconds(ended) - _milliseconds(common.time_to_last_rx_byte)),
        prompt_tokens=request.request_body_bytes // BYTES_PER_TOKEN,
        chosen=common.route_name != WEIGHTS_ROUTE,
        held="held" in told,
        streamed=_streams(response, asked="start" in told),
        ttft=told["ttft_ms"].number_value if "ttft_ms" in told else None,
        itl=told["itl_ms"].number_value if "itl_ms" in told else None,
        request_id=request.request_id,
        began=common.start_time.seconds + common.start_time.nanos / 1e9,
        contents=served.contents,
        # of a request without a gate's token the header says nothing
        run=(
            GateRun.of_header(_said(request, names.GATE_RUN_HEADER, told, "run"))
            if common.route_name.startswith(GATE_ROUTES)
            else None
        ),
        tenant=tenant_of(request, told),
    )


def tenant_of(request: accesslog_pb2.HTTPRequestProperties, told: Mapping[str, Any]) -> str:
    """Whose request it was, by its headers or by what was noted before they went; empty where clients need no keys."""
    if "out" in told:
        return str(told["out"].string_value).split(" ")[0].strip("-")
    return str(request.request_headers.get(names.TENANT_HEADER, ""))


def _said(request: accesslog_pb2.HTTPRequestProperties, header: str, told: Mapping[str, Any], noted: str) -> str:
    """What the request had in a header, in the same way."""
    return str(told[noted].string_value if noted in told else request.request_headers.get(header, ""))


def _outcome(
    common: accesslog_pb2.AccessLogCommon,
    request: accesslog_pb2.HTTPRequestProperties,
    response: accesslog_pb2.HTTPResponseProperties,
    told: Mapping[str, Any],
) -> Outcome:
    """How it ended; `failed` in what scripts have told: the engine said in its stream that it cannot go on."""
    status, details, failed = response.response_code.value, response.response_code_details, "failed" in told
    flags = {field.name for field, _ in common.response_flags.ListFields()}
    if not flags and status < 400 and not failed and details == "via_upstream":
        return Outcome.OK
    if failed or (status >= 500 and details == "via_upstream"):
        # also where the client left on it: libraries close at the error
        return Outcome.ERROR
    if not flags.isdisjoint(_LEFT):
        return Outcome.CLIENT_LEFT
    if details == PASSED:
        own = clients_own(_said(request, DEADLINE_HEADER, told, "deadline"), _milliseconds(common.duration))
        return Outcome.CLIENT_LEFT if own else Outcome.ERROR
    if 400 <= status < 500:
        return Outcome.CLIENT_ERROR if details == "via_upstream" else Outcome.REFUSED
    if not flags.isdisjoint(_REFUSED):
        return Outcome.REFUSED
    if not flags.isdisjoint(_BROKEN):
        return Outcome.ERROR
    return Outcome.OK if details == "via_upstream" else Outcome.REFUSED


def _streams(response: accesslog_pb2.HTTPResponseProperties, *, asked: bool) -> bool:
    """Whether it is a stream; of one that never began what was `asked` for says it."""
    if not response.response_code.value:
        return asked
    return str(response.response_headers.get("content-type", "")).startswith("text/event-stream")


def _milliseconds(duration: Any) -> float:
    return float(duration.seconds * 1000 + duration.nanos / 1e6)


class _Servicer(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Names the method as gRPC does."""

    def __init__(self, serve: Callable[..., Any]) -> None:
        self._serve = serve

    async def StreamAccessLogs(  # noqa: N802
        self, request_iterator: AsyncIterator[als_pb2.StreamAccessLogsMessage], _context: object
    ) -> als_pb2.StreamAccessLogsResponse:
        """Envoy's stream."""
        await self._serve(request_iterator)
        return als_pb2.StreamAccessLogsResponse()
