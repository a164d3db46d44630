"""How much a tenant may ask for: the limits that its policy may name, and what each counts.

Rules:
- minutes and months are the clock's (UTC), one after the other: what a minute has left ends with it, and nothing is
  carried over;
- a limit that is not there is none. One of 0 would be a policy without models, and is refused;
- an unknown entry of a policy is refused before this is asked (tenants.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """One limit; as a policy's entry names it."""

    REQUESTS = "requestsPerMinute"
    CONCURRENT = "concurrentRequests"
    TOKENS = "tokensPerMinute"
    MONTH = "tokensPerMonth"


Limits = Mapping[Kind, int]
"""Those that a tenant has."""

TOKENS = (Kind.TOKENS, Kind.MONTH)
_NUMBER = re.compile(r"[1-9][0-9]{0,14}")


def limits_of(data: Mapping[str, Any]) -> dict[Kind, int]:
    """The limits that a policy's data name; ValueError says what is wrong with one."""
    found = {}
    for kind in Kind:
        text = data.get(kind)
        if text is None:
            continue
        if not _NUMBER.fullmatch(str(text)):
            raise ValueError(
                f"{kind} is {str(text)[:32]!r}: a positive whole number in digits, of at most 15, in quotes"
            )
        found[kind] = int(text)
    return found


def period_of(kind: Kind, now: float) -> int:
    """The minute or month of unix time that a limit counts in, as a number that grows; requests under way have none."""
    if kind is Kind.CONCURRENT:
        return 0
    if kind is Kind.MONTH:
        at = datetime.fromtimestamp(now, UTC)
        return at.year * 12 + at.month - 1
    return int(now // 60)


def seconds_left(kind: Kind, now: float) -> int:
    """Until the limit's period ends, at least one; of requests under way nobody can say, and it is one."""
    if kind is Kind.CONCURRENT:
        return 1
    if kind is not Kind.MONTH:
        return max(1, math.ceil(60 - now % 60))
    at = datetime.fromtimestamp(now, UTC)
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return max(1, math.ceil(following.timestamp() - now))


def month_text(period: int) -> str:
    """A month as people write it."""
    return f"{period // 12}-{period % 12 + 1:02}"


def month_number(text: str) -> int:
    """The other way round; ValueError where it is none."""
    year, _, month = text.partition("-")
    return int(year) * 12 + int(month) - 1
