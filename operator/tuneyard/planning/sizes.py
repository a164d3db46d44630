"""Bytes and how far they are, in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tuneyard.api.documents import Transfer

_TRANSFER = re.compile(r"fetching: (\d+) % (.*)", re.DOTALL)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_for_people(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1, for example 3.5 MiB."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def transfer_for_people(transfer: Transfer) -> str:
    """For example `fetching: 45 % of 1.2 GiB at 118.0 MiB/s`; without a rate while there is none."""
    total, done = max(0, transfer.total_bytes), max(0, transfer.done_bytes)
    percent = min(100, 100 * done // total) if total else 100
    rate = f" at {size_for_people(transfer.bytes_per_second)}/s" if transfer.bytes_per_second > 0 else ""
    return f"fetching: {percent} % of {size_for_people(total)}{rate}"


def percent_said(words: str) -> tuple[int, str] | None:
    """Percent and the rest of what `transfer_for_people` said; None for other words."""
    found = _TRANSFER.match(words)
    return (int(found[1]), found[2]) if found else None


def slowest(transfers: Iterable[Transfer | None]) -> Transfer | None:
    """The one with the smallest share done, None where there is none."""
    going_on = [t for t in transfers if t is not None]
    return min(going_on, key=lambda t: t.done_bytes / t.total_bytes if t.total_bytes > 0 else 1.0, default=None)
