"""The request log: what Envoy writes down of each request for the gateway process, one line of text each, into a file.

Everything that this program knows of requests that have ended comes from it: what judges go by (answers.py), what
metrics show, what tenants with limits have spent (quotas.py), and what is billed (usage.py).

What Envoy 1.40 does, as seen:
- one file is written by one thread, whichever worker answered: lines are whole, in the order in which requests ended;
- lines wait in Envoy for the interval of --file-flush-interval-msec, or until 64 KiB have come together. An Envoy that
  is killed takes them with it; one that ends by itself writes them. Requests wait for none of that;
- a file that has been renamed gets lines until /reopen_logs; then the name is opened anew, and everything goes there;
- one that is killed within a write, or that finds no room for all of it, leaves half a line, and the next whole one
  stands behind it (after_half);
- a header with a control character other than a tab is refused, of clients and of engines alike, and so is such a path.

Why a file and not the gRPC access log: that drops what nobody takes, and usage must outlive a gateway process that is
replaced. Why text and not JSON: for Envoy and for this program alike it is the cheaper one, and no text in a line can
hold what stands between two.

No prompt, no answer, no key: nothing in a line comes from a body but the model's name, which `extract` has checked, and
the engine's own numbers. What clients may make long is cut.
"""

from __future__ import annotations

from typing import NamedTuple

from tuneyard.api import names
from tuneyard.api.usage import MAX_REQUEST_ID
from tuneyard.systems.envoy.accesslogs import METADATA
from tuneyard.systems.envoy.deadlines import DEADLINE_HEADER
from tuneyard.systems.envoy.documents import Json, extension

FLUSHED_MILLISECONDS = 50
"""How long lines wait in Envoy at most (--file-flush-interval-msec)."""
BEGIN, SEPARATOR = "\x1e", "\x1f"
_KNOWN_PATH = 40
"""Longer than every path that is served."""
_GATE_RUN = 300
"""Longer than what any gate says of itself."""


class Line(NamedTuple):
    """What the log tells of one request, as text; empty: nothing."""

    time: str
    """When it came, in UTC, to the millisecond."""
    request_id: str
    """One character longer than MAX_REQUEST_ID: too long to be anybody's."""
    attempt: str
    tenant: str
    model: str
    path: str
    route: str
    cluster: str
    """Of the route that was chosen, whether an endpoint was asked or not."""
    host: str
    """Address of the endpoint that was asked last; empty where none was."""
    pool: str
    adapter: str
    adapter_digest: str
    base: str
    base_digest: str
    external: str
    status: str
    flags: str
    """Envoy's response flags in their short form, `-` where there is none."""
    details: str
    received: str
    """Bytes of the request's body."""
    sent: str
    """Bytes of the answer's."""
    kind: str
    """Begin of the answer's content-type."""
    arrived: str
    """Microseconds from the request's first byte to its last one."""
    answered: str
    """From there to the last byte of the endpoint's answer."""
    duration: str
    """To the end of everything, in milliseconds."""
    gate_run: str
    deadline: str
    out: str
    """Tenant, model and path of what went to an external API: its headers are gone when it ends (lua/external.lua)."""
    noted_run: str
    noted_deadline: str
    price: str
    spoiled: str
    refused: str
    held: str
    start: str
    ttft: str
    itl: str
    failed: str
    quota: str
    chunks: str
    prompt: str
    cached: str
    completion: str
    whole: str


def _told(key: str, most: int | None = None) -> str:
    return f"%DYNAMIC_METADATA({METADATA}:{key}){'' if most is None else f':{most}'}%"


def _served(key: str) -> str:
    return f"%CLUSTER_METADATA({METADATA}:{key})%"


_COMMANDS = Line(
    time="%START_TIME%",
    request_id=f"%REQ(x-request-id):{MAX_REQUEST_ID + 1}%",
    attempt="%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    tenant=f"%REQ({names.TENANT_HEADER})%",
    model=f"%REQ({names.MODEL_HEADER})%",
    path=f"%PATH(NQ:PATH):{_KNOWN_PATH}%",
    route="%ROUTE_NAME%",
    cluster="%UPSTREAM_CLUSTER_RAW%",
    host="%UPSTREAM_HOST%",
    pool=_served("pool"),
    adapter=_served("adapter"),
    adapter_digest=_served("adapter_digest"),
    base=_served("base_model"),
    base_digest=_served("base_digest"),
    external=_served("external"),
    status="%RESPONSE_CODE%",
    flags="%RESPONSE_FLAGS%",
    details="%RESPONSE_CODE_DETAILS%",
    received="%BYTES_RECEIVED%",
    sent="%BYTES_SENT%",
    kind="%RESP(content-type):17%",
    arrived="%COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)%",
    answered="%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    duration="%DURATION%",
    gate_run=f"%REQ({names.GATE_RUN_HEADER}):{_GATE_RUN}%",
    deadline=f"%REQ({DEADLINE_HEADER}):20%",
    out=_told("out"),
    noted_run=_told("run", _GATE_RUN),
    noted_deadline=_told("deadline", 20),
    price=_told("price"),
    spoiled=_told("spoiled"),
    refused=_told("refused"),
    held=_told("held"),
    start=_told("start"),
    ttft=_told("ttft_ms"),
    itl=_told("itl_ms"),
    failed=_told("failed"),
    quota=_told("quota"),
    chunks=_told("chunks"),
    prompt=_told("usage:prompt_tokens"),
    cached=_told("usage:cached_tokens"),
    completion=_told("usage:completion_tokens"),
    whole=_told("usage:whole"),
)
_UNCOUNTABLE = float(1 << 53)
"""From there on a double does not tell neighbours apart; infinity is above it, too."""
_BEGIN = BEGIN.encode()


def request_log(path: str) -> Json:
    """The access log that writes these lines into a file."""
    text = text_of(_COMMANDS).decode() + "\n"
    return extension(
        "requests",
        "access_loggers.file.v3.FileAccessLog",
        path=path,
        log_format={"text_format_source": {"inline_string": text}, "omit_empty_values": True},
    )


def line_of(text: bytes) -> Line:
    """What a line tells; ValueError where it is no such line."""
    values = text.decode("utf-8", "replace").split(SEPARATOR)
    # the last field ends with one too: of half a line not even a digit may count
    if len(values) != len(_COMMANDS) + 1 or values.pop() or values[0][:1] != BEGIN:
        raise ValueError("this is no line of the request log")
    values[0] = values[0][1:]
    return Line._make(values)


def text_of(line: Line) -> bytes:
    """As Envoy writes it, without the line feed."""
    return (BEGIN + SEPARATOR.join((*line, ""))).encode()


def after_half(text: bytes) -> bytes | None:
    """The whole line that stands behind half of another one; None where there is no other."""
    at = text.rfind(_BEGIN)
    return text[at:] if at > 0 else None


def number(text: str) -> int:
    """A count as Envoy prints it; 0 where it says nothing, or what an engine made up and nobody can count. Raises
    ValueError for what is no number.
    """
    value = float(text or 0)
    return int(value) if 0 <= value < _UNCOUNTABLE else 0
