"""Which artifacts go from a cache so that another one has room.

Rules:
- what is in use never goes, and neither does what is being downloaded;
- of the rest the least recently used goes first, and no more of it than is needed;
- where even all of it would not be enough nothing goes: the others shall not lose their files in vain;
- two things bound the cache, its limit and the disk, and a download under way has its whole size in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuneyard.planning.sizes import size_for_people

_NAMED = 5
"""How many of those that hold the room a message names."""


@dataclass(frozen=True)
class Stored:
    """Something that lies in the cache: an artifact, or what has come of one."""

    name: str
    size_bytes: int
    last_used: float
    """Seconds since 1970, by the clock of the file system."""
    in_use: bool
    coming_bytes: int = 0
    """What a download under way still adds."""


@dataclass(frozen=True)
class Disk:
    """What bounds a cache, in bytes."""

    limit: int | None
    """Of all that lies in the cache; None for none."""
    free: int
    """On the file system, which may hold other things too."""
    reserve: int
    """To be left free on the file system."""


@dataclass(frozen=True)
class Evictions:
    """What goes, and how many bytes there is no room for all the same (then nothing goes)."""

    victims: tuple[Stored, ...]
    missing: int


def plan_evictions(stored: Iterable[Stored], needed: int, disk: Disk) -> Evictions:
    """What must go so that `needed` more bytes have room."""
    stored = tuple(stored)
    excess = needed - _room(stored, disk)
    victims: list[Stored] = []
    for candidate in sorted(stored, key=lambda s: (s.last_used, s.name)):
        if excess <= 0:
            break
        if not candidate.in_use:
            victims.append(candidate)
            excess -= candidate.size_bytes
    return Evictions((), excess) if excess > 0 else Evictions(tuple(victims), 0)


def attainable(stored: Iterable[Stored], disk: Disk) -> int:
    """How many bytes a new artifact may have when everything goes that may."""
    stored = tuple(stored)
    return max(0, _room(stored, disk) + sum(s.size_bytes for s in stored if not s.in_use))


def no_room(stored: Iterable[Stored], needed: int, disk: Disk) -> str:
    """Why there is no room, in words: needed, free, and what holds the rest."""
    stored = tuple(stored)
    holders = sorted((s for s in stored if s.in_use), key=lambda s: -(s.size_bytes + s.coming_bytes))
    named = [f"{s.name} {size_for_people(s.size_bytes + s.coming_bytes)}" for s in holders[:_NAMED]]
    if len(holders) > _NAMED:
        named.append(f"{len(holders) - _NAMED} more")
    bound = "without a limit" if disk.limit is None else f"limited to {size_for_people(disk.limit)}"
    free = attainable(stored, disk)
    return (
        f"the cache has no room: {size_for_people(needed)} needed ({needed} bytes), {size_for_people(free)} free "
        f"({free} bytes); it is {bound}, its disk has {size_for_people(disk.free)} left, in use are "
        f"{', '.join(named) or 'none of its artifacts'}: give serving.cache more room, or delete objects that nobody "
        "uses"
    )


def _room(stored: Sequence[Stored], disk: Disk) -> int:
    """Bytes that can be added as things are; below 0 where the cache is over its bounds."""
    coming = sum(s.coming_bytes for s in stored)
    on_disk = disk.free - disk.reserve - coming
    if disk.limit is None:
        return on_disk
    return min(on_disk, disk.limit - coming - sum(s.size_bytes for s in stored))
