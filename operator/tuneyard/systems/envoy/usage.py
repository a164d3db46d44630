"""What the request log (requestlog.py) tells of tokens, as records of usage."""

from __future__ import annotations

from functools import lru_cache

from tuneyard.api import names
from tuneyard.api.usage import MAX_REQUEST_ID, Endpoint, Outcome, UsageRecord
from tuneyard.systems.envoy.answers import BYTES_PER_TOKEN, flags_of
from tuneyard.systems.envoy.deadlines import PASSED
from tuneyard.systems.envoy.documents import GATE_ROUTES
from tuneyard.systems.envoy.external import price_of
from tuneyard.systems.envoy.requestlog import Line, number
from tuneyard.systems.envoy.translate import served_by

_ENDPOINTS = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
}
_LEFT = frozenset({"DC", "DR", "DPE"})
"""Flags of a request whose client went away."""


_served_by = lru_cache(maxsize=10_000)(served_by)


def usage_record(line: Line, gateway: str, record_id: str = "") -> UsageRecord | None:
    """What a line tells; None where no engine was asked. ValueError where it is no such line.

    The cluster is known as soon as a route is chosen. Whoever leaves or is refused after that and before an engine was
    asked (he waited for an adapter, say) has cost no tokens: nobody was tried (`attempt`).
    """
    tenant, model, path = _before_it_left(line) or (line.tenant, line.model, line.path)
    served = _served_by(line.cluster)
    endpoint, attempt = _ENDPOINTS.get(path), int(line.attempt or 0)
    if served is None or endpoint is None or not attempt:
        return None
    outcome = _outcome(line)
    prompt, cached, completion, exact = _tokens(line, outcome, endpoint)
    return UsageRecord(
        id=record_id,
        time=line.time,
        request_id=line.request_id[:MAX_REQUEST_ID],
        attempt=attempt,
        gateway=gateway,
        tenant=tenant or None,
        model=model,
        deployment=served.deployment,
        revision=served.revision,
        contents=served.contents,
        pool=line.pool or None,
        adapter=line.adapter or None,
        adapter_digest=line.adapter_digest or None,
        base=line.base or None,
        base_digest=line.base_digest or None,
        external=line.external or None,
        price=price_of(line.price) if line.price else None,
        endpoint=endpoint,
        # where clients need keys, a tenant's requests are its own whatever route they took
        gate=line.route.startswith(GATE_ROUTES) and tenant in ("", names.GATE_TENANT),
        status=int(line.status or 0),
        outcome=outcome,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        estimated=not exact,
    )


def _before_it_left(line: Line) -> tuple[str, str, str] | None:
    """Of a request that went to an external API: what its headers said before (lua/external.lua)."""
    found = line.out.split(" ")
    if len(found) != 3:
        return None
    tenant, model, path = found
    return "" if tenant == "-" else tenant, model, path


def _outcome(line: Line) -> Outcome:
    flags, status = flags_of(line), int(line.status or 0)
    if line.failed or line.details == PASSED:
        return Outcome.FAILED
    if not _LEFT.isdisjoint(flags):
        return Outcome.LEFT
    if 400 <= status < 500:
        return Outcome.REFUSED
    return Outcome.OK if not flags and 200 <= status < 400 else Outcome.FAILED


def _tokens(line: Line, outcome: Outcome, endpoint: Endpoint) -> tuple[int, int, int, bool]:
    """Tokens of prompt, of those from the cache, generated ones, and whether these are the engine's own numbers."""
    prompt, cached, completion = number(line.prompt), number(line.cached), number(line.completion)
    if line.whole:
        return prompt, cached, completion, True
    chunks = number(line.chunks)
    if outcome in (Outcome.LEFT, Outcome.OK) or chunks:
        # the engine has said nothing, or something for a part; each chunk holds one token or a few
        generated = max(completion, chunks)
        if outcome is Outcome.OK and not generated and endpoint is not Endpoint.EMBEDDINGS:
            generated = number(line.sent) // BYTES_PER_TOKEN
        return prompt or number(line.received) // BYTES_PER_TOKEN, cached, generated, False
    # refused, or failed before it generated anything that came here
    return 0, 0, 0, True
