"""Sums of usage: tokens and requests by who asked and what answered. Pure.

Rules:
- what engines have counted and what is estimated are summed apart;
- the number of sums is bounded (MOST): for a new one beyond it, those go that nothing was added to for an hour, and if
  all are in use, everything new is one sum whose labels are all `other`. Nothing is lost of the whole by that. Idle
  ones are looked for every LOOK_SECONDS at most, not with each record that finds no room;
- sums only grow, and they can be written down and read again (`to_json`), so that the process that comes next goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tuneyard.api.usage import UsageRecord

MOST = 5_000
IDLE_SECONDS = 3600.0
LOOK_SECONDS = 60.0


class UsageKey(NamedTuple):
    """Whose tokens; empty where there is none."""

    tenant: str
    deployment: str
    """`namespace/name`."""
    revision: str
    contents: str
    adapter: str
    adapter_digest: str
    base: str
    base_digest: str
    endpoint: str
    gate: bool
    estimated: bool


class Tokens(NamedTuple):
    """A sum."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def plus(self, other: Tokens) -> Tokens:
        """Both together."""
        return Tokens(*(a + b for a, b in zip(self, other, strict=True)))


OTHER = "other"


def key_of(record: UsageRecord) -> UsageKey:
    """The sum that a record belongs to."""
    return UsageKey(
        record.tenant or "",
        record.deployment,
        record.revision,
        record.contents,
        record.adapter or "",
        record.adapter_digest or "",
        record.base or "",
        record.base_digest or "",
        record.endpoint.value,
        record.gate,
        record.estimated,
    )


def tokens_of(record: UsageRecord) -> Tokens:
    """What a record adds."""
    return Tokens(1, record.prompt_tokens, record.cached_tokens, record.completion_tokens)


class UsageSums:
    """Sums by key, each with when something was added last (unix seconds)."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._sums: dict[UsageKey, tuple[Tokens, float]] = {}
        self._looked: float | None = None

    def add(self, found: Iterable[tuple[UsageKey, Tokens]], now: float) -> None:
        """Add these."""
        for wanted, tokens in found:
            key = self._place(wanted, now)
            before, _ = self._sums.get(key, (Tokens(), 0.0))
            self._sums[key] = before.plus(tokens), now

    def _place(self, key: UsageKey, now: float) -> UsageKey:
        """The key, or the one of those that have no room."""
        if key in self._sums or len(self._sums) < self._most:
            return key
        if self._looked is None or not 0 <= now - self._looked < LOOK_SECONDS:  # clocks are set back, too
            self._looked = now
            self._sums = {k: found for k, found in self._sums.items() if now - found[1] < IDLE_SECONDS}
        return key if len(self._sums) < self._most else _other(key)

    def copy(self) -> UsageSums:
        """Another one with the same sums."""
        made = UsageSums(self._most)
        made._sums, made._looked = dict(self._sums), self._looked
        return made

    def __iter__(self) -> Iterator[tuple[UsageKey, Tokens]]:
        """In order of time of their first record."""
        return ((key, tokens) for key, (tokens, _) in self._sums.items())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sums)

    def to_json(self) -> list[Any]:
        """As JSON."""
        return [[*key, *tokens, at] for key, (tokens, at) in self._sums.items()]

    @classmethod
    def from_json(cls, told: Iterable[list[Any]], most: int = MOST) -> UsageSums:
        """What `to_json` gave; TypeError or ValueError where it is something else."""
        sums, width = cls(most), len(UsageKey._fields)
        for entry in told:
            *row, at = entry
            sums._sums[UsageKey(*row[:width])] = Tokens(*(int(n) for n in row[width:])), float(at)
        return sums


def _other(key: UsageKey) -> UsageKey:
    return UsageKey(OTHER, OTHER, OTHER, OTHER, OTHER, OTHER, OTHER, OTHER, key.endpoint, key.gate, key.estimated)
