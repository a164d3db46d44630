"""How much memory there is for a model that is looked at: less than the node's where the container has a limit."""

from __future__ import annotations

from pathlib import Path

_BYTES_OF_VALUE = 4
_BESIDE = 1.15
"""What is in memory beside the values while they are read and computed with: measured 1.0 on SmolLM2."""
# cgroup v2, then v1: the limit, and the statistics with their word for what cannot be given back
_LIMITS = (("memory.max", "memory.stat", "anon"), ("memory/memory.limit_in_bytes", "memory/memory.stat", "rss"))


def available(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that this process can still take; None where nothing says so."""
    found = []
    if (node := _line(meminfo, "MemAvailable:")) is not None:
        found.append(node * 1024)
    for limit, statistics, used in _LIMITS:
        try:
            most = int((cgroup / limit).read_text())
        except (OSError, ValueError):  # another version, or no limit ("max")
            continue
        # files that were read count against the limit, too, and go when their room is needed
        found.append(most - (_line(cgroup / statistics, used) or 0))
    return max(min(found), 0) if found else None


def too_large(values: int, free: int | None) -> str | None:
    """In words that a model of so many values does not fit in float32; None: it does, or nobody knows."""
    needed = round(values * _BYTES_OF_VALUE * _BESIDE)
    if free is None or needed <= free:
        return None
    return f"it takes {_gibibytes(needed)} of memory in float32 and {_gibibytes(free)} are free"


def _line(file: Path, name: str) -> int | None:
    """The number after a name in a file of lines."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next(
        (int(parts[1]) for parts in lines if len(parts) > 1 and parts[0] == name and parts[1].isdecimal()), None
    )


def _gibibytes(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB"
