"""One leader among the operator's replicas, by a coordination.k8s.io Lease.

Rules:
- who leads renews every 2 s and stops leading when no renewal has succeeded for 10 s; who follows takes over when the
  Lease has not changed for its 15 s by the follower's own monotonic clock: no wall clock is compared with another's;
- `holds()` counts from before the renewal was sent, so a process that was paused knows on waking that it no longer
  leads, before it writes anything;
- a takeover raises `leaseTransitions`; every write carries the resourceVersion it was decided on, so of two that try
  at once one is told to wait;
- a leader that ends in order empties the Lease, and a follower need not wait.
Invariant: holds() is true in at most one process at a time, with 5 s between two of them unless the first let go.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, ApiError, Object

_log = logging.getLogger(__name__)

DURATION = 15.0
RENEW_EVERY = 2.0
RENEW_DEADLINE = 10.0
_REQUEST = (1.5, 1.5)
_KIND = ("coordination.k8s.io/v1", "Lease")


class LeaderLease:
    """This process's stake in the Lease `namespace/name`; `identity` differs between processes."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._namespace, self._name, self.identity = namespace, name, identity
        self._lease: Object | None = None
        self._seen_at = 0.0
        self._seen: tuple[object, ...] | None = None
        self._renewed = float("-inf")
        self._released = False

    def holds(self) -> bool:
        """Whether this process leads now, with time left to finish one write."""
        return not self._released and time.monotonic() - self._renewed < RENEW_DEADLINE

    @property
    def term(self) -> int:
        """How many times the Lease has changed hands; grows with each leader."""
        return int(((self._lease or {}).get("spec") or {}).get("leaseTransitions") or 0)

    def acquire(self, stopping: threading.Event) -> bool:
        """Wait until this process leads; returns False when `stopping` was set first."""
        while not stopping.is_set():
            if self._try():
                _log.info("leading as %s, term %d", self.identity, self.term)
                return True
            stopping.wait(RENEW_EVERY * random.uniform(0.5, 1.0))  # noqa: S311
        return False

    def keep(self, stopping: threading.Event, on_lost: Callable[[], None]) -> None:
        """Renew until `stopping` is set; calls `on_lost` once and returns when leadership is gone."""
        while not stopping.wait(RENEW_EVERY):
            if not self._try() and not self.holds():
                _log.error("the lease is lost: somebody else leads, or the API server does not answer")
                on_lost()
                return

    def release(self) -> None:
        """Give leadership up at once, so that another replica need not wait."""
        self._released = True
        if self._lease is None or self._holder() != self.identity:
            return
        try:
            self._write(holder="", transitions=self.term)
        except ApiError as error:
            _log.info("could not release the lease, it will run out: %s", error)

    def _holder(self) -> str:
        return str(((self._lease or {}).get("spec") or {}).get("holderIdentity") or "")

    def _try(self) -> bool:
        """Renew, or take over where that is allowed; returns whether this process leads now."""
        began = time.monotonic()
        try:
            self._read()
            if self._holder() == self.identity:
                self._write(self.identity, self.term)
            elif self._lease is None or not self._holder() or self._ran_out():
                self._write(self.identity, self.term + 1 if self._lease else 0)
            else:
                # somebody else was given it meanwhile: nothing may be written in our name any more
                self._renewed = float("-inf")
                return False
        except ApiError as error:
            _log.debug("lease: %s", error)
            return False
        self._renewed = began
        return True

    def _read(self) -> None:
        path = objects.path(*_KIND, self._namespace, self._name)
        try:
            self._lease = self._api.request("GET", path, timeout=_REQUEST)
        except ApiError as error:
            if not error.not_found:
                raise
            self._lease = None
        spec = (self._lease or {}).get("spec") or {}
        seen = tuple(spec.get(key) for key in ("holderIdentity", "renewTime", "leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()

    def _ran_out(self) -> bool:
        spec = (self._lease or {}).get("spec") or {}
        return time.monotonic() - self._seen_at > float(spec.get("leaseDurationSeconds") or DURATION)

    def _write(self, holder: str, transitions: int) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (self._lease or {}).get("spec") or {}
        same = before.get("holderIdentity") == holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(DURATION),
            "leaseTransitions": transitions,
            "acquireTime": before.get("acquireTime") if same else now,
            "renewTime": now,
        }
        metadata: Object = {"name": self._name, "namespace": self._namespace}
        where = objects.path(*_KIND, self._namespace)
        if self._lease is None:
            body = {"apiVersion": _KIND[0], "kind": _KIND[1], "metadata": metadata, "spec": spec}
            self._lease = self._api.request("POST", where, body=body, timeout=_REQUEST)
            return
        metadata["resourceVersion"] = self._lease["metadata"]["resourceVersion"]
        body = {"apiVersion": _KIND[0], "kind": _KIND[1], "metadata": metadata, "spec": spec}
        self._lease = self._api.request("PUT", f"{where}/{self._name}", body=body, timeout=_REQUEST)
