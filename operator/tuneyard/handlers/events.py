"""kopf as event source: handlers that only wake.

Rules (each sidesteps something measured on kopf 1.45.2, see the design's notes on Kubernetes):
- `on.event` handlers only: no finalizers, no annotations, no PATCH of kopf's own, ever;
- the passes read the informers, whose own notices wake them. An event that the informers do not show within three
  seconds has been lost or delayed there (handlers and watches can both miss one): then the object is woken from here,
  and that pass reads from the API server;
- endless jittered back-offs: neither a 403 nor an API server that is away for an hour ends it. What ends it all the
  same (the CRD is gone) starts it again, in this thread, while the informers go on by themselves;
- no posting of events, no peering, no scanning of the cluster's kinds and namespaces, no liveness endpoint: it would
  not notice a stale watch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kopf

from tuneyard.api import names
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.systems.kube.client import in_cluster
from tuneyard.systems.kube.objects import PLURALS

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0
_LATE_SECONDS = 3.0
_WATCH_SECONDS = 45
"""An integer: kopf passes it on as it is, and the API server reads no fraction."""

Shown = Callable[[Key, str], bool]
"""Whether the informers show an object in this resourceVersion (or a newer one)."""
OnMissed = Callable[[Key], None]
"""Called with the key of a change that they did not show in time."""


class Backoffs(Iterable[float]):
    """Seconds between attempts, without an end: 0.2, 0.4, … 5, with jitter."""

    def __iter__(self) -> Iterator[float]:
        for attempt in itertools.count():
            yield min(5.0, 0.2 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


def settings() -> kopf.OperatorSettings:
    """The settings of kopf for an operator that only wakes."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.peering.standalone = True
    result.scanning.disabled = True
    result.process.ultimate_exiting_timeout = None
    result.networking.error_backoffs = Backoffs()
    result.networking.connect_timeout = 5.0
    result.networking.request_timeout = 30.0
    result.watching.server_timeout = _WATCH_SECONDS
    result.watching.client_timeout = _WATCH_SECONDS + 15.0
    result.watching.connect_timeout = 5.0
    result.queueing.error_delays = (1, 2, 5, 10)
    return result


def registry(shown: Shown, on_missed: OnMissed) -> kopf.OperatorRegistry:
    """Handlers for the three kinds, and how to log in."""
    result = kopf.OperatorRegistry()

    @kopf.on.login(registry=result)
    def login(**context: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**context) if in_cluster() else kopf.login_with_kubeconfig(**context)

    for kind in (BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT):
        plural = PLURALS[names.API_VERSION, kind]
        kopf.on.event(names.GROUP, names.VERSION, plural, id=plural, registry=result)(_waker(kind, shown, on_missed))
    return result


def _waker(kind: str, shown: Shown, on_missed: OnMissed) -> Callable[..., None]:
    async def wake(meta: kopf.Meta, type: str | None, **_: Any) -> None:  # noqa: A002
        key, version = Key(kind, str(meta.get("namespace") or ""), str(meta.get("name"))), str(meta["resourceVersion"])
        if type == "DELETED" or shown(key, version):
            return
        await asyncio.sleep(_LATE_SECONDS)
        if not shown(key, version):
            on_missed(key)

    return wake  # type: ignore[return-value]


class EventSource:
    """kopf in a thread of its own, started again whenever it ends before it should."""

    def __init__(self, shown: Shown, on_missed: OnMissed) -> None:
        self._shown = shown
        self._on_missed = on_missed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the watches; waits that many seconds at most."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(
                    kopf.operator(
                        registry=registry(self._shown, self._on_missed),
                        settings=settings(),
                        clusterwide=True,
                        standalone=True,
                        stop_flag=self._stopping,
                    )
                )
            except Exception as error:  # noqa: BLE001
                # kopf ends on answers that it takes for final, for example while a CRD is missing
                _log.warning("the event source ended, starting it again: %s: %s", type(error).__name__, error)
            self._stopping.wait(_AGAIN_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
