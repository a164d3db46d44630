"""Kubernetes events (events.k8s.io/v1) about Tuneyard's objects.

Rules:
- an event never fails or delays a reconcile: it is queued, posted by a thread of its own, and dropped when the queue is
  full or the API server refuses it;
- the same event (object, reason, message) is one object with a count: its name is a hash of what it says, so another
  operator process, or this one after a restart, counts on instead of adding a line;
- repeats within half a minute are not written at all.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

from tuneyard.api import names
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE, Api, ApiError, Object

_log = logging.getLogger(__name__)

_QUEUE = 1000
_REMEMBERED = 4096
_REPEAT_SECONDS = 30.0
_KIND = ("events.k8s.io/v1", "Event")
_NOTE_LIMIT = 1024


@dataclass(frozen=True)
class Told:
    """One thing to tell about an object; `regarding` holds apiVersion, kind, namespace, name and uid."""

    type: str
    reason: str
    message: str
    regarding: tuple[tuple[str, str], ...]


class Events:
    """Posts events; `instance` names this process in them."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._queue: queue.Queue[Told | None] = queue.Queue(_QUEUE)
        self._posted: OrderedDict[Told, float] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Post what is queued, for at most that many seconds."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout)

    def tell(self, told: Told) -> None:
        """Queue an event; returns at once."""
        try:
            self._queue.put_nowait(told)
        except queue.Full:
            _log.debug("too many events are waiting; dropped %s", told.reason)

    def _run(self) -> None:
        while (told := self._queue.get()) is not None:
            last = self._posted.get(told)
            now = time.monotonic()
            if last is not None and now - last < _REPEAT_SECONDS:
                continue
            self._posted[told] = now
            self._posted.move_to_end(told)
            while len(self._posted) > _REMEMBERED:
                self._posted.popitem(last=False)
            try:
                self._post(told)
            except ApiError as error:
                _log.info("an event was not stored: %s", error)

    def _post(self, told: Told) -> None:
        about = dict(told.regarding)
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        name = f"{names.bounded(about['name'], 230)}.{names.short_hash(repr(told), length=16)}"
        event: Object = {
            "apiVersion": _KIND[0],
            "kind": _KIND[1],
            "metadata": {"name": name, "namespace": about["namespace"]},
            "eventTime": moment,
            "reportingController": f"{names.GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "action": told.reason,
            "reason": told.reason,
            "type": told.type,
            "note": told.message[:_NOTE_LIMIT],
            "regarding": about,
        }
        where = objects.path(*_KIND, about["namespace"])
        try:
            self._api.request("POST", where, body=event)
        except ApiError as error:
            if not error.conflict:
                raise
            self._count(f"{where}/{name}", moment)

    def _count(self, where: str, moment: str) -> None:
        """Raise the count of an event that is there already.

        Without the right to read events the count starts over; what people look at is the time of the last one.
        """
        series = {"count": 2, "lastObservedTime": moment}
        try:
            stored = self._api.request("GET", where)
            series["count"] = int((stored.get("series") or {}).get("count") or 1) + 1
        except ApiError as error:
            if error.status != 403:
                raise
        self._api.request("PATCH", where, body={"series": series}, content_type=MERGE)
