"""Locks between the pods that share a cache: flock on empty files, which the kernel frees when a process dies.

Rules:
- flock, because a lock belongs to an open file: threads of one process exclude each other too, and closing another
  descriptor of the file frees nothing (as it would with fcntl's record locks). On NFS, Linux makes it a lock of the
  server, which other nodes see; a volume where that is not so is refused at once, rather than found out by files that
  vanish under an engine.
- A lock file may be removed by who holds it exclusively. So whoever got a lock looks whether the file is still the
  one of that name, and else begins again.
- The order is fetch locks (source, then digest), room, blobs; waiting happens only in that order.
- A child that is forked without exec shares its parent's locks: do not fork while holding one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.storefolders import LOCKS, Folders

_POLL_SECONDS = 0.1
_UNSUPPORTED = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_STALE = frozenset({errno.ESTALE, errno.ENOENT})


class Lock:
    """A lock that is held until `release`, or the end of the process."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        """Free the lock; again is no other thing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Locks:
    """The locks of one cache, by name."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def attempt(self, name: str) -> Lock | None:
        """The lock for oneself alone; None if anybody has it."""
        return self._acquire(name, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def alone(self, name: str) -> Lock:
        """The lock for oneself alone, waited for in silence: others have it for moments, or while they hash."""
        return _held(self._acquire(name, fcntl.LOCK_EX))

    def shared(self, name: str) -> Lock:
        """The lock together with others, waited for; who has it alone has it for moments."""
        return _held(self._acquire(name, fcntl.LOCK_SH))

    def wait(self, name: str, on_wait: Callable[[], None]) -> Lock:
        """The lock for oneself alone, however long another one has it; `on_wait` hears again and again, and may raise.

        The first refusal is not told: who looks whether a lock is held has it for a moment.
        """
        tries = 0
        while (lock := self.attempt(name)) is None:
            tries += 1
            if tries > 1:
                on_wait()
            time.sleep(_POLL_SECONDS)
        return lock

    def prove(self) -> None:
        """Raise ArtifactError (CacheUnusable) where locks do not exclude, or only within one node of several."""
        with self._folders.opened(LOCKS) as handle:
            device = os.fstat(handle).st_dev
        if local := local_only(Path("/proc/self/mountinfo"), device):
            raise ArtifactError(
                Reason.CACHE_UNUSABLE,
                f"the cache's volume is NFS mounted with {local}, so its file locks are not seen by other nodes: "
                "remove that mount option",
            )
        name = f"proof-{os.getpid()}-{time.monotonic_ns()}"
        first = self.alone(name)
        try:
            if (second := self.attempt(name)) is not None:
                second.release()
                raise _no_locks("two got the same lock")
        finally:
            self.forget(name)
            first.release()

    def forget(self, name: str) -> None:
        """Remove a lock's file; by who has it alone, or knows that nobody else uses the name."""
        with self._folders.opened(LOCKS) as handle:
            try:
                os.unlink(name, dir_fd=handle)
            except FileNotFoundError:
                return

    def _acquire(self, name: str, operation: int) -> Lock | None:
        while True:
            with self._folders.opened(LOCKS) as folder:
                handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
                lock = Lock(handle)
                try:
                    fcntl.flock(handle, operation)
                    os.utime(handle)
                    now = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if os.path.samestat(now, os.fstat(handle)):
                        return lock
                except BlockingIOError:
                    lock.release()
                    return None
                except OSError as error:
                    lock.release()
                    if error.errno in _UNSUPPORTED:
                        raise _no_locks(error.strerror or str(error)) from error
                    if error.errno not in _STALE:
                        raise
                lock.release()


def _held(lock: Lock | None) -> Lock:
    assert lock is not None, "only an attempt is refused"  # noqa: S101
    return lock


def _no_locks(why: str) -> ArtifactError:
    return ArtifactError(
        Reason.CACHE_UNUSABLE,
        f"the cache's volume has no working file locks ({why}): use a volume that has them, or a cache of "
        "the pod's own",
    )


def local_only(mounts: Path, device: int) -> str | None:
    """The mount option that keeps NFS from sharing locks, None if there is none."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split(" ")
        if before.split(" ")[2] == wanted and kind.startswith("nfs"):
            return next((o for o in options.split(",") if o in ("nolock", "local_lock=flock", "local_lock=all")), None)
    return None
