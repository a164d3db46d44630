"""The part of mirroring that Envoy does: it hands copies to the gateway process, which asks the mirrored revision.

Rules:
- Envoy's own mirror (request_mirror_policies) is not used: its copy has the body already rewritten for the revision
  that answers the user and carries the key of its pool, it cannot leave out a request that chose its revision or was
  held, and nothing of it tells which answer belongs to which;
- the script `mirror` hands over request and answer instead, without waiting, on routes by weight alone. Where a mirror
  is off the routes do not name the script, and nothing runs;
- only UNDER_WAY copies may be on their way to the process; what is more is dropped by Envoy, at once;
- the process sends to pods itself: no load report, no access log and no answer that is judged ever has a copy in it.
"""

from __future__ import annotations

from tuneyard.systems.envoy.documents import EXTENSIONS, Json, extension, pipe, script, static_cluster

MIRROR_CLUSTER = "mirror"
COPY_PATH = "/copy"
BODY_LIMIT = 256 * 1024
"""Bytes of a request that is copied; a longer one is counted and left out."""
ANSWER_LIMIT = 512 * 1024
"""Bytes of an answer that is kept for the comparison, of a stream with all its events."""
HELD_LIMIT = 16 * 1024 * 1024
"""Bytes of requests that each of Envoy's workers keeps until they are answered; more are counted and left out."""
UNDER_WAY = 64
_PATIENCE = 5000
"""Milliseconds after which Envoy forgets a copy that the process has not taken."""
_SCRIPT = "copy"


def mirror_script() -> str:
    """The filter's Lua, with its limits."""
    limits = (
        "local BODY_LIMIT, ANSWER_LIMIT, HELD_LIMIT, PATIENCE = "
        f"{BODY_LIMIT}, {ANSWER_LIMIT}, {HELD_LIMIT}, {_PATIENCE}\n"
    )
    return limits + script("mirror")


def mirror_filter(source: str) -> Json:
    """The Lua filter, which does nothing on routes that do not name its script."""
    return extension(
        "mirror",
        "filters.http.lua.v3.Lua",
        source_codes={_SCRIPT: {"inline_string": source}},
        stat_prefix="mirror",
    )


def mirror_cluster(socket: str) -> Json:
    """The gateway process, as far as it takes copies."""
    bounds = {
        "max_connections": UNDER_WAY,
        "max_pending_requests": UNDER_WAY,
        "max_requests": UNDER_WAY,
        "max_retries": 0,
        "track_remaining": True,
    }
    return static_cluster(MIRROR_CLUSTER, pipe(socket), circuit_breakers={"thresholds": [bounds]})


def copying(model: str, revision: str, mirrored: str, percent: int) -> Json:
    """What a route of this revision says, so that a share of its requests is copied."""
    context = {"model": model, "revision": revision, "mirrored": mirrored, "percent": str(percent)}
    return {
        "mirror": {"@type": EXTENSIONS + "filters.http.lua.v3.LuaPerRoute", "name": _SCRIPT, "filter_context": context}
    }
