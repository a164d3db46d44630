"""What `tuneyard usage` shows of records: sums by one of their properties. Pure.

A record counts once, however often it is read: it is known by its gateway and the id that this gave it. Nothing that a
client chose is part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Literal

from tuneyard.api.base import ApiModel
from tuneyard.api.usage import UsageRecord
from tuneyard.planning.usage import Tokens, tokens_of

By = Literal["tenant", "deployment", "revision", "adapter"]
_SHOWN_DIGEST = len("sha256:") + 12
_TO_SECONDS = len("2026-01-31T12:00:00")


class UsageRow(ApiModel):
    """The sum of one of them; what is estimated stands beside the rest and not in it."""

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated_requests: int = 0
    estimated_prompt_tokens: int = 0
    estimated_completion_tokens: int = 0


class UsageView(ApiModel):
    """All sums, those with the most tokens first."""

    by: By
    since: str | None = None
    rows: list[UsageRow]
    total: UsageRow


def answered(record: UsageRecord) -> str:
    """What answered, by name and the begin of its digest; of somebody else's API its host."""
    if record.external is not None:
        return record.external
    name, digest = (record.adapter, record.adapter_digest) if record.adapter else (record.base, record.base_digest)
    return f"{name or '-'}@{digest[:_SHOWN_DIGEST]}" if digest else name or "-"


NAMES: dict[By, Callable[[UsageRecord], str]] = {
    "tenant": lambda record: record.tenant or "-",
    "deployment": lambda record: record.deployment,
    "revision": lambda record: f"{record.deployment} {record.revision}",
    "adapter": answered,
}


def usage_view(records: Iterable[UsageRecord], by: By, since: str | None = None) -> UsageView:
    """The sums; `since`: of requests that came at that time (RFC 3339, UTC) or later."""
    sums: dict[tuple[str, bool], Tokens] = {}
    for record in once(records):
        if since is not None and not within(record, since):
            continue
        key = NAMES[by](record), record.estimated
        sums[key] = sums.get(key, Tokens()).plus(tokens_of(record))
    counted: dict[str, Tokens] = {name: tokens for (name, estimated), tokens in sums.items() if not estimated}
    guessed: dict[str, Tokens] = {name: tokens for (name, estimated), tokens in sums.items() if estimated}
    rows = [_row(n, counted.get(n, Tokens()), guessed.get(n, Tokens())) for n in dict.fromkeys(n for n, _ in sums)]
    total = _row("total", _sum(counted.values()), _sum(guessed.values()))
    return UsageView(by=by, since=since, rows=sorted(rows, key=lambda row: (-_size(row), row.name)), total=total)


def within(record: UsageRecord, since: str, until: str | None = None) -> bool:
    """Whether the request came at `since` or later, and before `until`; days or RFC 3339, in UTC."""
    time = record.time[:_TO_SECONDS]
    return time >= since[:_TO_SECONDS] and (until is None or time < until[:_TO_SECONDS])


def once(records: Iterable[UsageRecord]) -> Iterator[UsageRecord]:
    """Each record once."""
    seen: set[int] = set()
    for record in records:
        key = hash((record.gateway, record.id))
        if key not in seen:
            seen.add(key)
            yield record


def _sum(found: Iterable[Tokens]) -> Tokens:
    return reduce(Tokens.plus, found, Tokens())


def _row(name: str, counted: Tokens, guessed: Tokens) -> UsageRow:
    return UsageRow(
        name=name,
        requests=counted.requests,
        prompt_tokens=counted.prompt,
        cached_tokens=counted.cached,
        completion_tokens=counted.completion,
        estimated_requests=guessed.requests,
        estimated_prompt_tokens=guessed.prompt,
        estimated_completion_tokens=guessed.completion,
    )


def _size(row: UsageRow) -> int:
    return row.prompt_tokens + row.completion_tokens + row.estimated_prompt_tokens + row.estimated_completion_tokens
