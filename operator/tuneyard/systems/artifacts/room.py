"""Room in the cache: what lies there, making room for more, and clearing what processes that died left behind.

Rules:
- one process at a time counts and evicts (lock `room`), and what it has found room for is written down (`need`), so
  that two downloads never count on the same bytes;
- whether something is in use is asked of its lock: an artifact's users share it, a download has its source's;
- what goes is renamed to the trash first, under its lock, so that nobody ever sees half of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

from tuneyard.api.reasons import Reason
from tuneyard.planning.eviction import Disk, Stored, attainable, no_room, plan_evictions
from tuneyard.systems.artifacts.blobs import USED
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.storefolders import (
    BLOBS,
    LOCKS,
    PARTIALS,
    SOURCES,
    TRASH,
    Folders,
    disk_usage,
    listed,
    read_file,
    remove,
    touch,
    write_file,
)
from tuneyard.systems.artifacts.storelocks import Locks

NEED = "need"
_PLENTY = 1 << 62
_DAY = 86400.0
_OLD_PARTIAL, _OLD_SOURCE, _OLD_LOCK = 7 * _DAY, 30 * _DAY, _DAY


class NoRoomError(ArtifactError):
    """The cache has no room (DiskFull); bytes that were needed, and that can be had."""

    def __init__(self, message: str, needed: int, free: int) -> None:
        super().__init__(Reason.DISK_FULL, message)
        self.needed = needed
        self.free = free


class Room:
    """The room of one cache: at most `limit` bytes (None: what the disk has), `reserve` bytes of the disk left free."""

    def __init__(self, folders: Folders, locks: Locks, limit: int | None, reserve: int) -> None:
        self._folders = folders
        self._locks = locks
        self._limit = limit
        self._reserve = reserve

    def stored(self) -> list[Stored]:
        """Everything that lies in the cache."""
        with self._locks.alone("room"):
            return list(self._stored())

    def reserve(self, partial: str, size: int) -> None:
        """Make room for a download of `size` bytes in all, and keep it; the caller has its source's lock."""
        with self._locks.alone("room"), self._folders.opened(PARTIALS, partial, create=True) as folder:
            remove(folder, NEED)  # what a dead process had reserved
            touch(folder, USED)
            self._make(max(0, size - disk_usage(folder)))
            write_file(folder, NEED, str(size))

    def settle(self) -> None:
        """Bring the cache below its limit again; NoRoomError where what is in use is over it."""
        if self._limit is not None:
            with self._locks.alone("room"):
                self._make(0, Disk(self._limit, _PLENTY, 0))  # what is on the disk already needs none of it

    def give_way(self) -> bool:
        """Evict the least recently used, because the disk is full whatever was counted; False if nothing can go."""
        with self._locks.alone("room"):
            idle = sorted((s for s in self._stored() if not s.in_use), key=lambda s: (s.last_used, s.name))
            return any(self._evict(stored) for stored in idle)

    def shortage(self, partial: str, size: int | None) -> NoRoomError:
        """The error of a download that the disk was full for."""
        with self._locks.alone("room"):
            stored, disk = list(self._stored()), self._disk()
            with self._folders.opened(PARTIALS, partial, create=True) as folder:
                here = disk_usage(folder)
        needed = max(1, (size or 0) - here)
        return NoRoomError(no_room(stored, needed, disk), needed, attainable(stored, disk))

    def coming(self, partial: str) -> tuple[int, int | None]:
        """Bytes of a download that have come, and its whole size where that is known."""
        try:
            with self._folders.opened(PARTIALS, partial) as folder:
                return disk_usage(folder), _need(folder)
        except FileNotFoundError:
            return 0, None

    def sweep(self) -> None:
        """Delete the trash, and what nobody came back for; nothing that somebody has a lock on."""
        with self._folders.opened(TRASH) as trash:
            for name in listed(trash):
                remove(trash, name)
        now = time.time()
        with self._locks.alone("room"):
            for stored in list(self._stored()):
                if stored.name.startswith(PARTIALS) and stored.last_used < now - _OLD_PARTIAL:
                    self._evict(stored)
        self._forget_sources(now)
        self._forget_locks(now)

    def _make(self, needed: int, bounds: Disk | None = None) -> None:
        while True:
            stored, disk = list(self._stored()), bounds or self._disk()
            plan = plan_evictions(stored, needed, disk)
            if plan.missing:
                raise NoRoomError(no_room(stored, needed, disk), needed, attainable(stored, disk))
            # what came into use meanwhile shows as such at the next look; what the disk says right after deleting is
            # not looked at, because some file systems tell of it late
            evicted = [self._evict(victim) for victim in plan.victims]
            if all(evicted):
                return

    def _stored(self) -> Iterator[Stored]:
        for area in (BLOBS, PARTIALS):
            for name in self._folders.names(area):
                with suppress(FileNotFoundError, ArtifactError), self._folders.opened(area, name) as folder:
                    in_use = self._in_use(area, name)
                    size = disk_usage(folder)
                    need = _need(folder) if in_use and area == PARTIALS else None
                    yield Stored(f"{area}/{name}", size, _last_used(folder), in_use, max(0, (need or 0) - size))

    def _in_use(self, area: str, name: str) -> bool:
        lock = self._locks.attempt(_lock_of(area, name))
        if lock is not None:
            lock.release()
        return lock is None

    def _evict(self, stored: Stored) -> bool:
        """Delete it, unless it came into use."""
        area, name = stored.name.split("/")
        lock = self._locks.attempt(_lock_of(area, name))
        if lock is None:
            return False
        with lock:
            doomed = self._folders.trash(area, name)
        self._folders.delete(doomed)
        return True

    def _disk(self) -> Disk:
        return Disk(self._limit, self._folders.free(), self._reserve)

    def _forget_sources(self, now: float) -> None:
        with self._folders.opened(SOURCES) as sources:
            for name in listed(sources):
                if _modified(sources, name) < now - _OLD_SOURCE:
                    remove(sources, name)

    def _forget_locks(self, now: float) -> None:
        """Remove lock files of what is no longer here. Who waits for one finds that it is gone, and makes a new one."""
        kept = {_lock_of(area, name) for area in (BLOBS, PARTIALS) for name in self._folders.names(area)}
        for name in self._folders.names(LOCKS):
            with self._folders.opened(LOCKS) as locks:
                old = _modified(locks, name) < now - _OLD_LOCK
            if not old or name in kept:
                continue
            lock = self._locks.attempt(name)
            if lock is not None:
                with lock:
                    self._locks.forget(name)


def _lock_of(area: str, name: str) -> str:
    return f"blob-{name}" if area == BLOBS else f"source-{name}"


def _need(partial: int) -> int | None:
    try:
        text = read_file(partial, NEED, 32)
        return None if text is None else int(text)
    except (ValueError, ArtifactError):
        return None


def _last_used(folder: int) -> float:
    return _modified(folder, USED) or os.fstat(folder).st_mtime


def _modified(folder: int, name: str) -> float:
    """When a file was written last; 0 if it is not there (then somebody else has removed it)."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0
