"""How Envoy asks the gateway process for a tenant with limits (lua/quota.lua), and how it tells that a request ended.

Every entry of Envoy's gRPC access log (answers.py) has the mark under which the request was asked for. What the log
drops is not heard of: planning/quotas.py lets such a request end after a while.
Who leaves before an answer begins has had an engine read the prompt: that counts, or budgets would not hold for those
who leave in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from envoy.data.accesslog.v3 import accesslog_pb2

from tuneyard.systems.envoy.accesslogs import METADATA
from tuneyard.systems.envoy.answers import BYTES_PER_TOKEN, Outcome, answer_of, tenant_of
from tuneyard.systems.envoy.documents import script

QUOTA_PATH = "/quota"
MARK_HEADER = "x-tuneyard-quota"
SIZE_HEADER, MOST_HEADER, CHOICES_HEADER = "x-tuneyard-size", "x-tuneyard-most", "x-tuneyard-choices"
"""Bytes of the body; most tokens of an answer, below 0 where the body says nothing; how many answers it wants."""
QUOTA_SECONDS = 3.0
"""How long Envoy waits for the process: longer than that waits for the other gateways."""
UNASKED = "-"
"""The mark of a request for which the process could not be asked."""


def quota_script() -> str:
    """What stands before `extract` beside tenants.lua."""
    return f"local QUOTA_MILLISECONDS = {int(QUOTA_SECONDS * 1000)}\n" + script("quota")


class Spent(NamedTuple):
    """A request of a tenant with limits has ended."""

    mark: str
    tenant: str
    size: int
    prompt: int
    completion: int
    counted: bool
    """By the engine, and for the whole answer."""

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.prompt + self.completion


def spent_of(entries: Iterable[accesslog_pb2.HTTPAccessLogEntry]) -> list[Spent]:
    """What entries tell of requests that were asked for."""
    found = []
    for entry in entries:
        metadata = entry.common_properties.metadata.filter_metadata
        if METADATA in metadata and "quota" in metadata[METADATA].fields:
            found.append(_spent(entry, metadata[METADATA].fields))
    return found


def _spent(entry: accesslog_pb2.HTTPAccessLogEntry, told: dict[str, object]) -> Spent:
    mark, request = told["quota"].string_value, entry.request  # type: ignore[attr-defined]
    tenant, size = tenant_of(request, told), request.request_body_bytes
    usage = told["usage"].struct_value.fields if "usage" in told else {}  # type: ignore[attr-defined]
    prompt, completion = (_number(usage, key) for key in ("prompt_tokens", "completion_tokens"))
    if "whole" in usage:
        return Spent(mark, tenant, size, prompt, completion, True)
    chunks = int(told["chunks"].number_value) if "chunks" in told else 0  # type: ignore[attr-defined]
    answered = entry.response.response_code_details == "via_upstream" and entry.response.response_code.value < 400
    if not chunks and not answered and not _left(entry):
        return Spent(mark, tenant, size, 0, 0, False)
    return Spent(mark, tenant, size, prompt or size // BYTES_PER_TOKEN, max(completion, chunks), False)


def _left(entry: accesslog_pb2.HTTPAccessLogEntry) -> bool:
    """Whether its client did not wait for the answer of an engine that was asked."""
    if not entry.common_properties.upstream_request_attempt_count:
        return False
    answer = answer_of(entry)
    return answer is not None and answer.outcome is Outcome.CLIENT_LEFT


def _number(fields: dict[str, object], key: str) -> int:
    return int(fields[key].number_value) if key in fields else 0  # type: ignore[attr-defined]
