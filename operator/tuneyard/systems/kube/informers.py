"""Informers: a local copy of one kind of objects that follows the API server, and says what has changed.

The copy is `kubernetes.informer.SharedInformer`'s; this file gives it what it lacks, by the list function it calls:
- back-off with jitter on every failure (its own loop retries thousands of times in a 20 s outage), logged once per
  outage;
- time limits, so that a silent connection is noticed within 65 s (`_WATCH_SECONDS` plus `_SILENCE`);
- freshness: `age()` is the time since the API server last gave a sign of life on this watch (an event, a bookmark or a
  list), which is what a liveness probe has to ask for;
- a full list again when a watch cannot be resumed (403, 404, 410, a revision that went backwards because etcd was
  restored, three refusals in a row) and every ten minutes or so, should an event ever be lost.

Invariants:
- the copy already shows a change when `on_change` tells of it, for deletions missed while away too: those are told
  after the copy was replaced, not before;
- what a list finds unchanged is not told again;
- of a kind that may be missing (`optional`) there are no objects while the API server does not know it: it is asked
  again every few seconds, and `served` says which it is;
- callbacks run in the informer's own thread, one after the other. They must not block; `on_loop` makes one that hands
  over to an asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubernetes.client import ApiException
from kubernetes.informer import SharedInformer

from tuneyard.systems.kube.client import Api, ApiError, Object
from tuneyard.systems.kube.watching import Change, StoppedError, Stream, WatchState

OnChange = Callable[[Change, Object], None]

_log = logging.getLogger(__name__)
# its tracebacks on every lost connection would drown the one line that we log per outage
logging.getLogger("kubernetes.informer.informer").setLevel(logging.CRITICAL + 1)

_WATCH_SECONDS = 45.0
"""After this long the API server ends a watch; shortly before it sends a bookmark."""
_SILENCE = 15.0
"""A watch may be silent this much longer than it is allowed to last, then its connection is given up."""
_CONNECT = 5.0
_LIST_SECONDS = 30.0

_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@dataclass(frozen=True)
class _ListMeta:
    resource_version: str


@dataclass(frozen=True)
class _Listed:
    """What SharedInformer reads of a list."""

    items: list[Object]
    metadata: _ListMeta


def on_loop(loop: asyncio.AbstractEventLoop, callback: OnChange) -> OnChange:
    """`callback`, called in the loop's thread; changes are dropped once the loop is closed."""

    def bridged(change: Change, item: Object) -> None:
        try:
            loop.call_soon_threadsafe(callback, change, item)
        except RuntimeError:
            _log.debug("a change came after its loop was closed")

    return bridged


