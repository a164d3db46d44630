"""Artifacts that come over the network: by way of the cache, with the credentials that the source names.

Blocking; called in threads. Rules:
- a pinned artifact that is in the cache needs neither network nor credentials;
- credentials are read anew for every fetch, and given to nobody but the source's client;
- what is in the cache goes by the versions that the source lists, so that changed objects are other artifacts;
- what is in the cache and was not hashed for a week is hashed before it is handed out;
- how far it is, is told every `_TOLD_SECONDS` at most, also while another pod is the one that fetches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tuneyard.api.documents import Transfer
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.download import FetchStopped, fetch, take_up
from tuneyard.systems.artifacts.floor import files_in_time
from tuneyard.systems.artifacts.folder import FolderDigest
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, Remote, RemoteFile, given_for, listing_key, remote_of
from tuneyard.systems.artifacts.store import Held, Store

_log = logging.getLogger(__name__)

_TOLD_SECONDS = 2.0
HASHED_WITHIN = 7 * 86400.0
"""A disk that returns other bytes than were written shows it by no stamp: after so long all are hashed again."""

Told = Callable[[Transfer], None]
"""Hears how far a fetch is; called from any thread."""
Ends = Callable[[], bool]
"""Whether one fetch is to end, which others do not; called from any thread."""


def never() -> bool:
    """A fetch that ends when it is done."""
    return False


@dataclass(frozen=True)
class Obtainer:
    """Gets the artifacts of remote sources."""

    store: Store
    credentials: Callable[[str], Credentials]
    """Those in the Secret of that name; raises ArtifactError."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Ends what is under way: the pod leaves."""

    def obtain(self, source: Source, pinned: str | None, told: Told, ends: Ends = never) -> Held:
        """The artifact, which stays in the cache until the caller releases it; raises ArtifactError, FetchStopped."""
        if pinned is not None and (held := self.look(pinned)) is not None:
            return held
        given = self._given(source)
        with closing(remote_of(source, given)) as remote:
            stopped = _Either(self.stopped, ends)
            files = files_in_time(remote, stopped.go_on)
            return self._through_the_store(remote, files, pinned, told, stopped)

    def look(self, digest: str) -> Held | None:
        """The artifact if it is in the cache and right; raises ArtifactError, FetchStopped."""
        return self.store.find(digest, hashed_within=HASHED_WITHIN, going_on=self.go_on)

    def go_on(self) -> None:
        """Raises FetchStopped when the pod leaves."""
        if self.stopped.is_set():
            raise FetchStopped

    def _given(self, source: Source) -> Credentials | None:
        """The credentials that the source names, if they may go where it says; raises ArtifactError."""
        if source.credentials is None:
            return None
        endpoint = source.hugging_face.endpoint if source.hugging_face else None
        return given_for(source.credentials, endpoint, self.credentials)

    def _through_the_store(
        self, remote: Remote, files: list[RemoteFile], pinned: str | None, told: Told, stopped: _Either
    ) -> Held:
        def bring(target: Path) -> FolderDigest:
            if target.exists():  # its process died before it said what it had
                take_up(remote, files, target)
            _log.info("fetching %s as %s", remote.fingerprint(), remote.identity)
            progress = Progress()
            with _telling(told, progress):
                # of this listing, which the cache files it under, even where the objects are others by now
                return fetch(remote, target, files=files, progress=progress, stopped=stopped)

        return self.store.obtain(
            listing_key(remote, files),
            pinned,
            bring,
            size=sum(f.size for f in files),
            on_wait=_waiting(told, stopped),
            hashed_within=HASHED_WITHIN,
            going_on=stopped.go_on,
        )


@dataclass(frozen=True)
class _Either:
    """What ends a fetch: the pod leaves, or this one is to end."""

    leaves: threading.Event
    ends: Ends

    def is_set(self) -> bool:
        """As a threading.Event says it."""
        return self.leaves.is_set() or self.ends()

    def go_on(self) -> None:
        """Raises FetchStopped where it is to end."""
        if self.is_set():
            raise FetchStopped


def _waiting(told: Told, stopped: _Either) -> Callable[[int, int | None], None]:
    """Hears of another process's transfer, which is waited for."""
    due = 0.0

    def heard(done: int, total: int | None) -> None:
        nonlocal due
        stopped.go_on()
        if time.monotonic() >= due:
            due = time.monotonic() + _TOLD_SECONDS
            told(Transfer(done_bytes=done, total_bytes=done if total is None else total))

    return heard


@contextmanager
def _telling(told: Told, progress: Progress) -> Iterator[None]:
    """Tell of a transfer's progress every now and then, while the block lasts."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_TOLD_SECONDS):
            if progress.total:  # the source has told what there is
                told(progress.transfer())

    teller = threading.Thread(target=tell, daemon=True, name="progress")
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
