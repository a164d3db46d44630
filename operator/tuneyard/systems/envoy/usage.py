"""What Envoy writes down of each request for the counts of tokens: an access log of its own, one JSON text a line.

What Envoy 1.40 does, as seen:
- one file is written by one thread, whichever worker answered: lines are whole, in the order in which requests ended;
- lines wait in Envoy for the interval of --file-flush-interval-msec, or until 64 KiB have come together. An Envoy that
  is killed takes them with it; one that ends by itself writes them;
- a file that has been renamed gets lines until /reopen_logs; then the name is opened anew, and everything goes there;
- one that is killed within a write, or that finds no room for all of it, leaves half a line, and the next whole one
  stands behind it (after_half).

Why a file and not the gRPC access log (answers.py): that drops what nobody takes, and usage must outlive a gateway
process that is replaced.

No prompt, no answer, no key: nothing in a line comes from a body but the model's name, which `extract` has checked, and
the engine's own numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tuneyard.api import names
from tuneyard.api.usage import MAX_REQUEST_ID, Endpoint, Outcome, UsageRecord
from tuneyard.systems.envoy.answers import BYTES_PER_TOKEN
from tuneyard.systems.envoy.deadlines import PASSED
from tuneyard.systems.envoy.documents import GATE_ROUTES, Json, extension
from tuneyard.systems.envoy.external import price_of
from tuneyard.systems.envoy.translate import served_by

_ENDPOINTS = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
}
_LEFT = frozenset({"DC", "DR", "DPE"})
"""Flags of a request whose client went away."""
_BEGIN = re.compile(rb'\{"\w+":')
"""Of a line, and of nothing within one: there is no object in it, and the quotes of texts are escaped."""


def _told(key: str) -> str:
    return f"%DYNAMIC_METADATA(tuneyard:{key})%"


def _served(key: str) -> str:
    return f"%CLUSTER_METADATA(tuneyard:{key})%"


USAGE_FORMAT: Json = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%E3SZ)%",
    "id": f"%REQ(x-request-id):{MAX_REQUEST_ID}%",
    "attempt": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "tenant": f"%REQ({names.TENANT_HEADER})%",
    "model": f"%REQ({names.MODEL_HEADER})%",
    "path": "%PATH(NQ:PATH)%",
    "out": _told("out"),
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER_RAW%",
    "pool": _served("pool"),
    "adapter": _served("adapter"),
    "adapter_digest": _served("adapter_digest"),
    "base": _served("base_model"),
    "base_digest": _served("base_digest"),
    "external": _served("external"),
    "price": _told("price"),
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "failed": _told("failed"),
    "bytes": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "chunks": _told("chunks"),
    "prompt": _told("usage:prompt_tokens"),
    "cached": _told("usage:cached_tokens"),
    "completion": _told("usage:completion_tokens"),
    "whole": _told("usage:whole"),
}


def usage_log(path: str) -> Json:
    """The access log that writes these lines into a file."""
    return extension(
        "usage", "access_loggers.file.v3.FileAccessLog", path=path, log_format={"json_format": USAGE_FORMAT}
    )


_served_by = lru_cache(maxsize=10_000)(served_by)


def after_half(line: bytes) -> bytes | None:
    """The whole line that stands behind half of another one; None where there is no other."""
    begins = [match.start() for match in _BEGIN.finditer(line)]
    return line[begins[-1] :] if begins and begins[-1] > 0 else None


def usage_record(line: bytes, gateway: str, record_id: str = "") -> UsageRecord | None:
    """What a line tells; None where no engine was asked. ValueError where it is no such line.

    The cluster is known as soon as a route is chosen. Whoever leaves or is refused after that and before an engine was
    asked (he waited for an adapter, say) has cost no tokens: nobody was tried (`attempt`).
    """
    told = json.loads(line)
    if not isinstance(told, dict):
        raise ValueError("the line is no JSON object")
    told |= _before_it_left(told)
    served = _served_by(told.get("cluster") or "")
    endpoint = _ENDPOINTS.get(told.get("path") or "")
    attempt = int(told.get("attempt") or 0)
    if served is None or endpoint is None or not attempt:
        return None
    status, outcome = int(told.get("status") or 0), _outcome(told)
    prompt, cached, completion, exact = _tokens(told, outcome, endpoint)
    return UsageRecord(
        id=record_id,
        time=told["time"],
        request_id=told.get("id") or "",
        attempt=attempt,
        gateway=gateway,
        tenant=told.get("tenant"),
        model=told.get("model") or "",
        deployment=served.deployment,
        revision=served.revision,
        contents=served.contents,
        pool=told.get("pool"),
        adapter=told.get("adapter"),
        adapter_digest=told.get("adapter_digest"),
        base=told.get("base"),
        base_digest=told.get("base_digest"),
        external=told.get("external"),
        price=price_of(told["price"]) if told.get("price") else None,
        endpoint=endpoint,
        # where clients need keys, a tenant's requests are its own whatever route they took
        gate=str(told.get("route") or "").startswith(GATE_ROUTES) and told.get("tenant") in (None, names.GATE_TENANT),
        status=status,
        outcome=outcome,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        estimated=not exact,
    )


def _before_it_left(told: Mapping[str, Any]) -> dict[str, str | None]:
    """Of a request that went to an external API: what its headers said before (lua/external.lua)."""
    found = str(told.get("out") or "").split(" ")
    if len(found) != 3:
        return {}
    tenant, model, path = found
    return {"tenant": None if tenant == "-" else tenant, "model": model, "path": path}


def _outcome(told: Mapping[str, Any]) -> Outcome:
    flags = str(told.get("flags") or "-")
    status = int(told.get("status") or 0)
    if told.get("failed") or told.get("details") == PASSED:
        return Outcome.FAILED
    if not _LEFT.isdisjoint(flags.split(",")):
        return Outcome.LEFT
    if 400 <= status < 500:
        return Outcome.REFUSED
    return Outcome.OK if flags == "-" and 200 <= status < 400 else Outcome.FAILED


def _tokens(told: Mapping[str, Any], outcome: Outcome, endpoint: Endpoint) -> tuple[int, int, int, bool]:
    """Tokens of prompt, of those from the cache, generated ones, and whether these are the engine's own numbers."""
    prompt, cached, completion = (int(told.get(key) or 0) for key in ("prompt", "cached", "completion"))
    if told.get("whole"):
        return prompt, cached, completion, True
    chunks = int(told.get("chunks") or 0)
    if outcome in (Outcome.LEFT, Outcome.OK) or chunks:
        # the engine has said nothing, or something for a part; each chunk holds one token or a few
        generated = max(completion, chunks)
        if outcome is Outcome.OK and not generated and endpoint is not Endpoint.EMBEDDINGS:
            generated = int(told.get("sent") or 0) // BYTES_PER_TOKEN
        return prompt or int(told.get("bytes") or 0) // BYTES_PER_TOKEN, cached, generated, False
    # refused, or failed before it generated anything that came here
    return 0, 0, 0, True
