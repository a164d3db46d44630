"""The threads that take keys from the queue and reconcile them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tuneyard.runtime.execute import NotLeadingError, RefusedError
from tuneyard.runtime.keys import Key
from tuneyard.runtime.metrics import Metrics
from tuneyard.runtime.queue import WorkQueue
from tuneyard.systems.kube.client import ApiError

_log = logging.getLogger(__name__)

WORKERS = 8
"""Passes at a time: they mostly wait for the API server, and it takes some 500 writes a second."""


class Workers:
    """`reconcile` for every key of the queue, several at a time and each key in one thread at a time."""

    def __init__(
        self, queue: WorkQueue, reconcile: Callable[[Key], float | None], metrics: Metrics, count: int = WORKERS
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._metrics = metrics
        self._threads = [threading.Thread(target=self._run, name=f"worker-{n}", daemon=True) for n in range(count)]

    def start(self) -> None:
        """Begin to take keys."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Take no more keys and wait for the passes under way; returns whether all have ended in time."""
        self._queue.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (key := self._queue.get()) is not None:
            began = time.monotonic()
            outcome = self._pass(key)
            self._metrics.passes.labels(key.kind, outcome).inc()
            self._metrics.seconds.labels(key.kind).observe(time.monotonic() - began)

    def _pass(self, key: Key) -> str:
        try:
            again = self._reconcile(key)
        except NotLeadingError:
            self._queue.done(key)
            return "not_leading"
        except (ApiError, RefusedError) as error:
            delay = self._queue.failed(key)
            _log.warning("%s: %s; again in %.0f s", key, error, delay)
            return "refused"
        except Exception:  # noqa: BLE001
            # a plan that trips over one object must not keep the others from being reconciled
            delay = self._queue.failed(key)
            _log.exception("%s could not be reconciled; again in %.0f s", key, delay)
            return "failed"
        self._queue.done(key, again)
        return "done"
