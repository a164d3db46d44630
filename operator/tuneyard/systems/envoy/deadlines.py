"""When another pod is asked, and how long a request may take in all.

Rules:
- another pod is asked only while no byte of an answer was sent on (translate.py), and never because of a deadline: an
  engine that is slow for having too much to do would get the same work once more;
- deadlines are the connection manager's (`max_stream_duration`, `idle_timeout`) and not the router's `timeout`. That
  counts as a failure to reach the pod: three requests at once of a client in a hurry would take it from everybody
  (tried). And it would begin anew after a request has waited for its adapter;
- a deadline ends the request on both sides: the client gets 504, or no more of a stream that has begun; the pod sees
  its connection closed, and its engine stops;
- clients say theirs in `grpc-timeout`, the one header for it that is specified (gRPC over HTTP/2), which Envoy reads in
  every request: at most 8 digits and H, M, S, m, u or n. The deployment's bounds it, also where it is nonsense. It
  stays on the request, because the log of answers reads it: who has given up by himself blames no revision.
Of requests without deadlines nothing of this costs anything.
"""

from __future__ import annotations

import re
from typing import Any

from tuneyard.systems.envoy.documents import DRAINING_HEADER, IDLE_TIMEOUT, RETRY_HEADER, Json, extension

DEADLINE_HEADER = "grpc-timeout"
PASSED = "max_duration_timeout"
"""Envoy's word for a request that was ended by a deadline: there is no flag for it."""

_UNITS = {"H": 3_600_000.0, "M": 60_000.0, "S": 1000.0, "m": 1.0, "u": 0.001, "n": 0.000_001}
_INACCURACY = 50.0
"""Milliseconds by which Envoy's timer and its clock may differ."""

_RETRY_POLICY: Json = {
    "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
    "retriable_headers": [
        {"name": DRAINING_HEADER, "present_match": True},
        {"name": RETRY_HEADER, "present_match": True},
    ],
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
    "retry_host_predicate": [
        extension(
            "envoy.retry_host_predicates.previous_hosts",
            "retry.host.previous_hosts.v3.PreviousHostsPredicate",
        )
    ],
    # an idle dead pod wins three of four least-request choices against a busy one: look often
    "host_selection_retry_max_attempts": 50,
}


def tried(timeout: int | None, idle_timeout: int | None) -> dict[str, Any]:
    """What every route to pods has: a retry policy, and the deployment's deadlines in seconds, None: there is none."""
    longest = f"{timeout or 0}s"  # 0: none, but the client's
    return {
        "retry_policy": _RETRY_POLICY,
        "timeout": "0s",
        "idle_timeout": f"{idle_timeout}s" if idle_timeout else IDLE_TIMEOUT,
        "max_stream_duration": {"max_stream_duration": longest, "grpc_timeout_header_max": longest},
    }


def clients_own(header: str, milliseconds: float) -> bool:
    """Whether a request that a deadline ended after so long was ended by its client's.

    `header`: what it said. Where that was more than the deployment allows, it was the deployment's.
    """
    said = re.fullmatch(r"([0-9]{1,8})([HMSmun])", header)
    return said is not None and int(said[1]) * _UNITS[said[2]] <= milliseconds + _INACCURACY
