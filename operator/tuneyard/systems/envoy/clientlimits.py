"""What one client's connection may take of the gateway: time to say what it wants, headers, idle connections, streams.

Rules:
- every wait for a client has an end: for the headers of a request from their first byte, for the whole request, for the
  next request on a connection (longer than load balancers keep theirs, 600 s in the longest case);
- how many bodies memory has room for is overload.py's business, and so is how many connections there may be;
- HTTP that two readers could read in two ways is refused before any script runs, or passed on in one plain form: Envoy
  does that by itself. What it has switches for (HTTP/1.0, both lengths in one request) is switched off here by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneyard.systems.envoy.documents import BODY_LIMIT, Json


@dataclass(frozen=True)
class ClientLimits:
    """Times in seconds."""

    headers: float = 10.0
    """From the first byte of a request to the end of its headers."""
    request: float = 300.0
    """From the end of its headers to the end of its body, as 8 MiB over a slow line take."""
    idle: float = 620.0
    """Without a request on a connection."""
    header_count: int = 100
    header_kb: int = 60
    """Of all headers of a request together."""
    streams: int = 1000
    """Requests at a time on one connection of HTTP/2, behind which many clients may stand."""


def limited(limits: ClientLimits) -> Json:
    """What the connection manager has of it."""
    return {
        "request_headers_timeout": _seconds(limits.headers),
        "request_timeout": _seconds(limits.request),
        "common_http_protocol_options": {
            "idle_timeout": _seconds(limits.idle),
            "max_headers_count": limits.header_count,
        },
        "max_request_headers_kb": limits.header_kb,
        "http_protocol_options": {"accept_http_10": False, "allow_chunked_length": False},
        # over HTTP/2 a stream's window is the limit of a body, whatever the connection's buffer is
        "http2_protocol_options": {
            "max_concurrent_streams": limits.streams,
            "initial_stream_window_size": BODY_LIMIT,
            "initial_connection_window_size": 2 * BODY_LIMIT,
        },
    }


def _seconds(number: float) -> str:
    return f"{number:g}s"