class Informer:
    """Follows the objects at `path`, for example "/apis/tuneyard.dev/v1alpha1/modeldeployments".

    `path` may hold `/namespaces/<name>`; without it all namespaces are followed. `metadata_only` asks the API server
    for apiVersion, kind and metadata alone (no Secret data ever reaches this process then). managedFields are dropped
    but for the entries that `keeps` is true of, and so is what `trim` removes from the object that it is given (it may
    be given the same object twice).
    Objects that are returned are shared: do not change them.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        on_change: OnChange | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
        trim: Callable[[Object], None] | None = None,
        keeps: Callable[[Object], bool] | None = None,
        optional: bool = False,
    ) -> None:
        self.path = path
        self.served = False
        """Whether the newest list was of a kind that the API server knows."""
        self._optional = optional
        self._api = api
        self._selectors = {
            key: value
            for key, value in (("labelSelector", label_selector), ("fieldSelector", field_selector))
            if value is not None
        }
        self._metadata_only = metadata_only
        self._trim = trim
        self._keeps = keeps
        self._listeners: list[OnChange] = [on_change] if on_change else []
        self._stopping = threading.Event()
        self._synced = threading.Event()
        self._state = WatchState()
        self._shared = SharedInformer(self._list_or_watch)
        for change in ("ADDED", "MODIFIED", "DELETED"):
            self._shared.add_event_handler(change, self._handler(change))
        self._shared.add_event_handler("BOOKMARK", self._on_bookmark)
        self._shared.add_event_handler("ERROR", self._on_error)

    def listen(self, on_change: OnChange) -> None:
        """Tell this callback too; only before start()."""
        self._listeners.append(on_change)

    def start(self) -> None:
        """Begin to list and watch, in a thread of its own."""
        self._stopping.clear()
        self._shared.start()

    def stop(self) -> None:
        """End the watch; returns within about five seconds even where the API server does not answer."""
        self._stopping.set()
        self._state.hang_up()
        # SharedInformer waits for its thread without a limit, and that may sit in a connect or a read
        ending = threading.Thread(target=self._shared.stop, name=f"stop {self.path}", daemon=True)
        ending.start()
        ending.join(5.0)

    @property
    def synced(self) -> bool:
        """Whether the first list has come and been told to the listeners."""
        return self._synced.is_set()

    def wait_synced(self, timeout: float | None = None) -> bool:
        """Wait for the first list; returns whether it has come."""
        return self._synced.wait(timeout)

    def age(self) -> float:
        """Seconds since the API server's last sign of life on this watch; infinite before the first list."""
        return time.monotonic() - self._state.seen if self.synced else float("inf")

    def get(self, namespace: str, name: str) -> Object | None:
        """The object as last seen; `namespace` is "" for objects that have none."""
        found: Object | None = self._shared.cache.get_by_key(f"{namespace}/{name}" if namespace else name)
        return found

    def items(self) -> list[Object]:
        """All objects as last seen."""
        found: list[Object] = self._shared.cache.list()
        return found

    # -- what SharedInformer calls ---------------------------------------------------------------------------------

    def _list_or_watch(self, *, watch: bool = False, resource_version: str = "", **_: Any) -> object:
        """:rtype: object"""
        # the line above is read by kubernetes.watch: it keeps events as dictionaries and follows their revision
        if not watch:
            return self._list()
        self._tell_listed()
        return self._watch(resource_version)

    def _list(self) -> _Listed:
        while True:
            self._pause()
            try:
                answer = self._api.request(
                    "GET",
                    self.path,
                    query=self._selectors,
                    accept=_METADATA_LIST if self._metadata_only else _JSON,
                    timeout=(_CONNECT, _LIST_SECONDS),
                )
            except ApiError as error:
                self._failed(error)
                if self._optional and error.not_found:
                    self.served = False
                    self._state.listed("", {_key(item): "" for item in self.items()})
                    return _Listed([], _ListMeta(""))
                continue
            self.served = True
            # items of a list carry neither kind nor apiVersion, those of a watch do
            kind, version = str(answer.get("kind", "")).removesuffix("List"), answer.get("apiVersion")
            items = [self._trimmed({"kind": kind, "apiVersion": version, **item}) for item in answer.get("items") or []]
            before = {_key(item): item for item in self.items()}
            # what has not changed stays the same object, for those who keep it, and is told to nobody
            items = [_unless_newer(before.get(_key(item)), item) for item in items]
            known = {key: item["metadata"].get("resourceVersion", "") for key, item in before.items()}
            self._state.listed(str(answer["metadata"].get("resourceVersion", "")), known)
            self._worked("lists again")
            return _Listed(items, _ListMeta(str(answer["metadata"].get("resourceVersion", ""))))

    def _watch(self, resource_version: str) -> Stream:
        """One watch; SharedInformer comes back here whenever it has ended, and lists again on a 410."""
        state = self._state
        state.watch_ended()
        while True:
            if state.must_list_again():
                raise ApiException(status=410, reason="Gone")
            self._pause()
            seconds = _WATCH_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311
            query = {
                **self._selectors,
                "watch": "1",
                "allowWatchBookmarks": "true",
                "resourceVersion": resource_version,
                "timeoutSeconds": str(int(seconds)),
            }
            try:
                stream = self._api.stream(
                    self.path,
                    query=query,
                    accept=_METADATA if self._metadata_only else _JSON,
                    timeout=(_CONNECT, seconds + _SILENCE),
                )
            except ApiError as error:
                self._failed(error)
                state.refused(error)
                continue
            if not self.served:
                # the kind has come since the list, which found none: only a list tells that, and from when on to watch
                stream.close()
                raise ApiException(status=410, reason="Gone")
            watched = state.watching(Stream(stream, self._stopping, state))
            if self._stopping.is_set():
                # stop() may have looked for a stream to hang up a moment too early
                watched.close()
                raise StoppedError
            return watched

    # -- what it tells ---------------------------------------------------------------------------------------------

    def _handler(self, change: Change) -> Callable[[Object], None]:
        def handle(item: Object) -> None:
            self._trimmed(item)
            if self._state.listing is not None:
                self._state.listing.append((change, item))
                return
            self._state.saw(item)
            self._worked("events arrive again")
            self._tell(change, item)

        return handle

    def _on_bookmark(self, item: Object) -> None:
        self._state.saw(item)
        self._worked("events arrive again")

    def _on_error(self, error: object) -> None:
        if isinstance(error, StoppedError) or self._stopping.is_set():
            return
        if isinstance(error, ApiException):
            self._state.refused(ApiError(error.status or 0, "", ""))
        _log.debug("watch of %s ended: %s", self.path, error)

    def _tell_listed(self) -> None:
        """Tell what the list found, now that the copy shows it."""
        if self._state.listing is None:
            return
        told, self._state.listing = self._state.listing, None
        for change, item in told:
            unchanged = self._state.known.get(_key(item)) == item["metadata"].get("resourceVersion")
            if change == "DELETED" or not unchanged:
                self._tell(change, item)
        self._state.known = {}
        self._synced.set()

    def _tell(self, change: Change, item: Object) -> None:
        for listener in self._listeners:
            try:
                listener(change, item)
            except Exception:  # noqa: BLE001
                # one broken listener must not end the watch that others live on
                _log.exception("a listener of %s failed", self.path)

    def _trimmed(self, item: Object) -> Object:
        metadata = item.get("metadata", {})
        entries = metadata.pop("managedFields", None)
        if self._keeps is not None and entries is not None:
            metadata["managedFields"] = [entry for entry in entries if self._keeps(entry)]
        if self._trim is not None:
            self._trim(item)
        return item

    # -- failures --------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Wait as long as the failures in a row ask for."""
        if self._stopping.wait(self._state.delay()):
            raise StoppedError

    def _failed(self, error: ApiError) -> None:
        if self._state.failed(error):
            _log.warning("cannot follow %s, trying again: %s", self.path, error)

    def _worked(self, what: str) -> None:
        if self._state.worked():
            _log.info("%s: %s", self.path, what)


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _unless_newer(before: Object | None, now: Object) -> Object:
    """The object as it was known, where it is in the same version."""
    versions = [(item or {}).get("metadata", {}).get("resourceVersion") for item in (before, now)]
    return before if before is not None and versions[0] == versions[1] else now
